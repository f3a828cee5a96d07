"""Gathered rows: any cut of a combined matrix is the cut of the dense one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.checkpoints.gathered import (
    CombinedRows,
    NormalRows,
    ProjectedRows,
    RowMean,
    RowTable,
    plain_table,
    read_rows,
)
from cuvee.checkpoints.sources import MemoryTensor, Scratch

WIDTH = 3


@st.composite
def combined(draw):
    """Return a combined source and the matrix that it stands for."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    matrices = [torch.randn(draw(st.integers(1, 6)), WIDTH).to(dtype) for _ in range(draw(st.integers(1, 3)))]
    count = draw(st.integers(1, 9))
    targets, sources, rows, coefficients = [], [], [], []
    dense = torch.zeros(count, WIDTH, dtype=torch.float64)
    for target in range(count):
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
            source = draw(st.integers(0, len(matrices) - 1))
            row = draw(st.integers(0, len(matrices[source]) - 1))
            coefficient = draw(st.sampled_from([1.0, 1.0, 0.5, -2.0]))
            dense[target] += coefficient * matrices[source][row].double()
            targets.append(target), sources.append(source), rows.append(row), coefficients.append(coefficient)
    arrays = (
        np.array(targets, np.int64),
        np.array(sources, np.int64),
        np.array(rows, np.int64),
        np.array(coefficients),
    )
    held = [MemoryTensor(matrix) for matrix in matrices]
    return CombinedRows(held[0], held, RowTable.of(count, *arrays)), dense


@settings(max_examples=150, deadline=None)
@given(combined(), st.data())
def test_any_run_of_elements_is_that_of_the_dense_matrix(pair, data):
    source, dense = pair
    assert source.shape == tuple(dense.shape)
    start = data.draw(st.integers(0, dense.numel()))
    stop = data.draw(st.integers(start, dense.numel()))
    got = source.read(start, stop, Scratch(), "slot")
    assert got.dtype == getattr(torch, source.dtype.torch)
    assert torch.equal(got, dense.reshape(-1)[start:stop].to(got.dtype))


def test_rows_that_are_only_taken_keep_their_bits():
    matrix = torch.tensor([[1.0, -0.0, float("nan")], [2.0, 3.0, 4.0]], dtype=torch.bfloat16)
    held = MemoryTensor(matrix)
    taken = CombinedRows(held, [held], plain_table(np.array([1, 0, 1])))
    assert taken.dtype.name == "BF16"
    got = taken.read(0, 9, Scratch(), 0).view(torch.int16)
    assert torch.equal(got, matrix[[1, 0, 1]].reshape(-1).view(torch.int16))


def test_a_bias_is_gathered_like_a_matrix():
    held = MemoryTensor(torch.tensor([1.0, 2.0, 3.0]))
    taken = CombinedRows(held, [held], plain_table(np.array([2, 0])))
    assert taken.shape == (2,) and taken.read(0, 2, Scratch(), 0).tolist() == [3.0, 1.0]


def test_a_mean_of_rows_is_computed_once():
    held = MemoryTensor(torch.tensor([[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]))
    mean = RowMean(held, of=np.array([0, 1]))
    assert mean.read(0, 2, Scratch(), 0).tolist() == [2.0, 4.0]
    assert mean.read(1, 2, Scratch(), 0).tolist() == [4.0]


def test_normal_rows_do_not_depend_on_how_they_are_read():
    rows = NormalRows(MemoryTensor(torch.zeros(1, 5)), name="x", seed=3, rows=4000, factor=2.0)
    whole = rows.read(0, 20000, Scratch(), 0)
    assert torch.equal(rows.read(7, 31, Scratch(), 0), whole[7:31])
    assert abs(float(whole.mean())) < 0.05 and abs(float(whole.std()) - 2.0) < 0.05


def test_projected_rows_are_an_affine_map():
    source = MemoryTensor(torch.randn(6, 4))
    matrix, mean, to = torch.randn(4, 3), torch.randn(4), torch.randn(3)
    rows = ProjectedRows(source, matrix=matrix, from_mean=mean, to_mean=to)
    expected = (source.values - mean) @ matrix + to
    assert torch.allclose(read_rows(rows, np.arange(6)), expected, atol=1e-6)
    assert torch.equal(rows.read(4, 8, Scratch(), 0), rows.read(0, 18, Scratch(), 0)[4:8])
