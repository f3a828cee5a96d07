"""What is printed, and where: results on stdout, progress and errors on stderr, names made harmless.

Text is never read as markup, so a tensor called `[red]` is printed as it is. Colour appears in a terminal only.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["heading", "indented", "print_json", "prose", "rows", "safe", "screen", "show", "styled", "table"]

_WIDTH_OF_FILES = 120
_INDENT = 2


def screen(*, stderr: bool = False) -> Console:
    """Return the console of stdout or stderr; a pipe or a file counts as 120 columns wide."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)


def safe(text: object) -> str:
    """Return a text that cannot drive a terminal, on one line."""
    return printable(str(text))


def styled(text: object, style: str = "") -> Text:
    """Return a harmless text in a style."""
    from rich.text import Text

    return Text(safe(text), style=style)


def show(console: Console, *parts: Any) -> None:
    """Print the parts below each other; an empty text is an empty line. In a file or a pipe no line ends in spaces."""
    if console.is_terminal:
        for part in parts:
            console.print(part)
        return
    with console.capture() as caught:
        for part in parts:
            console.print(part)
    lines = caught.get().split("\n")
    console.file.write("\n".join(line.rstrip() for line in lines))


def heading(text: str) -> Text:
    """Return a line that begins a part."""
    return styled(text, "bold")


def indented(part: Any) -> Any:
    """Return a part moved to the right, as all is below a heading."""
    from rich.padding import Padding

    return Padding.indent(part, _INDENT)


def prose(text: str, style: str = "") -> Any:
    """Return an indented paragraph that is wrapped between words."""
    from rich.text import Text

    return indented(Text(printable(text, keep_newlines=True), style=style))


def table(*columns: str, numbers: Iterable[int] = (), fold: Iterable[int] = ()) -> Table:
    """Return an empty table with a light head; print it `indented`.

    Args:
        columns: their titles.
        numbers: which are aligned to the right.
        fold: which may be broken anywhere, such as long names; the others break between words.
    """
    from rich import box
    from rich.table import Table

    lines = box.Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
    made = Table(
        box=lines, padding=(0, 1, 0, 0), header_style="dim", border_style="dim", show_edge=False, pad_edge=False
    )
    numbers, fold = set(numbers), set(fold)
    for index, title in enumerate(columns):
        made.add_column(
            title,
            justify="right" if index in numbers else "left",
            overflow="fold" if index in fold else "ellipsis",
            no_wrap=index in numbers,
        )
    return made


def rows(pairs: Iterable[tuple[str, object]]) -> Any:
    """Return lines of a dim label and a text; an empty text is left away."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        if value not in ("", None):
            grid.add_row(label, value if isinstance(value, Text) else Text(printable(str(value), keep_newlines=True)))
    return indented(grid)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; what is not a number (NaN) becomes null. ASCII only: it drives no terminal."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
