"""A score board as a picture: how much of the experts' gains each model has, on the whole and by domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.errors import ResourceError
from cuvee.evaluation.scoring import Row, ScoreBoard
from cuvee.evaluation.tables import as_percent, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_WINE, _STONE, _INK, _PALE, _SLATE, _WHITE = "#8c1c3f", "#b9b2a7", "#2b2b2b", "#f1eee9", "#6d7f8c", "#fbfaf8"
_WORST_SHOWN, _BEST_SHOWN = -0.5, 1.0
_WORD_SIZE, _NUMBER_SIZE = 10.5, 9.5


def draw(board: ScoreBoard, folder: Path) -> None:
    """Write chart.png and chart.svg.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ResourceError("the chart needs matplotlib", right="pip install 'cuvee[demo]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [*board.merges, *board.experts.values(), board.base]
    with pyplot.rc_context({"svg.hashsalt": "cuvee", "font.size": _WORD_SIZE, "text.color": _INK}):
        figure, (bars, cells) = pyplot.subplots(
            1, 2, figsize=(12, 1.6 + 0.36 * len(rows)), sharey=True, width_ratios=[5, 6], layout="constrained"
        )
        figure.suptitle("One model out of many: what merges keep of what the experts learned", x=0.01, ha="left",
                        fontsize=15, fontweight="bold")  # fmt: skip
        _draw_bars(bars, board, rows)
        _draw_cells(cells, board, rows)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "chart.png", dpi=160)
        figure.savefig(folder / "chart.svg", metadata={"Date": None})
        pyplot.close(figure)


def _draw_bars(axis: Axes, board: ScoreBoard, rows: Sequence[Row]) -> None:
    """Draw the normalised score of each model; a bar that leaves the picture on the left is cut and keeps its number."""
    lowest = -0.25
    shares = [board.normalised(row) for row in rows]
    shown = [max(share, lowest) for share in shares]
    axis.barh(range(len(rows)), shown, height=0.68, color=[_WINE if row.kind == "merge" else _STONE for row in rows])
    for place, (share, length) in enumerate(zip(shares, shown, strict=True)):
        axis.text(max(length, 0) + 0.012, place, as_percent(share), va="center", fontsize=_NUMBER_SIZE)
    axis.axvline(0, color=_INK, linewidth=0.8)
    axis.axvline(1, color=_INK, linewidth=0.8, linestyle=(0, (2, 3)))
    axis.set_xlim(lowest, 1.04)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %\nthe base", "25 %", "50 %", "75 %", "100 %\nevery expert"])
    axis.set_yticks(range(len(rows)), [label(board, row) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title("Normalised score: merges, and single experts in grey", loc="left", pad=24, fontsize=_WORD_SIZE)
    axis.tick_params(length=0, labelsize=_WORD_SIZE)
    axis.spines[:].set_visible(False)


def _draw_cells(axis: Axes, board: ScoreBoard, rows: Sequence[Row]) -> None:
    """Draw bits per byte by domain, coloured by the share of that expert's gain."""
    from matplotlib.colors import LinearSegmentedColormap

    steps = [(0.0, _SLATE), (1 / 3, _WHITE), (1.0, _WINE)]  # worst shown, base, expert
    colours = LinearSegmentedColormap.from_list("wine", steps).with_extremes(bad=_PALE)
    shares = [[board.recovered(row).get(domain, math.nan) for domain in board.titles] for row in rows]
    image = axis.imshow(shares, cmap=colours, vmin=_WORST_SHOWN, vmax=_BEST_SHOWN, aspect="auto")
    for place, row in enumerate(rows):
        for column, domain in enumerate(board.titles):
            is_own = row.kind == "expert" and row.name == domain
            is_dark = shares[place][column] > 0.45 or shares[place][column] < -0.4
            axis.text(column, place, f"{row.bits[domain]:.2f}", ha="center", va="center", fontsize=_NUMBER_SIZE,
                      color="white" if is_dark else _INK, fontweight="bold" if is_own else "normal")  # fmt: skip
    axis.set_xticks(range(len(board.titles)), list(board.titles.values()))
    axis.xaxis.tick_top()
    axis.set_title("Bits per byte on held-out text, lower is better", loc="left", pad=24, fontsize=_WORD_SIZE)
    axis.tick_params(length=0, labelsize=_WORD_SIZE, labelleft=False)
    axis.spines[:].set_visible(False)
    for place in range(1, len(rows)):
        axis.axhline(place - 0.5, color="white", linewidth=2)
    for column in range(1, len(board.titles)):
        axis.axvline(column - 0.5, color="white", linewidth=2)
    bar = axis.figure.colorbar(image, ax=axis, pad=0.02, aspect=30, ticks=[-0.5, 0, 0.5, 1], extend="both")
    bar.ax.set_yticklabels(["−50 %", "base", "50 %", "expert"], fontsize=_NUMBER_SIZE)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
