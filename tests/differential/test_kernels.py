"""Compiled kernels against their definitions in PyTorch and NumPy: no bit differs, whatever the values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_methods_against_reference import CASES, SMALL, make

import cuvee
import cuvee.tensors.layout
from cuvee.methods.measuring import Call, Place, activated, measured
from cuvee.methods.papers.sce import variance
from cuvee.methods.pieces.drop import drop_by_rank
from cuvee.methods.pieces.trim import among_largest, keep_among
from cuvee.methods.pieces.vote import weigh_consensus
from cuvee.methods.reductions import Gram, Ranks, Sums
from cuvee.methods.registry import DELTAS, methods
from cuvee.tensors import kernels
from cuvee.tensors.layout import Layout
from cuvee.tensors.order import digit_counts, ordered_keys

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not compiled")


def compiled_and_defined(compute):
    """Return what `compute` gives with kernels and without."""
    found = []
    for answer in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "available", lambda answer=answer: answer)
            found.append(compute())
    return found


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.shape == other.shape and one.dtype == other.dtype
    np.testing.assert_array_equal(
        one.contiguous().view(torch.int32).numpy(), other.contiguous().view(torch.int32).numpy()
    )


numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 3.0, 1e-45, -1e-40, 1e-30]),
    st.floats(-(2.0**100), 2.0**100, width=32),
)


@dataclass(frozen=True)
class Exactly:
    """A count, whatever n is."""

    k: int

    def __call__(self, n: int) -> tuple[int, ...]:
        return (self.k,)


@st.composite
def deltas(draw):
    models, size = draw(st.integers(1, 5)), draw(st.one_of(st.integers(0, 9), st.sampled_from([511, 512, 513, 1100])))
    few = draw(st.lists(numbers, min_size=1, max_size=12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    chosen = torch.randint(0, len(few), (models, size), generator=generator)
    return torch.tensor(few, dtype=torch.float32)[chosen]


weights = st.lists(st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.3]), st.floats(-3, 3)), min_size=5, max_size=5)


@settings(max_examples=150, deadline=None)
@given(deltas(), weights, weights, st.booleans(), st.sampled_from([0.0, 1e-6, 0.5]))
def test_a_consensus_is_its_definition(values, votes, weight, normalize, floor):
    count = len(values)
    compute = lambda: weigh_consensus(values, votes[:count], weight[:count], normalize=normalize, floor=floor)  # noqa: E731
    one, other = compiled_and_defined(compute)
    # −0 and 0 are the same sum; which of the two it is depends on how a zero was added
    assert_same_bits(one + 0.0, other + 0.0)


@settings(max_examples=100, deadline=None)
@given(deltas())
def test_a_variance_is_its_definition(values):
    assert_same_bits(*compiled_and_defined(lambda: variance(values)))


@settings(max_examples=100, deadline=None)
@given(deltas(), st.booleans(), st.data())
def test_digit_counts_are_their_definition(values, magnitude, data):
    flat = values.reshape(-1)
    highs = sorted({int(key) >> 16 for key in ordered_keys(flat, magnitude)}) or [0]
    prefixes = data.draw(st.lists(st.sampled_from([*highs, 7]), min_size=1, max_size=3, unique=True))
    for prefix, digit in (([None], 1), (prefixes, 0)):
        found = compiled_and_defined(lambda p=prefix, d=digit: digit_counts(flat, magnitude, p, d))
        np.testing.assert_array_equal(*found)
        keys = ordered_keys(flat, magnitude).astype(np.int64)
        for row, high in zip(found[0], prefix, strict=True):
            chosen = keys if high is None else keys[keys >> 16 == high]
            np.testing.assert_array_equal(row, np.bincount((chosen >> 16 * digit) & 0xFFFF, minlength=1 << 16))


@settings(max_examples=100, deadline=None)
@given(deltas())
def test_sums_and_gram_matrices_are_their_definition(values):
    for reduction, given_values in ((Sums("abs"), values[0]), (Sums("square"), values[0]), (Gram(), values)):
        one, other = compiled_and_defined(lambda r=reduction, v=given_values: r.measure(v, -1, None))
        np.testing.assert_array_equal(one.view(np.int64), other.view(np.int64))
        wide = np.atleast_2d(given_values.numpy().astype(np.float64))
        exact = np.abs(wide).sum() if reduction == Sums("abs") else wide @ wide.T
        scale = np.abs(wide).sum() if reduction == Sums("abs") else np.abs(wide) @ np.abs(wide).T
        assert (np.abs(one - exact) <= 1e-12 * scale).all()


@settings(max_examples=100, deadline=None)
@given(deltas(), st.integers(0, 1100), st.integers(1, 3), st.booleans())
def test_a_trim_is_its_definition(values, k, blocks, resolve):
    flat = values.reshape(-1)
    layout = Layout((flat.numel(),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuvee.tensors.layout, "LEAF_ELEMENTS", 16)

        def compute():
            kept = []
            count = min(k, flat.numel())
            with activated(Call(Place("w", layout, 0, flat.numel()))):
                (ranked,) = measured(Ranks(Exactly(count), resolve_ties=resolve), flat) if flat.numel() else ()
            for start, stop in layout.blocks(16 * blocks):
                place = Place("w", layout, start, stop)
                kept.append(keep_among(flat[start:stop], ranked, place))
                other = Place("a", layout, start, stop), Place("x", layout, start, stop)
                kept.extend(keep_among(flat[start:stop], ranked, place) for place in other)
                if not kernels.available():
                    mask = among_largest(flat[start:stop].abs(), ranked, place)
                    assert_same_bits(kept[-3] + 0.0, torch.where(mask, flat[start:stop], 0) + 0.0)
            return torch.cat(kept) if kept else flat

        if flat.numel():
            one, other = compiled_and_defined(compute)
            assert_same_bits(one + 0.0, other + 0.0)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 50), (3, 1), (4, 17), (2, 300), (700,)]),
    st.lists(numbers, min_size=1, max_size=6),
    st.integers(0, 999),
    st.sampled_from([(0.5, 0.15), (0.5, 0.499999), (0.9, 0.05), (0.3, 1e-9), (0.2, 0.0)]),
)
def test_a_mask_by_rank_is_its_definition(shape, few, seed, probabilities):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(few), shape, generator=generator)
    delta = torch.tensor(few, dtype=torch.float32)[chosen]
    layout = Layout(shape)

    def compute():
        with activated(Call(Place("w", layout, 0, layout.numel), seed=seed)):
            return drop_by_rank(delta, *probabilities, rescale="none")

    one, other = compiled_and_defined(compute)
    assert_same_bits(one + 0.0, other + 0.0)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "equal magnitudes"])
@pytest.mark.parametrize("label", CASES)
def test_no_kernel_changes_a_bit_of_a_merge(label, ties):
    method, arguments, counts = CASES[label]
    count = 3 if 3 in counts else counts[-1]
    base, models = make(count, {**SMALL, "tall": (300, 500)}, ties=ties)
    base = base if methods()[method].on is DELTAS else None
    one, other = compiled_and_defined(
        lambda: cuvee.merge_tensors(method, models, base, block_elements=1 << 16, **arguments(count))
    )
    for name in one:
        assert_same_bits(one[name], other[name])
