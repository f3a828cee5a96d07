"""Heat maps in a terminal."""

from __future__ import annotations

import math

from cuvee.cli.heat_map import draw
from cuvee.reports.expert_maps import HeatMap


def plain(heat_map: HeatMap, width: int = 40) -> list[str]:
    return [line.plain for line in draw(heat_map, width=width, coloured=False)]


def test_shades_rise_from_the_smallest_to_the_largest_number():
    title, row, ruler = plain(HeatMap("size", ["mlp"], [[1.0, 2.0, 3.0, 4.0]]))
    assert row == "mlp  ░░░▒▒▒▓▓▓███"
    assert ruler == "     0  1  2  3"
    assert title.startswith("size  1 ")
    assert title.endswith(" 4")


def test_zero_is_a_dot_and_nothing_is_empty():
    _, row, _ = plain(HeatMap("size", ["mlp"], [[0.0, math.nan, 1.0, 4.0]]))
    assert row == "mlp  ·     ░░░███"


def test_numbers_that_are_close_look_alike():
    _, row, _ = plain(HeatMap("size", ["mlp"], [[0.99, 1.0]]))
    assert row == "mlp  ██████"


def test_layers_that_do_not_fit_are_averaged():
    lines = plain(HeatMap("size", ["mlp"], [[1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0] * 5]), width=25)
    assert all(len(line) <= 25 for line in lines[1:])
    assert lines[1].startswith("mlp  ░░██")


def test_colour_takes_the_place_of_shades():
    lines = draw(HeatMap("size", ["mlp"], [[1.0, 4.0]]), width=40, coloured=True)
    assert lines[1].plain == "mlp        "
    assert {str(span.style) for span in lines[1].spans} == {"on rgb(68,1,84)", "on rgb(253,231,37)"}


def test_a_map_of_zeros_and_an_empty_one_are_drawn():
    assert plain(HeatMap("size", ["mlp"], [[0.0, 0.0]]))[1] == "mlp  ·  ·  "
    assert plain(HeatMap("size", [], []))[0].startswith("size")
