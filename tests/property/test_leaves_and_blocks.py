"""Leaves and blocks: they tile a tensor exactly, blocks are runs of leaves, and leaves depend on the shape alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.methods.calls import Place
from cuvee.tensors.digests import TensorDigest, model_digest
from cuvee.tensors.dtypes import DTYPES
from cuvee.tensors.layout import LEAF_ELEMENTS, Layout

sizes = st.one_of(st.integers(0, 5), st.integers(0, 300), st.sampled_from([1, 65535, 65536, 65537, 131072, 200_000]))
shapes = st.lists(sizes, max_size=4).map(tuple).filter(lambda shape: math.prod(shape) <= 10**8)
block_sizes = st.integers(1, 1 << 26)


@given(shapes, block_sizes)
def test_blocks_tile_the_tensor_in_order(shape, elements):
    layout = Layout(shape)
    blocks = layout.blocks(elements)
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])][: len(blocks)]
    assert (blocks[-1][1] if blocks else 0) == layout.numel == math.prod(shape)
    assert all(start < stop for start, stop in blocks)


@given(shapes, block_sizes)
def test_leaves_are_the_same_whatever_the_blocks(shape, elements):
    layout = Layout(shape)
    seen = []
    for start, stop in layout.blocks(elements):
        for index, first, last in Place("t", layout, start, stop).leaves():
            seen.append((index, start + first, start + last))
    starts = range(0, layout.numel, layout.leaf)
    assert seen == [(i, at, min(at + layout.leaf, layout.numel)) for i, at in enumerate(starts)]
    assert len(seen) == layout.leaves


@given(shapes)
def test_a_leaf_is_whole_slices_or_whole_rows_or_a_run_of_one_dimension(shape):
    leaf = Layout(shape).leaf
    if len(shape) < 2:
        assert leaf == LEAF_ELEMENTS
        return
    slice_size, row = math.prod(shape[1:]), shape[-1]
    if 0 < slice_size <= LEAF_ELEMENTS:
        assert leaf % slice_size == 0 and leaf <= LEAF_ELEMENTS < leaf + slice_size
    elif slice_size:
        assert leaf % row == 0 and (leaf == row or leaf <= LEAF_ELEMENTS < leaf + row)


@given(shapes, block_sizes)
def test_a_blocks_shape_holds_its_elements_and_rows_stay_whole(shape, elements):
    layout = Layout(shape)
    for start, stop in layout.blocks(elements):
        block_shape = layout.block_shape(start, stop)
        assert math.prod(block_shape) == stop - start
        if len(shape) > 1:
            assert block_shape[-1] == shape[-1]
            assert start % shape[-1] == 0


@pytest.mark.parametrize(
    ("shape", "leaf"),
    [
        ((), 65536),
        ((7,), 65536),
        ((3, 5), 65535),  # 13107 rows of 5
        ((10, 40000), 40000),
        ((10, 70000), 70000),  # a row is never cut
        ((4, 3, 3, 3), 65529),  # 2427 slices of 27
        ((2, 300, 300), 65400),  # a slice is larger: 218 rows of 300
    ],
)
def test_leaves_written_out(shape, leaf):
    assert Layout(shape).leaf == leaf


def raw(values):
    return values.contiguous().view(torch.uint8).numpy()


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([(0,), (70000,), (3, 40000), (2, 70000), (5, 6, 7), (), (65537, 2)]),
    st.permutations(range(6)),
    st.integers(1, 200_000),
)
def test_a_digest_does_not_depend_on_blocks_or_their_order(shape, order, elements):
    values = torch.arange(math.prod(shape), dtype=torch.float32) * 0.37
    layout = Layout(shape)
    whole, pieces = TensorDigest(DTYPES["F32"], layout), TensorDigest(DTYPES["F32"], layout)
    whole.add(0, raw(values))
    blocks = layout.blocks(elements)
    for number in sorted(range(len(blocks)), key=lambda n: order[n % 6]):
        start, stop = blocks[number]
        pieces.add(start, raw(values[start:stop]))
    assert whole.hexdigest() == pieces.hexdigest()


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([(9, 30000), (2, 70000, 2), (40, 7, 11), (70000,)]),
    st.lists(st.floats(0, 1), max_size=6),
    st.randoms(),
)
def test_a_digest_does_not_depend_on_where_what_is_added_begins_and_ends(shape, cuts, random):
    values = torch.arange(math.prod(shape), dtype=torch.float32) * 0.37
    whole, pieces = (TensorDigest(DTYPES["F32"], Layout(shape)) for _ in range(2))
    whole.add(0, raw(values))
    ends = sorted({0, len(values), *(int(cut * len(values)) for cut in cuts)})
    runs = list(itertools.pairwise(ends))
    random.shuffle(runs)
    for start, stop in runs:
        pieces.add(start, raw(values[start:stop]))
    assert whole.hexdigest() == pieces.hexdigest() and whole.marks() == pieces.marks()


def test_a_digest_tells_dtype_shape_and_every_byte_apart():
    def digest(values, shape, dtype):
        found = TensorDigest(DTYPES[dtype], Layout(shape))
        found.add(0, raw(values.reshape(-1)))
        return found.hexdigest()

    zeros = torch.zeros(70000)
    changed = zeros.clone()
    changed[69999] = -0.0
    found = [
        digest(zeros, (70000,), "F32"),
        digest(changed, (70000,), "F32"),
        digest(zeros, (7, 10000), "F32"),
        digest(zeros.view(torch.int32), (70000,), "I32"),
        digest(zeros[:69999], (69999,), "F32"),
    ]
    assert len(set(found)) == len(found)


@given(st.dictionaries(st.text(max_size=5), st.text("0123456789abcdef", min_size=64, max_size=64)), st.randoms())
def test_a_models_digest_does_not_depend_on_the_order_of_its_tensors(tensors, random):
    names = list(tensors)
    random.shuffle(names)
    assert model_digest(tensors) == model_digest({name: tensors[name] for name in names})
    if tensors:
        less = dict(list(tensors.items())[1:])
        assert model_digest(less) != model_digest(tensors)
