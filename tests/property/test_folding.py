"""Folding: the partials of a measurement give the same total in whatever order the blocks come."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.methods.calls import Call, Pending, Place, activated
from cuvee.methods.folding import Accumulator
from cuvee.methods.measuring import measured
from cuvee.methods.reductions import Gram, Sums
from cuvee.tensors.layout import Layout


class Mean:
    """A reduction that is `concat`: one entry a leaf."""

    stacked = False

    def fold(self, state):
        return "concat"

    def measure(self, values, axis, state):
        return values.double().sum(axis).numpy()

    def next(self, folded, state, numel):
        raise NotImplementedError


def partials(reduction, values, layout, elements, over="all"):
    """Return what each block adds, by asking as a method would."""
    misses = []  # of a wide scope, or else a block that is the whole tensor would be answered at once
    lead = values.shape[:-1]
    for start, stop in layout.blocks(elements):
        call = Call(Place("t", layout, start, stop))
        block = values[..., start:stop].reshape(*lead, *layout.block_shape(start, stop))
        with activated(call):
            try:
                measured(reduction, block, over=over, scope="model" if over == "all" else "tensor")
            except Pending:
                pass
        misses.extend(call.misses.values())
    return misses


def fold(reduction, misses, order):
    accumulator = Accumulator(reduction.fold(None))
    for number in order:
        accumulator.add(misses[number])
    return accumulator


shapes = st.sampled_from([(300_000,), (5, 70_000), (40, 5000), (7, 300, 100), (3, 200, 400)])


@settings(max_examples=25, deadline=None)
@given(shapes, st.randoms(use_true_random=False), st.sampled_from([1 << 16, 1 << 17, 1 << 20]), st.integers(0, 99))
def test_sums_do_not_depend_on_blocks_or_their_order(shape, random, elements, seed):
    layout = Layout(shape)
    values = torch.randn(layout.numel, generator=torch.Generator().manual_seed(seed))
    for reduction in (Sums("abs"), Sums("square"), Sums("nonzero"), Sums("sign")):
        reference = partials(reduction, values, layout, 1 << 30)
        whole = fold(reduction, reference, [0]).folded("t")
        misses = partials(reduction, values, layout, elements)
        order = list(range(len(misses)))
        random.shuffle(order)
        accumulator = fold(reduction, misses, order)
        assert accumulator.numel == layout.numel
        assert np.asarray(accumulator.folded("t")).tobytes() == np.asarray(whole).tobytes()


@settings(max_examples=15, deadline=None)
@given(shapes, st.randoms(use_true_random=False), st.sampled_from([1 << 16, 1 << 17, 1 << 20]), st.integers(0, 99))
def test_gram_matrices_do_not_depend_on_blocks_or_their_order(shape, random, elements, seed):
    layout = Layout(shape)
    values = torch.randn(3, layout.numel, generator=torch.Generator().manual_seed(seed))
    whole = fold(Gram(), partials(Gram(), values, layout, 1 << 30), [0]).folded("t")
    misses = partials(Gram(), values, layout, elements)
    order = list(range(len(misses)))
    random.shuffle(order)
    assert fold(Gram(), misses, order).folded("t").tobytes() == whole.tobytes()
    exact = values.double() @ values.double().T
    np.testing.assert_allclose(whole, exact, rtol=1e-12, atol=1e-15 * layout.numel)  # ⟨x, y⟩ may cancel


@settings(max_examples=15, deadline=None)
@given(shapes.filter(lambda s: len(s) > 1), st.randoms(use_true_random=False), st.integers(0, 99))
def test_columns_are_whole_whatever_the_leaves(shape, random, seed):
    layout = Layout(shape)
    values = torch.randn(2, layout.numel, generator=torch.Generator().manual_seed(seed))
    misses = partials(Gram(), values, layout, 1 << 16, over="column")
    order = list(range(len(misses)))
    random.shuffle(order)
    found = fold(Gram(), misses, order).folded("t")
    columns = values.double().reshape(2, shape[0], -1)
    expected = torch.einsum("irc,jrc->ijc", columns, columns)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)))
def test_concatenation_is_in_the_order_of_leaves(order):
    layout = Layout((6 * 65536,))
    values = torch.arange(6).repeat_interleave(65536).float()
    misses = partials(Mean(), values, layout, 1)
    ((name, folded),) = fold(Mean(), misses, order).folded("t")
    assert name == "t"
    np.testing.assert_array_equal(folded, np.arange(6) * 65536.0)
