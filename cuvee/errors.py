"""The error tree, by what the reader can do.

    CuveeError
    ├── RecipeError           fix the text of the recipe
    │   └── MethodError       …a parameter of a merge method
    ├── CheckpointError       fix or fetch again a file
    │   └── NonFinite         …that holds NaN or Inf, or let it pass on purpose
    ├── IncompatibleModels    choose other models, or leave tensors out
    ├── ResourceError         give more memory or disk, or another place
    └── Problems              several of the above, said together

Every error says what was found, where, and what would be right, and carries them as fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "CheckpointError",
    "CuveeError",
    "IncompatibleModels",
    "MethodError",
    "NonFinite",
    "Problems",
    "RecipeError",
    "ResourceError",
    "nearest",
    "printable",
    "raise_all",
]


class CuveeError(Exception):
    """An error that the user can do something about.

    Args:
        found: what was found, with the two facts side by side.
        where: file, line and key path, or file and tensor.
        right: what would work, as something to type.
    """

    def __init__(self, found: str, *, where: str = "", right: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.where = where
        self.right = right

    def __str__(self) -> str:
        lines = [self.found]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.right:
            lines.append(f"  right: {self.right}")
        return printable("\n".join(lines), keep_newlines=True)


class RecipeError(CuveeError):
    """The recipe's text is wrong: an unknown key, a missing value, a value of the wrong form."""


class MethodError(RecipeError):
    """A merge method is unknown, or one of its parameters is unknown, missing or out of range."""


class CheckpointError(CuveeError):
    """A model's file is missing, damaged or hostile, or changed while it was read."""


class NonFinite(CheckpointError):
    """A tensor holds NaN or Inf."""


class IncompatibleModels(CuveeError):
    """The models do not have the same tensors or shapes, or do not suit the method."""


class ResourceError(CuveeError):
    """Memory, disk space or permissions are not enough, or the target is taken."""


class Problems(CuveeError):
    """Several errors, said together.

    Attributes:
        errors: each of them, in the order found.
    """

    def __init__(self, errors: Sequence[CuveeError]) -> None:
        super().__init__(f"{len(errors)} problems")
        self.errors = tuple(errors)

    def __str__(self) -> str:
        numbered = (f"{i}. {error}".replace("\n", "\n   ") for i, error in enumerate(self.errors, 1))
        return f"{len(self.errors)} problems\n" + "\n".join(numbered)


def raise_all(errors: Sequence[CuveeError]) -> None:
    """Raise nothing, the one error, or all of them as `Problems`."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Problems(errors)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'ties'?", or the list of what is known when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.55)
    if close:
        return f"did you mean {close[0]!r}?"
    return "one of: " + ", ".join(known) if known else "nothing is known here"


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """Return `text` with control characters escaped, so that a hostile name cannot drive a terminal."""
    return "".join(
        c if c.isprintable() or (keep_newlines and c == "\n") else c.encode("unicode_escape").decode("ascii")
        for c in text
    )
