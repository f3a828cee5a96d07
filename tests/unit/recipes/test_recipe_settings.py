"""Settings mean for each tensor what they mean in mergekit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.methods.registry import Bound, Parameter
from cuvee.recipes import MISSING, evaluate
from cuvee.recipes.findings import Findings
from cuvee.recipes.settings import check_setting, settle

NUMBER = Parameter("density", True, (float,), (), Bound(0.0, 1.0), 1.0)
SWITCH = Parameter("normalize", False, (bool,), (), Bound(), True)
COUNT = Parameter("max_iter", False, (int,), (), Bound(1), 10)
WORD = Parameter("tie_sign", False, (), ("plus", "majority"), Bound(), "plus")
MIXED = Parameter("rescale", False, (bool,), ("l1", "none"), Bound(), True)

gradients = st.lists(st.floats(0, 1), min_size=1, max_size=8)
places = st.floats(0, 1)


def mergekit(setting: Any, name: str, t: float) -> Any:
    """mergekit's evaluate_setting, written out from its description."""
    if isinstance(setting, list) and all(isinstance(e, int | float) for e in setting):
        scaled = t * (len(setting) - 1)
        i0 = int(scaled)
        i1 = min(len(setting) - 1, i0 + 1)
        return (1 - (scaled - i0)) * setting[i0] + (scaled - i0) * setting[i1]
    if isinstance(setting, list):
        for entry in setting:
            if entry.get("filter") in (None, "*") or entry["filter"] in name:
                return mergekit(entry["value"], name, t)
        return MISSING
    return setting


def test_one_value_holds_for_every_tensor() -> None:
    assert evaluate(0.3, "anything", 0.7) == 0.3
    assert evaluate("plus", "anything", None) == "plus"


@pytest.mark.parametrize(
    ("gradient", "position", "value"),
    [
        ([1, 0.7, 0.1], 0.0, 1),
        ([1, 0.7, 0.1], 0.5, 0.7),
        ([1, 0.7, 0.1], 1.0, 0.1),
        ([0, 1], 0.25, 0.25),
        ([1, 0.7, 0.1], None, 1),  # embeddings, final norm and head take the first entry
        ([0.4], 0.9, 0.4),
        ([True, False], 0.25, 0.75),  # true and false are 1 and 0
        (["plus", "majority"], 0.99, "plus"),  # words cannot be interpolated: steps
        (["plus", "majority"], 1.0, "majority"),
    ],
)
def test_a_gradient_is_linear_between_its_entries(gradient: list[Any], position: float | None, value: Any) -> None:
    assert evaluate(gradient, "x", position) == value


@given(gradients)
def test_a_gradient_begins_and_ends_with_its_ends(gradient: list[float]) -> None:
    assert evaluate(gradient, "x", 0.0) == evaluate(gradient, "x", None) == gradient[0]
    assert evaluate(gradient, "x", 1.0) == gradient[-1]


@given(gradients, places, places)
def test_a_rising_gradient_rises(gradient: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert evaluate(sorted(gradient), "x", low) <= evaluate(sorted(gradient), "x", high) + 1e-15


@given(gradients, st.integers(0, 6), places)
def test_a_gradient_is_a_straight_line_between_neighbours(gradient: list[float], i: int, f: float) -> None:
    n = len(gradient) - 1
    if i < n:
        between = evaluate(gradient, "x", (i + f) / n)
        assert math.isclose(between, gradient[i] + f * (gradient[i + 1] - gradient[i]), abs_tol=1e-9)


@given(gradients, places)
def test_a_gradient_stays_within_its_entries(gradient: list[float], position: float) -> None:
    assert min(gradient) <= evaluate(gradient, "x", position) <= max(gradient)


@given(st.floats(-5, 5), st.integers(1, 6), places)
def test_a_gradient_of_equal_entries_is_that_value(value: float, count: int, position: float) -> None:
    assert evaluate([value] * count, "x", position) == value


entries = st.builds(
    lambda filter, value: {"value": value} if filter is None else {"filter": filter, "value": value},
    st.sampled_from([None, "*", "mlp", "self_attn", "norm", "layers.1"]),
    st.one_of(st.floats(-2, 2), st.lists(st.floats(-2, 2), min_size=1, max_size=5)),
)


@given(
    st.one_of(st.floats(-2, 2), gradients, st.lists(entries, min_size=1, max_size=5)),
    st.sampled_from(["model.layers.1.mlp.up.weight", "model.layers.10.self_attn.q.weight", "norm.weight", "lm_head"]),
    places,
)
def test_every_setting_means_what_it_means_in_mergekit(setting: Any, name: str, position: float) -> None:
    got, wanted = evaluate(setting, name, position), mergekit(setting, name, position)
    assert got is wanted or math.isclose(got, wanted, rel_tol=1e-12, abs_tol=1e-15)


def test_the_first_entry_whose_filter_is_in_the_name_counts() -> None:
    setting = [{"filter": "mlp", "value": [0, 1]}, {"filter": "up", "value": 5}, {"value": 0.5}]
    assert evaluate(setting, "layers.0.mlp.up", 0.5) == 0.5
    assert evaluate(setting, "layers.0.pre_mlp_norm", 1.0) == 1  # a filter is any part of the name
    assert evaluate(setting, "layers.0.attn.up", None) == 5
    assert evaluate(setting, "lm_head", None) == 0.5


def test_where_no_filter_is_in_the_name_nothing_is_said() -> None:
    assert evaluate([{"filter": "mlp", "value": 1}], "norm", 0.0) is MISSING
    assert evaluate({"filter": "mlp", "value": 1}, "mlp", 0.0) == 1


def test_a_filter_may_be_a_glob_pattern() -> None:
    setting = [{"filter": "*.layers.?.mlp.*", "value": 1}, {"filter": "layers.[12]", "value": 2}, {"value": 3}]
    assert evaluate(setting, "model.layers.1.mlp.up", 0.0) == 1
    assert evaluate(setting, "model.layers.11.mlp.up", 0.0) == 3
    assert evaluate(setting, "layers.2", 0.0) == 2


def check(parameter: Parameter, setting: Any, *, from_yaml: bool = True) -> tuple[Any, list[str]]:
    findings = Findings({})
    checked = check_setting(parameter, setting, ("parameters", parameter.name), findings, from_yaml=from_yaml)
    return checked, [f"{error.where}: {error.found}" for error in findings.errors]


@pytest.mark.parametrize(
    ("parameter", "setting", "checked"),
    [
        (NUMBER, 1, 1.0),
        (NUMBER, True, 1.0),
        (NUMBER, [1, 0, True], [1.0, 0.0, 1.0]),
        (NUMBER, "0.5", 0.5),  # mergekit takes quoted numbers
        (NUMBER, {"filter": "mlp", "value": [0, 1]}, [{"filter": "mlp", "value": [0.0, 1.0]}]),
        (SWITCH, 1, True),
        (SWITCH, [1, 0], [True, False]),
        (COUNT, 5.0, 5),
        (WORD, ["plus", "majority"], ["plus", "majority"]),
        (MIXED, "l1", "l1"),
        (MIXED, False, False),
    ],
)
def test_values_are_converted_to_the_type_of_the_parameter(parameter: Parameter, setting: Any, checked: Any) -> None:
    assert check(parameter, setting) == (checked, [])


@pytest.mark.parametrize(
    ("parameter", "setting", "found"),
    [
        (NUMBER, [], "parameters.density: density is an empty list"),
        (NUMBER, 1.5, "parameters.density: density is 1.5"),
        (NUMBER, [0.5, 1.5], "parameters.density.1: density is 1.5"),
        (NUMBER, None, "parameters.density: density has no value"),
        (NUMBER, float("nan"), "parameters.density: density is nan"),
        (NUMBER, "many", "parameters.density: density is 'many'"),
        (NUMBER, "010", "parameters.density: density is '010'"),
        (NUMBER, [0.5, {"value": 1}], "parameters.density: density mixes filter entries and plain values"),
        (NUMBER, [[0.5]], "parameters.density.0: density is [0.5]"),
        (NUMBER, [{"filter": "mlp"}], "parameters.density.0: an entry of density has no value"),
        (
            NUMBER,
            [{"filtre": "mlp", "value": 1}],
            "parameters.density.0.filtre: unknown key 'filtre' in an entry of density",
        ),
        (NUMBER, [{"filter": 5, "value": 1}], "parameters.density.0.filter: the filter is 5"),
        (NUMBER, [{"value": [{"value": 1}]}], "parameters.density.0.value: filter entries inside a filter entry"),
        (NUMBER, [{"value": [0.5, 2]}], "parameters.density.0.value.1: density is 2"),
        (NUMBER, [{"value": []}], "parameters.density.0.value: density is an empty list"),
        (SWITCH, 0.5, "parameters.normalize: normalize is 0.5"),
        (COUNT, 2.5, "parameters.max_iter: max_iter is 2.5"),
        (COUNT, 0, "parameters.max_iter: max_iter is 0"),
        (WORD, ["plus", "minus"], "parameters.tie_sign.1: tie_sign is 'minus'"),
    ],
)
def test_each_value_inside_a_setting_is_checked_beforehand(parameter: Parameter, setting: Any, found: str) -> None:
    assert check(parameter, setting) == (MISSING, [found])


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert check(NUMBER, np.float32(0.5), from_yaml=False) == (0.5, [])
    assert check(COUNT, np.int64(3), from_yaml=False) == (3, [])


def test_quoted_numbers_are_text_in_python() -> None:
    assert check(NUMBER, "0.5", from_yaml=False)[1]


def test_entries_after_one_for_all_tensors_are_pointed_out() -> None:
    findings = Findings({})
    check_setting(NUMBER, [{"value": 1}, {"filter": "mlp", "value": 0}], ("density",), findings, from_yaml=True)
    assert findings.warnings == (
        "density.0: the entries of density after this one have no effect: it applies to every tensor",
    )


@pytest.mark.parametrize(
    ("parameter", "value", "settled"),
    [
        (SWITCH, 0.5, True),
        (SWITCH, 0.0, False),
        (COUNT, 2.5, 3),
        (COUNT, 2.4, 2),
        (NUMBER, 0.3, 0.3),
        (WORD, "plus", "plus"),
    ],
)
def test_what_arises_between_entries_becomes_the_type_of_the_parameter(
    parameter: Parameter, value: Any, settled: Any
) -> None:
    assert settle(parameter, value) == settled
    assert type(settle(parameter, value)) is type(settled)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_number_that_is_not_finite_is_told_that_it_must_be(value):
    findings = Findings({})
    steps = Parameter("time", False, (float,), (), Bound(0.0), 1.0)
    assert check_setting(steps, value, ("parameters", "time"), findings, from_yaml=True) is MISSING
    assert findings.errors[0].right == "time: a number in [0, inf), and finite"
    assert str(Bound()) == "(-inf, inf)" and str(Bound(0.0, 1.0)) == "[0, 1]"
