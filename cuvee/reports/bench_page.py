"""The page of a run of a suite: ranking, tasks, coefficients, numbers of experts, cost, and maps of the experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import cuvee
from cuvee.engine.comparing import Comparison
from cuvee.evaluation.measures import interval
from cuvee.evaluation.results import Bench, Outcome
from cuvee.evaluation.suites.suite import Task
from cuvee.reports.bench_files import DEFINITIONS
from cuvee.reports.bench_rows import Row, bench_rows, shifted_by
from cuvee.reports.charts import (
    COLOURS,
    Axis,
    Line,
    Point,
    cloud,
    interval_bar,
    legend,
    lines,
    pareto_front,
)
from cuvee.reports.expert_maps import HeatMap, expert_maps
from cuvee.reports.markup import element, joined, name, text
from cuvee.reports.numbers import chosen, in_bytes, plus_minus, signed, three_digits, two_digits
from cuvee.reports.page import page, section

__all__ = ["bench_page"]


def bench_page(bench: Bench) -> str:
    """Return the page as HTML."""
    rows = bench_rows(bench)
    merges = [row for row in rows if row.kind == "merge" and row.summary]
    colours = {row.label: place for place, row in enumerate(merges[:COLOURS])}
    return page(
        f"{bench.suite}: merges",
        _head(bench, merges),
        section("Ranking", _ranking_words(bench), _ranking(rows)),
        section("Tasks", _TASK_WORDS, _task_map(bench, rows)),
        element(
            "div",
            section("Coefficient", _COEFFICIENT_WORDS, *_coefficient_chart(bench, colours)),
            section("Number of experts", _SIZE_WORDS, *_size_chart(bench, colours)),
            section("Training of the experts", _SHARE_WORDS, *_share_chart(bench, colours)),
            section("Shifted data", _SHIFT_WORDS, *_shift_chart(bench, rows, colours)),
            section("Cost", _COST_WORDS, *_cost_chart(merges, colours)),
            class_="pairs",
        ),
        _experts(bench.seeds[0].comparison),
        section("All numbers", "", _table(rows, bench.shifts), _meanings()),
        _failures(rows),
    )


_TASK_WORDS = (
    "Scores on the test split at the tuned coefficient. Green: the share of the expert's gain over the base that is kept; "
    "brown: worse than the base. Bold: an expert on its own task."
)
_COEFFICIENT_WORDS = (
    "Normalised score on the validation split at nine coefficients; the large dot is the one chosen. Grey: others."
)
_SIZE_WORDS = "Normalised score of merges of the first 2, 3, … experts, the coefficient chosen anew for each number."
_SHARE_WORDS = "Normalised score of merges of experts that had a share of their training, against those same experts."
_SHIFT_WORDS = (
    "Normalised score against how far the data are shifted, the mean over all kinds of shift; at severity 0 they are as they "
    "are. 1 is as good as each expert on the same shifted data of its own task; broken lines are single models on all tasks."
)
_COST_WORDS = (
    "Normalised score against processor time of a merge. The broken line joins those that none beats at their cost."
)


def _ranking_words(bench: Bench) -> str:
    over = f"{len(bench.seeds)} seeds (Student's t)" if len(bench.seeds) > 1 else "the items of one seed"
    return (
        "Normalised score on the test split: 1 is as good as every expert on its own task. Filled: at the coefficient "
        f"chosen on the validation split; hollow: at the default. Lines are 95 % intervals over {over}."
    )


# --- The head ---


def _head(bench: Bench, merges: Sequence[Row]) -> str:
    kinds = [f"{len(bench.seeds[0].names(kind))} {words}" for kind, words in _KINDS if bench.seeds[0].names(kind)]
    facts = [
        (merges[0].label if merges else "none", "best merge"),
        (three_digits(merges[0].normalised) if merges else "–", "its normalised score"),
        (str(len(bench.variants)), "variants of methods"),
        (str(len(bench.seeds[0].experts)), "experts"),
        (str(len(bench.seeds)), "seeds" if len(bench.seeds) > 1 else "seed"),
    ]
    scale = "the quick form: small models, trained for a minute" if bench.quick else "the full form"
    items = f"the first {bench.limit} items of each task" if bench.limit else "all items"
    return joined(
        (
            element("h1", text(f"Merges of {bench.title}")),
            element("p", text(f"Suite {bench.suite}, {scale}; tasks: {', '.join(kinds)}; {items}."), class_="soft"),
            element("p", element("code", text(bench.command)), text(f"  ·  Cuvée {cuvee.__version__}"), class_="soft"),
            element("ul", *(element("li", element("b", text(one)), text(name)) for one, name in facts), class_="facts"),
        )
    )


_KINDS = (("expert", "of the experts"), ("base", "of the base"), ("unseen", "of nobody"))


# --- Ranking ---


def _ranking(rows: Sequence[Row]) -> str:
    shown = sorted((row for row in rows if row.summary), key=lambda row: -row.normalised)
    ends = [end for row in shown for end in _ends(row)]
    axis = Axis.around("normalised score", [*ends, *(row.default.mean for row in shown if row.default)])
    ticks = (element("span", text(axis.label(one)), style=f"left:{100 * axis.share(one):.1f}%") for one in axis.ticks)
    scale = joined(element("div", *inside, class_="scale") for inside in ((), ticks, ()))
    return element("div", scale, *(_ranked(row, axis) for row in shown), class_="ranking")


def _ends(row: Row) -> list[float]:
    assert row.summary is not None
    one = row.summary.normalised
    return [end for end in (one.low, one.mean, one.high) if math.isfinite(end)]


def _ranked(row: Row, axis: Axis) -> str:
    assert row.summary is not None
    one = row.summary.normalised
    half = element("span", text(f" ± {one.half:.3f}"), class_="half soft") if math.isfinite(one.half) else ""
    bar = interval_bar(one.low, one.mean, one.high, axis, before=row.default.mean if row.default else None)
    return joined(
        (
            element("div", name(row.name), class_=f"label {row.kind}"),
            element("div", bar, class_=row.kind),
            element("div", element("span", text(three_digits(one.mean)), half), class_="number"),
        )
    )


# --- Tasks ---


def _task_map(bench: Bench, rows: Sequence[Row]) -> str:
    tasks = [task for kind, _ in _KINDS for task in bench.tasks.values() if task.kind == kind]
    titles = [
        element("th", text(task.title), title=f"{task.metric}: {dict(_KINDS)[task.kind]}", class_="task")
        for task in tasks
    ]
    base = rows[0].tasks
    experts = {row.label: row.tasks for row in rows if row.kind == "expert"}
    own = {task.name: experts[task.expert][task.name] for task in tasks if task.expert}
    body = [
        element("tr", element("th", name(row.name), scope="row"), *(_task_cell(row, task, base, own) for task in tasks))
        for row in rows
        if row.summary
    ]
    head = element("tr", element("th"), *titles)
    return element(
        "div", element("table", element("thead", head), element("tbody", *body), class_="map"), class_="wide"
    )


def _task_cell(row: Row, task: Task, base: Mapping[str, float], own: Mapping[str, float]) -> str:
    value = row.tasks[task.name]
    gain = (value - base[task.name]) * (1 if task.higher_is_better else -1)
    # Where there is no expert, a fifth of the base's score colours a cell fully.
    whole = abs(own[task.name] - base[task.name]) if task.name in own else 0.2 * abs(base[task.name])
    share = min(abs(gain) / whole, 1.0) if whole else 0.0
    kind = "good" if gain >= 0 else "bad"
    is_own = row.kind == "expert" and task.expert == row.label
    return _cell(two_digits(value), share, f"{kind} own" if is_own else kind)


def _cell(words: str, share: float, kind: str, *, title: str | None = None) -> str:
    return element("td", text(words), class_=kind, style=f"--v:{100 * share:.0f}", title=title)


# --- Charts ---

Curve = Sequence[tuple[float, float]]


def _coefficient_chart(bench: Bench, colours: Mapping[str, int]) -> list[str]:
    def marked(label: str) -> float | None:
        best = {one.tuned.best for one in bench.outcomes(label) if one.tuned}
        return best.pop() if len(best) == 1 else None

    tuned = [one for one in bench.variants if bench.outcomes(one)[0].variant.coefficient == "scaling"]
    found = _curves(bench, tuned, lambda one: one.tuned.curve if one.tuned else (), colours, marked)
    return _chart(found, "scaling", ticks=[0.1, 0.3, 1.0, 3.0], log=True)


def _size_chart(bench: Bench, colours: Mapping[str, int]) -> list[str]:
    found = _curves(bench, bench.variants, lambda one: list(one.by_size.items()), colours)
    sizes = sorted({at for line in found for at, _ in line.points})
    same = f" (judged by the tasks of the first {sizes[0]:g})" if sizes else ""
    return _chart(found, f"number of experts{same}", ticks=sizes)


def _share_chart(bench: Bench, colours: Mapping[str, int]) -> list[str]:
    found = _curves(bench, bench.variants, lambda one: list(one.by_share.items()), colours)
    shares = sorted({at for line in found for at, _ in line.points})
    return _chart(found, "share of the training", ticks=shares)


def _shift_chart(bench: Bench, rows: Sequence[Row], colours: Mapping[str, int]) -> list[str]:
    if not bench.shifts:
        return [element("p", text("The suite's data are not shifted."), class_="soft")]
    found = []
    for row in rows:
        if row.summary is None:
            continue
        points = [(0.0, row.normalised), *((float(at), one.mean) for at, one in row.summary.shifted.items())]
        is_merge = row.kind == "merge"
        colour = colours.get(row.label) if is_merge else None
        found.append(Line(row.name, points, colour, reference="" if is_merge else row.kind))
    return _chart(found, "severity of the shift", ticks=[0.0, *map(float, bench.shifts)])


def _curves(
    bench: Bench,
    labels: Sequence[str],
    curve: Callable[[Outcome], Curve],
    colours: Mapping[str, int],
    marked: Callable[[str], float | None] = lambda label: None,
) -> list[Line]:
    """Return lines of means over seeds."""
    found = []
    for label in labels:
        curves = [dict(curve(one)) for one in bench.outcomes(label)]
        known = [at for at in curves[0] if all(at in one for one in curves)]
        points = [(at, interval([one[at] for one in curves]).mean) for at in sorted(known)]
        if points:
            found.append(Line(label, points, colours.get(label), marked(label)))
    return found


def _chart(found: Sequence[Line], title: str, *, ticks: Sequence[float], log: bool = False) -> list[str]:
    if len(ticks) < 2 or not found:
        return [element("p", text("Nothing to show: there is one point only."), class_="soft")]
    least = min(ticks) if log else min(ticks) - 0.05 * (max(ticks) - min(ticks))
    most = max(ticks) if log else max(ticks) + 0.05 * (max(ticks) - min(ticks))
    x = Axis(title, least, most, ticks, log)
    coloured = [value for line in found if line.colour is not None for _, value in line.points]
    # The worst settings of the worst methods must not press the others together.
    best = max(coloured, default=1.0)
    shown = [value for line in found for _, value in line.points if value > best - 0.6]
    return [lines(found, x, Axis.around("normalised score", shown)), legend(found)]


def _cost_chart(merges: Sequence[Row], colours: Mapping[str, int]) -> list[str]:
    points = [
        Point(row.label, row.seconds, row.normalised, colours.get(row.label))
        for row in merges
        if row.seconds is not None
    ]
    if not points:
        return [element("p", text("No merge was measured."), class_="soft")]
    x = Axis.of_factors("seconds of processor time", [one.x for one in points], lambda value: f"{value:.2g}")
    y = Axis.around("normalised score", [one.y for one in points])
    return [cloud(points, x, y, front=pareto_front(points)), legend(points)]


# --- The experts ---


def _experts(found: Comparison | None) -> str:
    if found is None:
        return ""
    total = found.total()
    matrices = [
        _matrix("Cosine of task vectors", found.experts, total.cosines.tolist()),
        _matrix("Agreement of signs", found.experts, total.agreement.tolist()),
    ]
    maps = [_layer_map(one) for one in expert_maps(found)]
    words = (
        f"How alike the task vectors are (seed 0), and in which layers and roles they are long or in conflict: at "
        f"{100 * total.interference:.0f} % of the elements that several experts have changed, two of them differ in sign."
    )
    return section("The experts", words, element("div", *matrices, *maps, class_="pairs"))


def _matrix(title: str, names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    head = element("tr", element("th"), *(element("th", text(name), class_="task") for name in names))
    body = (
        element(
            "tr",
            element("th", text(name), scope="row"),
            *(_matrix_cell(value, is_same=j == k) for j, value in enumerate(row)),
        )
        for k, (name, row) in enumerate(zip(names, values, strict=True))
    )
    table = element("table", element("thead", head), element("tbody", *body), class_="map")
    return element("div", element("p", element("b", text(title))), element("div", table, class_="wide"))


def _matrix_cell(value: float, *, is_same: bool) -> str:
    if is_same or not math.isfinite(value):
        return element("td", text("·"))
    return _cell(f"{value:.2f}".replace("-", "−"), min(abs(value), 1.0), "level" if value >= 0 else "bad")


def _layer_map(one: HeatMap) -> str:
    low, high = one.range
    layers = max(map(len, one.values), default=0)
    head = element("tr", element("th"), *(element("th", text(layer)) for layer in range(layers)))
    body = (
        element("tr", element("th", text(name), scope="row"), *(_layer_cell(value, low, high, one) for value in row))
        for name, row in zip(one.rows, one.values, strict=True)
    )
    table = element("table", element("thead", head), element("tbody", *body), class_="map layers")
    return element(
        "div", element("p", element("b", text(f"{one.title} by layer"))), element("div", table, class_="wide")
    )


def _layer_cell(value: float, low: float, high: float, one: HeatMap) -> str:
    if not math.isfinite(value):
        return element("td")
    words = f"{100 * value:.0f} %" if one.as_share else f"{value:.2g}"
    return _cell(words, (value - low) / (high - low) if high > low else 1.0, "level")


# --- All numbers ---


def _table(rows: Sequence[Row], shifts: Sequence[int]) -> str:
    columns = (
        "",
        "normalised",
        "default",
        "chosen",
        "recovered",
        "forgetting",
        "unseen",
        *map(shifted_by, shifts),
        "seconds",
        "memory",
    )
    head = element("tr", *(element("th", text(column)) for column in columns))
    body = (
        element("tr", element("th", name(row.name), scope="row"), *_numbers(row, shifts)) for row in rows if row.summary
    )
    table = element("table", element("thead", head), element("tbody", *body), class_="numbers")
    return element("div", table, class_="wide")


def _numbers(row: Row, shifts: Sequence[int]) -> list[str]:
    assert row.summary is not None
    found = row.summary
    words = (
        plus_minus(found.normalised),
        three_digits(row.default.mean if row.default else None),
        chosen(row),
        two_digits(found.recovered.mean),
        signed(found.forgetting),
        signed(found.unseen),
        *(three_digits(found.shifted[one].mean if one in found.shifted else None) for one in shifts),
        two_digits(row.seconds),
        in_bytes(row.peak_bytes),
    )
    return [element("td", text(one)) for one in words]


def _meanings() -> str:
    return element("dl", *(element("dt", text(name)) + element("dd", text(words)) for name, words in DEFINITIONS))


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.failure]
    if not failed:
        return ""
    told = (element("dt", element("code", text(row.label))) + element("dd", text(row.failure)) for row in failed)
    return section("Not merged", "Methods that do not take these experts, and why.", element("dl", *told))
