"""The page of a run: well-formed, without a network, its numbers those of the files, hostile names harmless."""

import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from cuvee.evaluation.results import Bench, Choice, Cost, Outcome, SeedResult
from cuvee.evaluation.suites import Score, Task
from cuvee.evaluation.variants import Variant
from cuvee.reports.bench_files import as_csv, as_json, as_markdown
from cuvee.reports.bench_page import bench_page
from cuvee.reports.bench_rows import bench_rows
from cuvee.reports.charts import Axis, Point, cloud, pareto_front
from cuvee.reports.markup import element, text
from cuvee.reports.numbers import in_bytes, two_digits

TASKS = {
    "a": Task("a", "<b>A</b> & co", "expert", "accuracy", expert="a"),
    "b": Task("b", "B", "expert", "accuracy", expert="b"),
    "g": Task("g", "general", "base", "accuracy"),
}


def scores(**values):
    return {name: Score(np.array([value, value], np.float32)) for name, value in values.items()}


def outcome(method, a, b, **more):
    choice = Choice([(0.3, 0.5), (1.0, 0.7)], 1.0, scores(a=a, b=b, g=0.5))
    return Outcome(
        Variant(method),
        default=scores(a=a / 2, b=b / 2, g=0.5),
        tuned=choice,
        by_size={2: (a + b) / 2},
        by_share={0.25: 0.6, 1.0: (a + b) / 2},
        cost=Cost(0.02, 1_500_000),
        **more,
    )


def shifted(share):
    """Half as good at severity 5 as at 1."""
    return {1: {"noise": scores(a=share, b=share)}, 5: {"noise": scores(a=0.5 * share**2, b=0.5 * share**2)}}


@pytest.fixture
def bench():
    outcomes = {
        "task_arithmetic": outcome("task_arithmetic", 0.5, 0.5, shifted=shifted(0.5)),
        "ties": outcome("ties", 0.75, 0.5, shifted=shifted(0.25)),
        "slerp": Outcome(Variant("slerp"), "two models </main><script>alert(1)</script>"),
    }
    seed = SeedResult(
        0, "k", TASKS, scores(a=0.25, b=0.25, g=0.5), {"a": scores(a=1.0, b=0.2, g=0.4), "b": scores(a=0.2, b=1.0, g=0.4)},
        {"base": shifted(0.125), "a": shifted(1.0), "b": shifted(1.0)}, outcomes,
    )  # fmt: skip
    return Bench("s", "a <title>", True, None, [1, 5], "cuvee bench run s", [seed])


class Nesting(HTMLParser):
    """Sees whether every element that is opened is closed."""

    EMPTY = {"meta", "br", "wbr"}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(bench):
    made = bench_page(bench)
    parser = Nesting()
    parser.feed(made)
    assert parser.open == []
    assert "script" not in parser.seen
    assert "link" not in parser.seen
    assert "img" not in parser.seen
    assert not re.search(r"https?://|@import|url\(|\ssrc=|\shref=", made)
    assert "default-src 'none'" in html.unescape(made)
    assert "--paper" in made


def test_names_are_shown_and_not_obeyed(bench):
    made = bench_page(bench)
    assert "<b>A</b> & co" not in made
    assert "&lt;b&gt;A&lt;/b&gt; &amp; co" in made
    assert "<script>" not in made
    assert element("i", text("<"), title='"<') == '<i title="&quot;&lt;">&lt;</i>'


def test_the_page_and_the_rows_rank_alike(bench):
    assert [row.label for row in bench_rows(bench)] == ["base", "a", "b", "ties", "task_arithmetic", "slerp"]
    made = bench_page(bench)
    ranking = made[made.index('class="ranking"') : made.index("<h2>Tasks")]
    shown = re.findall(r'class="label (\w+)">([^<]+)', ranking)
    assert shown[0] == ("merge", "ties")
    assert ("base", "base") in shown
    assert "0.625" in ranking  # (0.75 + 0.5) / 2
    assert not any(name == "slerp" for _, name in shown)


def test_every_severity_has_its_column_and_its_point(bench):
    made, table, (head, *rows) = bench_page(bench), as_markdown(bench), as_csv(bench).splitlines()
    for severity, value, base in ((1, 0.25, 0.125), (5, 0.0625, 0.125**2)):
        assert f"shifted {severity}" in table
        assert f"<th>shifted {severity}</th>" in made
        column = head.split(",").index(f"shifted {severity}")
        (ties,) = (row.split(",") for row in rows if row.startswith("merge,ties"))
        assert float(ties[column]) == pytest.approx(value)
        assert [float(row.split(",")[column]) for row in rows[:3]] == pytest.approx([base, 1, 1])
    chart = made[made.index("<h2>Shifted data") : made.index("<h2>Cost")]
    assert "severity of the shift" in chart
    assert "ties" in chart
    assert chart.count('class="line base"') == 1 and chart.count('class="line expert"') == 2
    assert "the base" in chart and "each expert" in chart
    assert json.loads(as_json(bench))["severities"] == [1, 5]
    none = replace(bench, seeds=[replace(bench.seeds[0], shifted={})])
    assert none.shifts == []
    assert "not shifted" in bench_page(none)


def test_light_and_dark_have_the_same_colours_defined():
    from importlib.resources import files

    style = (files("cuvee.reports") / "page.css").read_text()
    light, dark = style.split("prefers-color-scheme: dark", 1)
    dark = dark.split("\n* {", 1)[0]
    names = set(re.findall(r"(--[a-z0-9]+):", light))
    assert names == set(re.findall(r"(--[a-z0-9]+):", dark))
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", style)) - {"--v"} <= names


def oklab(linear):
    """Björn Ottosson's OKLab of linear sRGB."""
    to_cones = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                         [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
    to_lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                       [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
    return to_lab @ np.cbrt(to_cones @ linear), lambda lab: np.linalg.solve(to_cones, np.linalg.solve(to_lab, lab) ** 3)


def linear(colour):
    c = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["good", "bad", "map"])
def test_numbers_can_be_read_on_the_strongest_cell(theme, kind):
    from importlib.resources import files

    style = (files("cuvee.reports") / "page.css").read_text().split("prefers-color-scheme: dark", 1)[theme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", style))
    share = float(re.search(r"--strongest: (\.\d+)%", style)[1])  # of 100 %
    (colour, back), (cell, _) = oklab(linear(colours[kind])), oklab(linear(colours["cell"]))
    luminances = [float(np.array([0.2126, 0.7152, 0.0722]) @ one) for one in
                  (linear(colours["ink"]), back(share * colour + (1 - share) * cell))]  # fmt: skip
    assert (max(luminances) + 0.05) / (min(luminances) + 0.05) > 4.5  # WCAG AA


def test_a_run_in_which_all_fail_has_a_page(bench):
    for label in bench.seeds[0].outcomes:
        bench.seeds[0].outcomes[label] = Outcome(Variant(label), "no")
    assert "Not merged" in bench_page(bench)


def test_the_front_has_no_point_that_another_beats():
    points = [Point("a", 1, 0.5), Point("b", 2, 0.4), Point("c", 3, 0.9), Point("d", 3, 0.8), Point("e", 0.5, 0.1)]
    assert [one.label for one in pareto_front(points)] == ["e", "a", "c"]


def test_names_in_a_cloud_do_not_cover_each_other():
    y = Axis.around("score", [0.1, 0.9])
    x = Axis.of_factors("seconds", [0.1, 10.0])
    front = [Point("poor", 0.1, 0.1), Point("nearly_the_best", 9.5, 0.899), Point("the_best", 9.9, 0.9)]
    drawn = cloud([*front, Point("other", 1.0, 0.5)], x, y, front=front)
    named = re.findall(r'class="name[^>]*>([^<]+)', drawn)
    assert named == ["the_best", "poor"]


def test_an_axis_puts_its_ends_at_zero_and_one():
    axis = Axis.around("x", [0.2, 0.9])
    assert axis.low < 0.2 < 0.9 < axis.high
    assert axis.share(axis.low) == 0
    assert axis.share(axis.high) == 1
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    log = Axis.of_factors("s", [0.01, 1.0])
    assert log.share(0.1) == pytest.approx(
        (math.log(0.1) - math.log(log.low)) / (math.log(log.high) - math.log(log.low))
    )
    assert Axis.around("x", [1.0]).low < 1.0 < Axis.around("x", [1.0]).high


def test_numbers_are_short_and_say_when_unknown():
    assert [two_digits(one) for one in (0.876, -0.2, 0.00314, 0.0, None, math.nan)] == [
        "0.88", "−0.20", "0.0031", "0.00", "–", "–",
    ]  # fmt: skip
    assert in_bytes(1_500_000) == "1.5 MB"
    assert in_bytes(None) == "–"
