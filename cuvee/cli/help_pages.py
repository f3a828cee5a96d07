"""The look of `--help`: parts with a head, one line an option, nothing boxed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

__all__ = ["HelpPages"]

_LONGEST_CHOICE = 30


class HelpPages:
    """Prints help; cyclopts calls it."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one part of a page."""
        from rich.table import Table

        if not panel.entries:
            return
        console.print(_text(panel.title), style="bold", markup=False)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, style="cyan")
        grid.add_column()
        for entry in panel.entries:
            grid.add_row("", _label(entry), _description(entry))
        console.print(grid)
        console.print()

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print how the command is called."""
        from rich.text import Text

        text = _text(usage)
        text = Text(text.plain.removeprefix("Usage: ").strip())
        console.print(Text.assemble(("Usage: ", "dim"), (text.plain, "bold")), "", sep="\n")

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print what the command is for."""
        text = getattr(description, "primary_renderable", description)
        if text:
            console.print(_reflowed(str(text)), "", sep="\n", markup=False, highlight=False)


def _reflowed(text: str) -> str:
    """Return a docstring's text with each paragraph on one line; indented lines stay as they are."""
    lines: list[str] = []
    for line in text.rstrip().split("\n"):
        goes_on = lines and lines[-1] and line and not line.startswith(" ") and not lines[-1].startswith(" ")
        if goes_on:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _text(title: Any) -> Text:
    from rich.text import Text

    return title if isinstance(title, Text) else Text(str(title))


def _label(entry: HelpEntry) -> str:
    if entry.positional_label:
        return entry.positional_label
    names = ", ".join((*entry.positive_shorts, *entry.positive_names))
    value = " or ".join(entry.choices) if entry.choices else entry.metavar
    if value and len(value) > _LONGEST_CHOICE:
        value = entry.metavar  # the help text lists them
    return f"{names} {value}" if value else names


def _description(entry: HelpEntry) -> Text:
    from rich.text import Text

    text = str(getattr(entry.description, "primary_renderable", entry.description) or "").strip()
    return Text(text[:1].upper() + text[1:])
