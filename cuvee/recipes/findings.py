"""What is wrong with a recipe: collected while it is read, said in the order of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from cuvee.errors import CuveeError, RecipeError, printable
from cuvee.recipes.recipe import place_of

__all__ = ["Findings", "KeyPath"]

KeyPath: TypeAlias = tuple[Any, ...]

_LONGEST = 400


class Findings:
    """Errors and warnings about one recipe.

    Attributes:
        places: key path -> "file:line:column"; may grow while the text is read.
    """

    def __init__(self, places: Mapping[KeyPath, str]) -> None:
        self.places = places
        self._errors: list[tuple[tuple[int, int], CuveeError]] = []
        self._warnings: list[tuple[tuple[int, int], str]] = []

    def error(
        self, found: str, path: KeyPath, *, right: str = "", kind: type[CuveeError] = RecipeError, where: str = ""
    ) -> None:
        """Note an error at a key path (`where` overrules the place on record)."""
        where = where or place_of(self.places, path)
        self._errors.append((_order(where), kind(_short(found), where=where, right=_short(right))))

    def warn(self, text: str, path: KeyPath) -> None:
        """Note something the user should know and can change."""
        where = place_of(self.places, path)
        said = f"{where}: {text}" if where else text
        self._warnings.append((_order(where), printable(_short(said))))

    @property
    def errors(self) -> list[CuveeError]:
        """In the order of the text; what has no place in it, in the order found. Each once."""
        ordered = (error for _, error in sorted(self._errors, key=lambda pair: pair[0]))
        return list({str(error): error for error in ordered}.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """In the order of the text, each once."""
        return tuple(dict.fromkeys(text for _, text in sorted(self._warnings, key=lambda pair: pair[0])))


def _order(where: str) -> tuple[int, int]:
    """Return line and column of "file:line:column (key path)"."""
    found = re.search(r":(\d+):(\d+)(?= \(|$)", where)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
