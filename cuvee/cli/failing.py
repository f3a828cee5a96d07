"""How a command that fails says so, and the exit code that goes with it."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any

from cuvee.cli.screen import print_json, screen
from cuvee.errors import CuveeError, Problems, ResourceError, printable

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["BUG", "USER_ERROR", "Interrupted", "as_user_error", "tell", "tell_bug"]

BUG, USER_ERROR = 1, 2
_MOST_PROBLEMS = 20


class Interrupted(CuveeError):
    """The command was stopped by a signal."""


def as_user_error(error: BaseException) -> CuveeError | None:
    """Return what the user can do about an error of Python or torch; None when it is a bug of ours."""
    if isinstance(error, CuveeError):
        return error
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return ResourceError(
            "memory ran out", right="--memory with less than is free, fewer --threads, or --device cpu"
        )
    if isinstance(error, OSError):
        return ResourceError(
            (error.strerror or str(error) or type(error).__name__).lower(),
            where=str(error.filename or ""),
            right="check the path, its permissions and the disk",
        )
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def tell(error: CuveeError, *, as_json: bool) -> None:
    """Print an error on stderr in the house's form; with `as_json` also on stdout, as an object."""
    if as_json:
        _print_object(error)
    console = screen(stderr=True)
    for line in _lines(error):
        console.print(line, soft_wrap=True)


def _print_object(error: CuveeError) -> None:
    try:
        print_json(_as_object(error))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass  # a full stdout may be the very error; stderr still says it


def tell_bug(error: BaseException, *, as_json: bool) -> None:
    """Say that the fault is ours; the traceback goes to a file, under CUVEE_DEBUG=1 to stderr."""
    report = "".join(traceback.format_exception(error))
    where = "the traceback above"
    if os.environ.get("CUVEE_DEBUG") == "1":
        sys.stderr.write(report)
    else:
        where = _save(report)
    last = f"{type(error).__name__}: {error}"
    tell(
        CuveeBug(
            f"cuvee failed, and the fault is cuvee's: {printable(last)[:300]}",
            where=where,
            right="send us the traceback and the command; CUVEE_DEBUG=1 prints it at once",
        ),
        as_json=as_json,
    )


class CuveeBug(CuveeError):
    """An error that no user can do something about."""


def _save(report: str) -> str:
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cuvee-traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(report)
        return file.name
    except OSError:
        return "run it again with CUVEE_DEBUG=1 to see the traceback"


def _as_object(error: CuveeError) -> dict[str, Any]:
    if isinstance(error, Problems):
        return {"errors": [_fields(one) for one in error.errors]}
    return {"error": _fields(error)}


def _fields(error: CuveeError) -> dict[str, str]:
    return {"found": error.found, "where": error.where, "right": error.right, "kind": type(error).__name__}


def _lines(error: CuveeError) -> list[Text]:
    if not isinstance(error, Problems):
        return _one(error, "")
    from rich.text import Text

    lines = [Text(f"{len(error.errors)} problems", "bold red")]
    for number, one in enumerate(error.errors[:_MOST_PROBLEMS], 1):
        lines += _one(one, f"{number}. ")
    if len(error.errors) > _MOST_PROBLEMS:
        lines.append(Text(f"…and {len(error.errors) - _MOST_PROBLEMS} more; --json prints all", "bold red"))
    return lines


def _one(error: CuveeError, number: str) -> list[Text]:
    """Return the lines of `str(error)`, coloured for a terminal."""
    from rich.text import Text

    first, *rest = str(error).split("\n")
    lines = [Text.assemble(number, (first, "bold red"))]
    margin = " " * len(number)
    for line in rest:
        label, colon, text = line.partition(": ")
        if colon and label in ("  where", "  right"):
            style = "green" if label == "  right" else "none"
            lines.append(Text.assemble(margin, (f"{label}: ", "dim"), (text, style)))
        else:
            lines.append(Text(margin + line))
    return lines
