"""Exact ranks: the k largest of a tensor or of a model, counted block by block, are those of a stable sort."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cuvee.tensors.layout
from cuvee.checkpoints.sources import MemoryTensor
from cuvee.engine.blocks import Computed
from cuvee.engine.rounds import Handler, run_rounds
from cuvee.engine.tasks import Formula, Input, Task
from cuvee.methods.calls import current
from cuvee.methods.measuring import each, measured
from cuvee.methods.pieces.trim import KeepBand, KeepShare, among_largest, keep_band, keep_largest
from cuvee.methods.reductions import Ranks
from cuvee.methods.registry import NONE as NO_BASE
from cuvee.methods.registry import WEIGHTS, Bound, Method, Paper, Unit
from cuvee.tensors.dtypes import dtype_of_torch, torch_dtype
from cuvee.tensors.layout import Layout

LEAF = 8


@pytest.fixture(autouse=True, scope="module")
def small_leaves():
    """Leaves of 8 elements, so that small examples have many."""
    before = cuvee.tensors.layout.LEAF_ELEMENTS
    cuvee.tensors.layout.LEAF_ELEMENTS = LEAF
    yield
    cuvee.tensors.layout.LEAF_ELEMENTS = before


@dataclass(frozen=True)
class Counts:
    """Some k's, as far as n goes."""

    ks: tuple[int, ...]

    def __call__(self, n: int) -> tuple[int, ...]:
        return tuple(min(k, n) for k in self.ks)


class Collect(Handler):
    def __init__(self) -> None:
        self.out: dict[str, torch.Tensor] = {}

    def begin(self, task: Task) -> None:
        self.out[task.name] = torch.full((task.layout.numel,), torch.nan, dtype=torch.float64)

    def deliver(self, task: Task, start: int, block: Computed) -> None:
        if block.raw.size:
            values = torch.from_numpy(block.raw.copy()).view(torch_dtype(task.dtype))
            self.out[task.name][start : start + values.numel()] = values.double()


def as_method(function) -> Method:
    return Method("test", function, Paper(""), WEIGHTS, NO_BASE, (1, None), {}, False, "", "", "", "", Unit.ELEMENT)


def stream(function, tensors: dict[str, list[torch.Tensor]], block: int, threads: int = 1) -> dict[str, np.ndarray]:
    """Run a function over tensors (each a list of K models' values), in blocks."""
    tasks = []
    for name, values in tensors.items():
        inputs = tuple(Input(k, MemoryTensor(v)) for k, v in enumerate(values))
        layout = Layout(tuple(values[0].shape))
        tasks.append(Task(name, layout, dtype_of_torch(values[0].dtype), inputs, arguments={}))
    wide = next(iter(tensors.values()))[0].dtype is torch.float64
    formula = Formula(as_method(function), compute_dtype="float64" if wide else "float32")
    handler = Collect()
    run_rounds(tasks, formula, handler, threads=threads, block_elements=block)
    return {name: out.numpy() for name, out in handler.out.items()}


def the_largest(tensors: dict[str, torch.Tensor], k: int, *, magnitude: bool) -> dict[str, np.ndarray]:
    """Say by a stable sort which elements are among the k largest; first by name, then by index among equals."""
    names = sorted(tensors, key=lambda name: name.encode())
    flat = np.concatenate([tensors[name].numpy().reshape(-1) for name in names] or [np.zeros(0)])
    order = np.argsort(-(np.abs(flat) if magnitude else flat), kind="stable")
    mask = np.zeros(len(flat))
    mask[order[:k]] = 1
    cuts = np.cumsum([tensors[name].numel() for name in names])[:-1]
    return dict(zip(names, np.split(mask, cuts), strict=True))


PALETTE = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1e-45, -1e-40, 3.0e38, 1.0000001, float("inf"), float("-inf")]
values = st.one_of(st.sampled_from(PALETTE[:6]), st.sampled_from(PALETTE), st.floats(width=32, allow_nan=False))
shapes = st.one_of(
    st.tuples(st.integers(0, 40)),
    st.tuples(st.integers(0, 6), st.integers(0, 10)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    st.just(()),
)
dtypes = st.sampled_from([torch.float32, torch.float64])


@st.composite
def tensor(draw, dtype):
    shape = draw(shapes)
    n = int(np.prod(shape, dtype=int))
    drawn = draw(st.lists(values, min_size=n, max_size=n))
    return torch.tensor(drawn, dtype=dtype).reshape(shape)


@st.composite
def models(draw):
    dtype = draw(dtypes)
    names = draw(
        st.lists(st.sampled_from(["a", "b", "B", "é", "z.0", "z.10", "z.9"]), min_size=1, max_size=3, unique=True)
    )
    return {name: draw(tensor(dtype)) for name in names}


@settings(max_examples=80, deadline=None)
@given(models(), st.lists(st.integers(0, 60), min_size=1, max_size=3), st.integers(1, 40), st.booleans())
def test_the_k_largest_of_a_tensor_are_those_of_a_stable_sort(tensors, ks, block, magnitude):
    wide = next(iter(tensors.values())).dtype is torch.float64

    def chosen(inputs):
        (x,) = inputs
        found = measured(Ranks(Counts(tuple(ks)), magnitude, digits=4 if wide else 2), x)
        place = current().place
        ranked = x.abs() if magnitude else x
        return sum(among_largest(ranked, r, place).to(x.dtype) * 2**i for i, r in enumerate(found))

    out = stream(chosen, {name: [x] for name, x in tensors.items()}, block)
    for name, x in tensors.items():
        expected = sum(
            2**i * the_largest({name: x}, min(k, x.numel()), magnitude=magnitude)[name] for i, k in enumerate(ks)
        )
        np.testing.assert_array_equal(out[name], expected)


@settings(max_examples=80, deadline=None)
@given(models(), st.integers(0, 80), st.integers(1, 40), st.booleans())
def test_the_k_largest_of_a_model_are_those_of_a_stable_sort(tensors, k, block, magnitude):
    wide = next(iter(tensors.values())).dtype is torch.float64

    def chosen(inputs):
        (x,) = inputs
        (ranked,) = measured(Ranks(Counts((k,)), magnitude, digits=4 if wide else 2), x, scope="model")
        return among_largest(x.abs() if magnitude else x, ranked, current().place).to(x.dtype)

    out = stream(chosen, {name: [x] for name, x in tensors.items()}, block)
    total = sum(x.numel() for x in tensors.values())
    expected = the_largest(tensors, min(k, total), magnitude=magnitude)
    for name in tensors:
        np.testing.assert_array_equal(out[name], expected[name])


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(1, 60), st.integers(1, 40))
def test_a_threshold_without_ties_is_the_kth_value_of_a_sort(tensors, k, block):
    wide = next(iter(tensors.values())).dtype is torch.float64

    def threshold(inputs):
        (x,) = inputs
        ranks = Ranks(Counts((k,)), magnitude=False, resolve_ties=False, digits=4 if wide else 2)
        (ranked,) = measured(ranks, x)
        assert ranked.tie is None
        return torch.full_like(x, ranked.value)

    out = stream(threshold, {name: [x] for name, x in tensors.items()}, block)
    for name, x in tensors.items():
        if x.numel():
            expected = np.sort(x.numpy().reshape(-1))[::-1][min(k, x.numel()) - 1]
            np.testing.assert_array_equal(out[name], np.full(x.numel(), expected, np.float64))


densities = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.999, 1.0]), st.floats(0, 1))


@settings(max_examples=80, deadline=None)
@given(models(), densities, st.integers(1, 40), st.sampled_from(["tensor", "model"]))
def test_trim_keeps_exactly_int_density_n_the_lower_index_first(tensors, density, block, scope):
    def trimmed(inputs):
        return each(keep_largest, inputs, density, scope=scope)[0]

    out = stream(trimmed, {name: [x] for name, x in tensors.items()}, block)
    groups = [tensors] if scope == "model" else [{name: x} for name, x in tensors.items()]
    for group in groups:
        n = sum(x.numel() for x in group.values())
        masks = the_largest(group, n if density == 1 else int(density * n), magnitude=True)
        for name, x in group.items():
            expected = np.where(masks[name] == 1, x.numpy().reshape(-1).astype(np.float64), 0)
            np.testing.assert_array_equal(out[name], expected)


@settings(max_examples=60, deadline=None)
@given(models(), densities, st.integers(1, 40), st.sampled_from(["tensor", "model"]))
def test_an_inclusive_trim_keeps_every_equal_of_the_last_one(tensors, density, block, scope):
    def trimmed(inputs):
        return each(keep_largest, inputs, density, scope=scope, inclusive=True)[0]

    out = stream(trimmed, {name: [x] for name, x in tensors.items()}, block)
    groups = [tensors] if scope == "model" else [{name: x} for name, x in tensors.items()]
    for group in groups:
        flat = np.sort(np.abs(np.concatenate([x.numpy().reshape(-1) for x in group.values()])))
        n = len(flat)
        # the official TIES code counts what is kept, the per-tensor ones what is removed; both count from the smallest
        removed = n - int(density * n) if scope == "model" else int(n * (1 - density))
        threshold = flat[removed - 1] if removed and density < 1 else 0.0
        for name, x in group.items():
            values = x.numpy().reshape(-1).astype(np.float64)
            np.testing.assert_array_equal(out[name], np.where(np.abs(values) >= threshold, values, 0))


@settings(max_examples=80, deadline=None)
@given(models(), densities, densities, st.integers(1, 40))
def test_a_band_is_the_slice_of_a_sort_that_mergekit_takes(tensors, density, gamma, block):
    def banded(inputs):
        return each(keep_band, inputs, density, gamma)[0]

    out = stream(banded, {name: [x] for name, x in tensors.items()}, block)
    for name, x in tensors.items():
        values = x.numpy().reshape(-1).astype(np.float64)
        n = len(values)
        kept, top = int(density * n), int(gamma * n)
        if n - kept - top < 0:
            top = n - kept
        order = np.argsort(-np.abs(values), kind="stable")
        expected = np.zeros(n)
        chosen = order if density >= 1 else order[top : top + kept]
        expected[chosen] = values[chosen]
        np.testing.assert_array_equal(out[name], expected)


@given(st.integers(0, 10**7), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_counts_never_leave_the_tensor(n, density, gamma):
    counts = [*KeepBand(density, gamma)(n), *KeepShare(density, "exact")(n)]
    counts += [*KeepShare(density, "official")(n), *KeepShare(density, "removed")(n)]
    assert all(0 <= k <= n for k in counts)
    wide, largest = KeepBand(density, gamma)(n)
    assert wide - largest == int(density * n)


@settings(max_examples=30, deadline=None)
@given(models(), st.integers(0, 60), st.integers(1, 40))
def test_threads_leave_no_trace_in_ranks(tensors, k, block):
    def chosen(inputs):
        (x,) = inputs
        digits = 4 if x.dtype is torch.float64 else 2
        (tensor,) = measured(Ranks(Counts((k,)), digits=digits), x)
        (model,) = measured(Ranks(Counts((k,)), digits=digits), x, scope="model")
        place = current().place
        return among_largest(x.abs(), tensor, place) + 2.0 * among_largest(x.abs(), model, place).to(x.dtype)

    inputs = {name: [x] for name, x in tensors.items()}
    alone, together = stream(chosen, inputs, 1000), stream(chosen, inputs, block, threads=4)
    for name in tensors:
        np.testing.assert_array_equal(alone[name], together[name])


def test_bound_knows_its_ends():
    assert 0 in Bound(0, 1) and 1 in Bound(0, 1) and 1 not in Bound(0, 1, open_high=True)
