"""A score board as a table in the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cuvee.evaluation.scoring import DEFINITION, Row, ScoreBoard

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_json", "as_markdown", "as_percent", "as_table", "label"]

_NORMALISED = "normalised"


def label(board: ScoreBoard, row: Row) -> str:
    """Return how a model is called."""
    return f"{board.titles[row.name]} expert" if row.kind == "expert" else row.name


def as_percent(share: float) -> str:
    """Return a share in whole percent, with a true minus."""
    return f"{100 * share:.0f} %".replace("-", "−")


def as_table(board: ScoreBoard) -> Table:
    """Return a table for rich: the base, the experts, and the merges, best first."""
    from rich.table import Table

    table = Table(title="bits per byte on held-out text (lower is better)", title_style="dim", title_justify="left")
    table.add_column("model", no_wrap=True)
    for title in board.titles.values():
        table.add_column(title, justify="right")
    table.add_column(_NORMALISED, justify="right")
    for row in _ordered(board):
        last_of_kind = row is board.base or row is list(board.experts.values())[-1]
        cells = (_cell(board, row, domain) for domain in board.titles)
        table.add_row(label(board, row), *cells, _normalised_cell(board, row), end_section=last_of_kind)
    return table


def as_markdown(board: ScoreBoard) -> str:
    """Return the table with its definition; the best merge and each expert's own domain are bold."""
    best = board.merges[:1]
    lines = [["model", *board.titles.values(), _NORMALISED], ["---", *["---:"] * (len(board.titles) + 1)]]
    for row in _ordered(board):
        numbers = [(f"{bits:.2f}", row.kind == "expert" and domain == row.name) for domain, bits in _bits(board, row)]
        numbers.append((as_percent(board.normalised(row)), row in best))
        lines.append([label(board, row), *(f"**{text}**" if bold else text for text, bold in numbers)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{DEFINITION}\n"


def as_json(board: ScoreBoard, *, seconds: Mapping[str, float]) -> str:
    """Return all numbers, unrounded.

    Args:
        seconds: wall time by stage.
    """
    models = [
        {
            "name": row.name,
            "kind": row.kind,
            "bits_per_byte": dict(row.bits),
            "recovered": board.recovered(row),
            "normalised": board.normalised(row),
        }
        for row in _ordered(board)
    ]
    return json.dumps({"definition": DEFINITION, "models": models, "seconds": dict(seconds)}, indent=1) + "\n"


def _ordered(board: ScoreBoard) -> list[Row]:
    return [board.base, *board.experts.values(), *board.merges]


def _bits(board: ScoreBoard, row: Row) -> Iterator[tuple[str, float]]:
    return ((domain, row.bits[domain]) for domain in board.titles)


def _cell(board: ScoreBoard, row: Row, domain: str) -> str:
    text = f"{row.bits[domain]:.3f}"
    if row.kind == "expert" and domain == row.name:
        return f"[bold cyan]{text}[/]"
    if row is board.base:
        return text
    return f"[green]{text}[/]" if row.bits[domain] < board.base.bits[domain] else f"[red]{text}[/]"


def _normalised_cell(board: ScoreBoard, row: Row) -> str:
    text = as_percent(board.normalised(row))
    return f"[bold green]{text}[/]" if row in board.merges[:1] else text
