"""Sorting over models: the network against `torch.sort`, the middle against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cuvee
from cuvee.errors import MethodError
from cuvee.methods.pieces.sort import median, middle, sorted_over_models, trimmed


@pytest.mark.parametrize("count", range(1, 18))
def test_a_network_sorts_any_number_of_models(count):
    values = torch.randn(count, 50, generator=torch.Generator().manual_seed(count)).round(decimals=1)
    right = values.sort(0).values
    before = values.clone()
    assert torch.equal(torch.stack(sorted_over_models(values)), right)
    for place in range(count):
        assert torch.equal(sorted_over_models(values, [place])[place], right[place])
    assert torch.equal(values, before)


@pytest.mark.parametrize("count", range(3, 10))
def test_the_middle_is_what_numpy_says(count):
    values = np.random.default_rng(count).standard_normal((count, 40))
    given = torch.from_numpy(values)
    assert np.allclose(median(given), np.median(values, axis=0))
    assert np.array_equal(median(given, lower=True), np.sort(values, axis=0)[(count - 1) // 2])
    for f in range((count + 1) // 2):
        assert np.allclose(trimmed(given, f), np.sort(values, axis=0)[f : count - f].mean(0))
    for kept in range((count + 1) // 2, count + 1):
        nearest = np.argsort(abs(values - values.mean(0)), axis=0)[:kept]
        right = np.take_along_axis(values, nearest, axis=0).mean(0)
        assert np.allclose(middle(given, 0, count, nearest=kept), right)


def test_of_two_values_as_far_away_the_smaller_is_taken():
    assert middle(torch.tensor([[-1.0], [0.0], [1.0]]), 1, 2, nearest=2).tolist() == [-0.5]


def test_a_network_exchanges_zeros_of_both_signs_and_hides_no_nan():
    nan = float("nan")
    values = torch.tensor([[0.0, nan, 1.0], [-0.0, 1.0, nan], [1.0, 0.0, 2.0]])
    found = torch.stack(sorted_over_models(values))
    assert found[:, 0].signbit().tolist().count(True) == 1
    assert found[1, 1:].isnan().all()


@pytest.mark.parametrize("method", ["coordinate_median", "trimmed_mean", "mean_around_median", "phocas"])
def test_a_minority_of_bad_models_changes_nothing_beyond_the_others(method):
    good = [{"w": torch.randn(30, generator=torch.Generator().manual_seed(n))} for n in range(4)]
    low, high = (f(torch.stack([one["w"] for one in good]), 0) for f in (torch.amin, torch.amax))
    for bad in (-1e30, 1e30):
        merged = cuvee.merge_tensors(method, [*good, {"w": torch.full((30,), bad)}])["w"]
        assert bool(((merged >= low) & (merged <= high)).all())


def test_more_bad_models_than_a_method_can_bear_are_refused():
    models = [{"w": torch.zeros(2)}] * 4
    with pytest.raises(MethodError, match="f is 2, which takes 5 models, and there are 4") as caught:
        cuvee.merge_tensors("trimmed_mean", models, f=2)
    assert caught.value.right == "f: 1"
