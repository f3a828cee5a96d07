"""Measures of merges: numbers worked out by hand."""

import math

import numpy as np
import pytest

from cuvee.errors import ResourceError
from cuvee.evaluation.measures import change, interval, nested_subsets, normalised, paired_interval
from cuvee.evaluation.suites import SUITES, Score, suite


def score(*items, higher=True):
    return Score(np.array(items, np.float32), higher)


def test_a_score_is_the_mean_of_its_items():
    assert (score(1, 0, 1, 1).value, score(1, 0, 1, 1).n) == (0.75, 4)


def test_normalised_is_merged_over_expert_and_the_other_way_round_where_less_is_better():
    experts = {"a": score(0.8), "b": score(2.0, higher=False)}
    merged = {"a": score(0.4), "b": score(4.0, higher=False), "more": score(9.0)}
    assert normalised(merged, experts) == pytest.approx((0.5 + 0.5) / 2)
    assert normalised(experts, experts) == 1


def test_an_expert_that_scores_nothing_makes_no_number():
    assert math.isnan(normalised({"a": score(0.5)}, {"a": score(0.0)}))
    assert normalised({"a": score(0.5), "b": score(0.2)}, {"a": score(0.0), "b": score(0.4)}) == pytest.approx(0.5)


def test_forgetting_is_a_negative_change_in_either_direction():
    base = {"a": score(0.75), "b": score(2.0, higher=False)}
    worse = {"a": score(0.5), "b": score(2.5, higher=False)}
    assert change(worse, base) == pytest.approx(-(0.25 + 0.5) / 2)
    assert change(base, base) == 0


def test_the_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)  # deviation 1, two degrees of freedom
    assert math.isnan(interval([5.0]).half)


def test_models_are_compared_item_by_item():
    found = paired_interval(score(1, 1, 0, 1), score(0, 1, 0, 1))
    assert found.mean == 0.25
    assert paired_interval(score(3, 2, higher=False), score(2, 1, higher=False)).high == -1
    with pytest.raises(ValueError, match="2 items against 1"):
        paired_interval(score(1, 2), score(1))


def test_subsets_are_nested():
    assert nested_subsets("abcd") == [["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_says_its_name_and_its_data(name):
    found = suite(name)
    assert found.name == name
    assert found.packages or found.data
    assert all(one.licence and one.holds for one in found.packages)
    assert set(found.quick_packages) <= set(found.packages)
    assert found.sources(quick=True)


def test_an_unknown_suite_suggests_the_nearest():
    with pytest.raises(ResourceError) as caught:
        suite("lmm")
    assert "'lm'" in caught.value.right
