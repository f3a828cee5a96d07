"""Heat maps of layers by roles: blocks of colour in the terminal, shades without colour, a picture by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.cli.screen import safe
from cuvee.errors import ResourceError

if TYPE_CHECKING:
    from rich.text import Text

    from cuvee.reports.expert_maps import HeatMap

__all__ = ["draw", "save_png"]

_SHADES = "░▒▓█"
# Viridis: dark is little, light is much, also without colour vision.
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_WIDEST_CELL = 3


def draw(heat_map: HeatMap, *, width: int, coloured: bool) -> list[Text]:
    """Return a map as lines of at most `width` columns; layers that do not fit are averaged with their neighbours."""
    from rich.text import Text

    label = max(map(len, heat_map.rows), default=0) + 2
    layers = max(map(len, heat_map.values), default=0)
    room = max(8, width - label)
    together = max(1, math.ceil(layers / room))
    columns = math.ceil(layers / together)
    cell = max(1, min(_WIDEST_CELL, room // max(1, columns)))
    low, high = heat_map.range
    lines = [Text.assemble((heat_map.title, "bold"), "  ", *_scale(heat_map, coloured))]
    for name, values in zip(heat_map.rows, heat_map.values, strict=True):
        line = Text(safe(name).ljust(label))
        for start in range(0, layers, together):
            line.append(*_block(_mean(values[start : start + together]), low, high, cell, coloured))
        lines.append(line)
    lines.append(Text(" " * label + _ruler(columns, cell, together), style="dim"))
    return lines


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _block(value: float, low: float, high: float, cell: int, coloured: bool) -> tuple[str, str]:
    """Return one cell and its style."""
    if math.isnan(value):
        return " " * cell, ""
    if value == 0:
        return "·".ljust(cell), "dim"
    share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 1.0
    if coloured:
        return " " * cell, f"on rgb({','.join(map(str, _colour(share)))})"
    return _SHADES[min(len(_SHADES) - 1, int(share * len(_SHADES)))] * cell, ""


def _colour(share: float) -> tuple[int, ...]:
    at = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    first = min(int(at), len(_COLOURS) - 2)
    pairs = zip(_COLOURS[first], _COLOURS[first + 1], strict=True)
    return tuple(round(one + (other - one) * (at - first)) for one, other in pairs)


def _scale(heat_map: HeatMap, coloured: bool) -> list[tuple[str, str]]:
    low, high = heat_map.range
    steps = [_block((i + 0.5) / 12, 0.0, 1.0, 1, coloured) for i in range(12)]
    return [(f"{_number(low, heat_map)} ", "dim"), *steps, (f" {_number(high, heat_map)}", "dim")]


def _number(value: float, heat_map: HeatMap) -> str:
    return f"{100 * value:.3g} %" if heat_map.as_share else f"{value:.3g}"


def _ruler(columns: int, cell: int, together: int) -> str:
    """Return the numbers of the layers below the columns, where they have room."""
    line = ""
    step = 1
    while step * cell < len(str(columns * together)) + 1:
        step += 1 if step < 2 else step if step < 4 else 1
    for column in range(0, columns, step):
        line = line.ljust(column * cell) + str(column * together)
    return line


def save_png(maps: Sequence[HeatMap], path: str, *, title: str) -> None:
    """Draw maps below each other into a file.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ResourceError("--png needs matplotlib", where=path, right="pip install 'cuvee[demo]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    widest = max((len(row) for one in maps for row in one.values), default=1)
    heights = [len(one.rows) for one in maps]
    figure, axes = pyplot.subplots(
        len(maps),
        1,
        figsize=(max(6.0, 2 + 0.28 * widest), sum(1.2 + 0.26 * height for height in heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for one, (axis,) in zip(maps, axes, strict=True):
        low, high = one.range
        shown = [[value if value != 0 else math.nan for value in row] for row in one.values]
        image = axis.imshow(shown, vmin=low, vmax=high, aspect="auto", cmap="viridis", interpolation="nearest")
        axis.set_yticks(range(len(one.rows)), [safe(row) for row in one.rows], fontsize=8)
        axis.set_title(safe(one.title), loc="left", fontsize=9)
        axis.set_xlabel("layer", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        figure.colorbar(image, ax=axis, pad=0.01)
    figure.suptitle(safe(title), fontsize=10)
    figure.savefig(path, format="png", dpi=144)
    pyplot.close(figure)
