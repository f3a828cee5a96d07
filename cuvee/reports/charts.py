"""Charts as SVG: lines over a scale, dots with intervals, a cloud of points with its front. Colours come from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cuvee.reports.markup import element, joined, text

__all__ = ["COLOURS", "Axis", "Line", "Point", "cloud", "interval_bar", "legend", "lines", "pareto_front"]

COLOURS = 8
"""How many lines a page tells apart; the others are grey."""
_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 40
_NAME_WIDTH, _NAME_HEIGHT = 7.5, 14.0
"""Of a letter of a wide font, and of a line."""


@dataclass(frozen=True)
class Axis:
    """A scale.

    Attributes:
        title: what it says.
        low, high: its ends, low < high.
        ticks: where it is marked.
        log: whether equal steps are equal factors; then low > 0.
        labels: how ticks are written; None: as numbers.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False
    labels: Callable[[float], str] | None = None

    def share(self, value: float) -> float:
        """Return where a value lies between the ends, in [0, 1]; what lies beyond is put at the end."""
        low, high, at = map(math.log, (self.low, self.high, max(value, self.low))) if self.log else (
            self.low, self.high, value)  # fmt: skip
        return min(max((at - low) / (high - low), 0.0), 1.0)

    def label(self, value: float) -> str:
        """Return a tick as it is written."""
        return self.labels(value) if self.labels else f"{value:g}".replace("-", "−")

    @classmethod
    def around(cls, title: str, values: Sequence[float]) -> Axis:
        """Return a linear axis around values, with some five round ticks."""
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        room = (high - low or abs(high) or 1.0) * 0.06
        low, high = low - room, high + room
        step = _round_step((high - low) / 5)
        first = math.ceil(low / step)
        ticks = [round(place * step, 10) for place in range(first, math.floor(high / step) + 1)]
        return cls(title, low, high, ticks)

    @classmethod
    def of_factors(cls, title: str, values: Sequence[float], labels: Callable[[float], str] | None = None) -> Axis:
        """Return a logarithmic axis around positive values, with powers of ten."""
        known = [value for value in values if value > 0 and math.isfinite(value)] or [0.1, 1.0]
        low, high = min(known) / 1.3, max(known) * 1.3
        powers = [10.0**place for place in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        ticks = [one for one in powers if low <= one <= high]
        if len(ticks) < 2:
            ticks = [low * 1.3, high / 1.3] if high / low > 2 else [math.sqrt(low * high)]
        return cls(title, low, high, ticks, log=True, labels=labels)


def _round_step(least: float) -> float:
    """Return 1, 2 or 5 times a power of ten, not less than `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= least * 0.999)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: its name.
        points: (x, y) in order of x.
        colour: 0, 1, …, below `COLOURS`; None: grey.
        marked: an x whose point is drawn larger, or None.
        reference: "base" or "expert": drawn broken, to hold the others against.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int | None = None
    marked: float | None = None
    reference: str = ""


@dataclass(frozen=True)
class Point:
    """A point of a cloud: `label` is its name, `colour` as of `Line`."""

    label: str
    x: float
    y: float
    colour: int | None = None


def lines(chart_lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """Return lines over a scale, drawn in order; grey ones lie below."""
    below_first = sorted(chart_lines, key=lambda line: line.colour is not None)
    return _frame(x, y, joined(_line(line, x, y) for line in below_first))


def cloud(points: Sequence[Point], x: Axis, y: Axis, *, front: Sequence[Point] = ()) -> str:
    """Return points, and a staircase through those that none is better than."""
    steps = []
    for place, point in enumerate(front):
        if place:
            steps.append((_x(point.x, x), _y(front[place - 1].y, y)))
        steps.append((_x(point.x, x), _y(point.y, y)))
    stairs = element("polyline", points=_path(steps), class_="front") if len(front) > 1 else ""
    greys_first = sorted(points, key=lambda one: one.colour is not None)
    dots = joined(_dot(one.label, one.x, one.y, x, y, one.colour, 5.0) for one in greys_first)
    return _frame(x, y, stairs + dots + _names(front, x, y))


def _names(front: Sequence[Point], x: Axis, y: Axis) -> str:
    """Return the names of the points of a front, the best first; one that has no room beside the earlier ones is left out."""
    taken: list[tuple[float, float, float]] = []
    written = []
    for one in reversed(front):
        width, height = _NAME_WIDTH * len(one.label), _y(one.y, y) + 4
        is_right = x.share(one.x) < 0.6
        at = _x(one.x, x) + (8 if is_right else -8)
        left = at if is_right else at - width
        if any(
            left < end and begin < left + width and abs(height - other) < _NAME_HEIGHT for begin, end, other in taken
        ):
            continue
        taken.append((left, left + width, height))
        written.append(element("text", text(one.label), x=at, y=height, class_="name" if is_right else "name end"))
    return joined(written)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points to which none is at once at most as costly (x) and better (y), in the order of cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def interval_bar(low: float, mean: float, high: float, axis: Axis, *, before: float | None = None) -> str:
    """Return a dot with its interval, as wide as there is room; a hollow dot where it was `before`."""

    def at(value: float) -> str:
        return f"{100 * axis.share(value):.2f}%"

    parts = [element("line", x1=at(tick), x2=at(tick), y1="0", y2="100%", class_="grid") for tick in axis.ticks]
    if math.isfinite(low) and math.isfinite(high):
        parts.append(element("line", x1=at(low), x2=at(high), y1="50%", y2="50%", class_="interval"))
    if before is not None and math.isfinite(before):
        parts.append(element("line", x1=at(before), x2=at(mean), y1="50%", y2="50%", class_="gain"))
        parts.append(element("circle", cx=at(before), cy="50%", r="4", class_="before"))
    parts.append(element("circle", cx=at(mean), cy="50%", r="5", class_="mean"))
    return element("svg", *parts, class_="bar", aria_hidden="true")


def legend(chart_lines: Sequence[Line | Point]) -> str:
    """Return the names of the coloured ones, and what kinds of broken lines there are."""
    named = [(f"c{one.colour}", one.label) for one in chart_lines if one.colour is not None]
    kinds = dict.fromkeys(one.reference for one in chart_lines if isinstance(one, Line) and one.reference)
    named += [(kind, "each expert" if kind == "expert" else f"the {kind}") for kind in kinds]
    keys = (element("span", element("i", class_=f"key {key}"), text(label), class_="entry") for key, label in named)
    return element("p", *keys, class_="legend")


def _frame(x: Axis, y: Axis, inside: str) -> str:
    parts = []
    for tick in y.ticks:
        at = _y(tick, y)
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
        parts.append(element("text", text(y.label(tick)), x=_LEFT - 6, y=at + 4, class_="tick end"))
    for tick in x.ticks:
        at = _x(tick, x)
        parts.append(element("line", x1=at, x2=at, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid"))
        parts.append(element("text", text(x.label(tick)), x=at, y=_HEIGHT - _BOTTOM + 16, class_="tick middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(element("text", text(x.title), x=middle, y=_HEIGHT - 6, class_="title middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f"rotate(-90 14 {middle:g})"
    parts.append(element("text", text(y.title), x=14, y=middle, transform=turned, class_="title middle"))
    label = f"{y.title} against {x.title}"
    return element(
        "svg", *parts, inside, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", class_="chart", role="img", aria_label=label
    )


def _line(line: Line, x: Axis, y: Axis) -> str:
    places = [(_x(at, x), _y(value, y)) for at, value in line.points if math.isfinite(value)]
    colour = line.reference or ("grey" if line.colour is None else f"c{line.colour}")
    title = element("title", text(line.label))
    path = element("polyline", title, points=_path(places), class_=f"line {colour}")
    if line.colour is None:
        alone = [(at, value) for at, value in line.points if math.isfinite(value)] if len(places) == 1 else []
        return path + joined(_dot(line.label, at, value, x, y, None, 2.5) for at, value in alone)
    dots = (
        _dot(line.label, at, value, x, y, line.colour, 5.0 if at == line.marked else 2.5)
        for at, value in line.points
        if math.isfinite(value)
    )
    return path + joined(dots)


def _dot(label: str, at: float, value: float, x: Axis, y: Axis, colour: int | None, radius: float) -> str:
    said = element("title", text(f"{label}: {value:.3f} at {x.label(at) if x.log else f'{at:g}'}"))
    kind = "grey" if colour is None else f"c{colour}"
    return element("circle", said, cx=_x(at, x), cy=_y(value, y), r=radius, class_=f"dot {kind}")


def _x(value: float, axis: Axis) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, axis: Axis) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _BOTTOM - _TOP)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
