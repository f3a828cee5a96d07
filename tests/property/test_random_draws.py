"""Random draws: one stream of words for each (seed, tensor, model), the same on every device, from any start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

import cuvee
from cuvee.tensors.draws import bernoulli, draw_key, philox_words

CPU = torch.device("cpu")
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
keys = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


def numpy_words(key, stop):
    return np.random.Philox(key=np.array(key, np.uint64)).random_raw(stop)


@settings(max_examples=60, deadline=None)
@given(keys, st.integers(0, 300), st.integers(0, 300))
@pytest.mark.parametrize("device", DEVICES)
def test_words_computed_on_a_device_are_numpys(device, key, first, length):
    words = philox_words(key, first, first + length, torch.device(device)).cpu().numpy().view(np.uint64)
    np.testing.assert_array_equal(words, numpy_words(key, first + length)[first:])


@pytest.mark.parametrize("device", DEVICES)
def test_words_far_along_the_stream_are_numpys(device):
    first = 2**33 + 3
    words = philox_words((5, 6), first, first + 9, torch.device(device)).cpu().numpy().view(np.uint64)
    generator = np.random.Philox(key=np.array([5, 6], np.uint64), counter=[first // 4, 0, 0, 0])
    np.testing.assert_array_equal(words, generator.random_raw(12)[3:12])


@settings(max_examples=60, deadline=None)
@given(keys, st.integers(0, 400), st.integers(0, 400), st.floats(0, 1))
def test_a_draw_does_not_depend_on_where_the_block_starts(key, start, length, probability):
    whole = bernoulli(key, 0, start + length, probability, CPU)
    assert torch.equal(bernoulli(key, start, start + length, probability, CPU), whole[start:])


@settings(max_examples=40, deadline=None)
@given(keys, st.integers(0, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_each_word_gives_two_draws_low_half_first(key, start, length, limit):
    halves = numpy_words(key, start + length)[:, None] >> np.array([0, 32], np.uint64) & np.uint64(2**32 - 1)
    expected = halves.reshape(-1)[start : start + length] < limit
    np.testing.assert_array_equal(bernoulli(key, start, start + length, limit / 2**32, CPU).numpy(), expected)


@settings(max_examples=30, deadline=None)
@given(keys, st.integers(0, 200), st.integers(1, 200), st.integers(0, 2**32))
def test_a_probability_for_each_element_draws_as_one_for_all(key, start, length, seed):
    generator = torch.Generator().manual_seed(seed)
    each = torch.rand(length, generator=generator, dtype=torch.float64)
    each[: length // 3] = 0.25
    drawn = bernoulli(key, start, start + length, each, CPU)
    for i in range(length):
        assert drawn[i] == bernoulli(key, start + i, start + i + 1, float(each[i]), CPU)[0]


@settings(max_examples=30, deadline=None)
@given(keys, st.integers(0, 200), st.integers(0, 200), st.floats(0, 1))
@pytest.mark.parametrize("device", DEVICES[1:])
def test_draws_are_the_same_on_every_device(device, key, start, length, probability):
    on_device = bernoulli(key, start, start + length, probability, torch.device(device)).cpu()
    assert torch.equal(on_device, bernoulli(key, start, start + length, probability, CPU))
    each = torch.linspace(0, 1, length, dtype=torch.float64)
    on_device = bernoulli(key, start, start + length, each.to(device), torch.device(device)).cpu()
    assert torch.equal(on_device, bernoulli(key, start, start + length, each, CPU))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_draws_are_certain(probability):
    assert bernoulli((1, 2), 3, 1003, probability, CPU).eq(bool(probability)).all()


@pytest.mark.parametrize("probability", [1e-5, 0.1, 0.5, 0.9, 0.999])
def test_the_share_kept_is_the_probability_within_four_sigma(probability):
    n = 1_000_000
    sigma = math.sqrt(n * probability * (1 - probability))
    for model in range(3):
        kept = int(bernoulli(draw_key(0, "w", model), 0, n, probability, CPU).sum())
        assert abs(kept - n * probability) < 4 * sigma
        ranged = torch.full((n,), probability, dtype=torch.float64)
        assert abs(int(bernoulli(draw_key(1, "w", model), 0, n, ranged, CPU).sum()) - n * probability) < 4 * sigma


def test_keys_tell_seed_tensor_model_and_purpose_apart():
    made = [
        draw_key(seed, tensor, model, purpose)
        for seed in (0, 1, 11)
        for tensor in ("a", "b", "a1")
        for model in (0, 1, 11)
        for purpose in (0, 1)
    ]
    assert len(set(made)) == len(made)


def test_draws_of_two_models_are_independent():
    n = 1_000_000
    both = bernoulli(draw_key(0, "w", 0), 0, n, 0.5, CPU) & bernoulli(draw_key(0, "w", 1), 0, n, 0.5, CPU)
    assert abs(int(both.sum()) - n / 4) < 4 * math.sqrt(n * 3 / 16)


def test_keys_and_draws_are_pinned():
    """Published recipes name seeds: their streams must never change."""
    key = draw_key(0, "model.norm.weight", 1)
    digest = blake3(b"0\0model.norm.weight\0" + b"1").digest()
    assert key == (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    assert bernoulli((1, 2), 0, 16, 0.5, CPU).int().tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("offset", "density"), [(0, 0.2), (1, 0.5), (2, 0.9)])
def test_dare_is_unbiased_over_seeds(offset, density):
    tau = torch.linspace(-1, 1, 41)
    base = {"w": torch.zeros(41)}
    seeds = 400
    total = torch.zeros(41)
    for seed in range(seeds):
        total += cuvee.merge_tensors(
            "dare_linear", [{"w": tau}], base, density=density, rescale="expected", seed=1000 * offset + seed
        )["w"]
    sigma = tau.abs() * math.sqrt((1 - density) / density / seeds)
    assert ((total / seeds - tau).abs() <= 5 * sigma + 1e-6).all()
