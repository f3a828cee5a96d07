"""Compiled kernels against their definitions in PyTorch and NumPy: no bit differs, whatever the values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_methods_against_reference import CASES, SMALL, STREAMED, make

import cuvee
import cuvee.tensors.layout
from cuvee.methods.calls import Call, Pending, Place, activated
from cuvee.methods.combination import Stored
from cuvee.methods.folding import Done
from cuvee.methods.measuring import measured
from cuvee.methods.papers.cabs import largest_of_stretches
from cuvee.methods.papers.nearswap import shorten
from cuvee.methods.papers.pcb_merging import EndsOfScores, FloorAndTop, balanced, scores_of
from cuvee.methods.papers.sce import variance
from cuvee.methods.papers.widen import RowWeights
from cuvee.methods.pieces.combine import largest, weighted_sum
from cuvee.methods.pieces.drop import drop_by_rank
from cuvee.methods.pieces.localize import keep_consensus
from cuvee.methods.pieces.sort import middle
from cuvee.methods.pieces.trim import among_largest, keep_among
from cuvee.methods.pieces.unique import scale_unique
from cuvee.methods.pieces.vote import unanimous_sum, weigh_consensus
from cuvee.methods.reductions import Gram, Ranks, Shared, Sums
from cuvee.methods.registry import DELTAS, MATRIX, edits, methods
from cuvee.tensors import c_library, kernels, order
from cuvee.tensors.layout import Layout
from cuvee.tensors.order import device_keys, digit_counts, equal_in_windows, high_counts, ordered_keys
from cuvee.tensors.rows import Act, Combination, Row, Served

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
    keys = ordered_keys(flat, magnitude).astype(np.int64)
    high = compiled_and_defined(lambda: high_counts(flat, magnitude, 2))
    low = compiled_and_defined(lambda: digit_counts(flat, magnitude, prefixes, 0))
    np.testing.assert_array_equal(*high)
    np.testing.assert_array_equal(*low)
    for row, chosen in zip(high[0], (keys, keys[keys & 0xFFFF == 0]), strict=True):
        np.testing.assert_array_equal(row, np.bincount(chosen >> 16, minlength=1 << 16 >> magnitude))
    for row, prefix in zip(low[0], prefixes, strict=True):
        np.testing.assert_array_equal(row, np.bincount(keys[keys >> 16 == prefix] & 0xFFFF, minlength=1 << 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [True, False])
def test_digits_counted_on_a_device_are_those_of_the_cpu(dtype, magnitude, monkeypatch):
    numbers = torch.randn(2, 500, generator=torch.Generator().manual_seed(7)).bfloat16().to(dtype)
    values, digits = numbers[0] - numbers[1], 2 if dtype is torch.float32 else 4
    prefixes = np.unique(ordered_keys(values, magnitude) >> 16 * (digits - 1)).tolist()[-3:]
    monkeypatch.setattr(kernels, "available", lambda: False)
    high, low = high_counts(values, magnitude, digits), digit_counts(values, magnitude, prefixes, digits - 2)
    monkeypatch.setattr(order, "ordered_keys", lambda found, of: device_keys(found if of else found + 0.0, of))
    np.testing.assert_array_equal(high_counts(values, magnitude, digits), high)
    np.testing.assert_array_equal(digit_counts(values, magnitude, prefixes, digits - 2), low)
    assert high[0].sum() == 500 and high[1].sum() > 0 and low.sum() > 0


@settings(max_examples=100, deadline=None)
@given(deltas(), st.integers(1, 700), st.lists(st.floats(0, 1), min_size=1, max_size=2), st.booleans())
def test_windows_say_how_many_short_keys_each_leaf_has(values, leaf, shares, magnitude):
    assume(values.shape[1] > 0)
    row = kernels.row_of(values[0])
    keys = ordered_keys(values[0], magnitude).reshape(-1).astype(np.int64)
    counts, windows = kernels.count_high(row, magnitude, leaf, shares)
    np.testing.assert_array_equal(counts, high_counts(values[0], magnitude, 2))
    leaves = [keys[start : start + leaf] for start in range(0, len(keys), leaf)]
    for share, first in zip(shares, windows[0, :, 0], strict=True):
        reached = [*np.sort(leaves[0])[::-1] >> 16, 0][int(share * len(leaves[0]))]
        assert first == min(max(reached - kernels.WINDOW // 2, 0), counts.shape[1] - kernels.WINDOW)
    for key in {*keys.tolist(), *(keys >> 16 << 16).tolist()}:
        near = any(0 <= (key >> 16) - first < kernels.WINDOW for first in windows[0, :, 0])
        found = equal_in_windows(windows, key)
        assert (found is not None) == (near and key & 0xFFFF == 0)
        if found is not None:
            np.testing.assert_array_equal(found, [np.count_nonzero(one == key) for one in leaves])


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
    st.sampled_from([0.0, 1e-3, 10.0]),
)
@example((2, 4000), [1.0], 0, (0.5, 0.15), 1e-3)  # too many that no bucket tells apart: all ranks are made
def test_a_mask_by_rank_is_its_definition(shape, few, seed, probabilities, spread):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(few), shape, generator=generator)
    delta = torch.tensor(few, dtype=torch.float32)[chosen] * (1 + spread * torch.rand(shape, generator=generator))
    layout = Layout(shape)

    def compute():
        with activated(Call(Place("w", layout, 0, layout.numel), seed=seed)):
            return drop_by_rank(delta, *probabilities, rescale="none")

    one, other = compiled_and_defined(compute)
    assert_same_bits(one + 0.0, other + 0.0)


@pytest.mark.parametrize(("label", "ties"), STREAMED)
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


WRAPPED = (
    ([{"trim": {"density": 0.6}}, {"dare": {"density": 0.5}}], [{"scale": {"factor": 0.7}}, {"lines": {}}]),
    (
        [{"lwptv": {"prune_ratio": 0.4}}, {"magprune": {"density": 0.5}}],
        [{"lines": {"alpha": 0.3}}, {"scale": {"factor": 1.3}}],
    ),
    ([{"dare": {"density": 0.5, "rescale": "expected"}}, {"trim": {"density": 0.3, "scope": "model"}}], []),
    ([{"magprune": {"density": 0.4, "epsilon": 0.1, "rescale": "expected"}}], [{"scale": {"factor": 0.0}}]),
)
INNER = ("task_arithmetic", "ties", "consensus_ties", "magmax", "pcb_merging", "della", "widen")
QUICK = ("task_arithmetic", "ties", "widen")


@pytest.mark.parametrize("inner", [pytest.param(i, marks=[] if i in QUICK else [pytest.mark.slow]) for i in INNER])
def test_no_kernel_changes_a_bit_of_a_wrapped_merge(inner):
    names = ["embed_tokens.weight", *(f"layers.{layer}.mlp.up_proj.weight" for layer in range(3)), "norm.weight"]
    shapes = {f"model.{name}": (300, 500) if "1" in name else (9, 40) for name in names} | {"model.norm.weight": (40,)}
    base, models = make(3, shapes, ties=True)
    for before, after in WRAPPED:
        wrapped = {"before": before, "after": after, "scaling": 0.7, "block_elements": 1 << 16}
        one, other = compiled_and_defined(lambda w=wrapped: cuvee.merge_tensors(inner, models, base, **w))
        for name in one:
            assert_same_bits(one[name], other[name])


def test_every_elementwise_edit_is_wrapped_around_blocks_that_nobody_has_decoded():
    wrapped = {name for sides in WRAPPED for side in sides for step in side for name in step}
    assert wrapped == {name for name, step in edits().items() if step.unit is not MATRIX}
    assert all(edits()[name].arrays for name in wrapped)


@pytest.mark.parametrize("method", ["multi_krum", "geometric_median", "centered_clipping"])
def test_no_kernel_changes_a_bit_of_the_distances_of_models_that_are_all_but_equal(method):
    base, _ = make(1, {"a": (300, 500), "b": (7,)}, ties=False)
    models = [{name: one.float() * (1 + 1e-6 * k) for name, one in base.items()} for k in (1, 2, 4, 8, 16)]
    one, other = compiled_and_defined(lambda: cuvee.merge_tensors(method, models, block_elements=1 << 16))
    whole = cuvee.merge_tensors(method, models)
    for name in one:
        assert_same_bits(one[name], other[name])
        assert_same_bits(one[name], whole[name])


def stored_dtype(kind: str) -> torch.dtype:
    return {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[kind]


def stored(values: torch.Tensor, kind: str) -> tuple[np.ndarray, torch.Tensor]:
    """Return the raw elements of values as they are stored, and what these are as float32."""
    rounded = values.to(stored_dtype(kind))
    return rounded.contiguous().view(torch.uint8).numpy(), rounded.float()


def drawn_steps(draw, size: int) -> list[tuple[Act, float, dict]]:
    found = []
    for act in draw(st.lists(st.sampled_from(list(Act)), max_size=3)):
        number = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0, float("nan")]))
        first = draw(st.integers(0, size))
        ties = (first, min(size, first + draw(st.integers(0, 300))), draw(st.integers(0, 40)))
        mask = np.random.default_rng(draw(st.integers(0, 9))).random(size) < 0.5
        details = {"ties": ties if act < Act.KEEP_MASK else (0, 0, 0), "mask": mask}
        if act is Act.MULTIPLY_EACH:
            factors = np.array(
                draw(st.lists(st.sampled_from([0.5, 3.0, -1.0, 0.0]), min_size=1, max_size=40)), np.float32
            )
            details = {
                "factors": factors,
                "run": draw(st.sampled_from([1, 1, 7, 1500])),
                "first": draw(st.integers(0, 99)),
            }
        found.append((act, number if act < Act.MULTIPLY else 0.75 if act is Act.SHORTEN else 3.0, details))
    return found


def stepped(values: torch.Tensor, act: Act, number: float, ties=(0, 0, 0), mask=None, **each) -> torch.Tensor:
    """Return what a step does, by its definition."""
    if act is Act.MULTIPLY_EACH:
        which = (each["first"] + np.arange(len(values))) // each["run"] % len(each["factors"])
        return values * torch.from_numpy(each["factors"][which])
    if act is Act.MULTIPLY:
        return values * number
    if act is Act.SHORTEN:
        return shorten(values, number)
    if act is Act.DIVIDE:
        return values / number
    if act is Act.KEEP_MASK:
        return torch.where(torch.from_numpy(mask), values, 0)
    before, until, few = ties
    equal = values.abs() == number
    place = torch.arange(len(values))
    some = equal & (place >= before) & (place < until)
    chosen = (values.abs() > number) | (equal & (place < before)) | (some & (some.cumsum(0) <= few))
    return torch.where(chosen != (act is Act.DROP_LARGEST), values, 0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_row_and_what_is_made_of_it_are_their_definition(data):
    draw, kinds = data.draw, st.sampled_from(["F32", "BF16", "F16"])
    size, models = draw(st.sampled_from([1, 15, 1000, 1024, 1025, 3000])), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    few = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 3.0, -3.0, 1e-4])
    block = lambda: few[torch.randint(0, len(few), (size,), generator=generator)]  # noqa: E731
    base_kind = draw(kinds)
    raw, base = stored(block(), base_kind)
    with_base = draw(st.booleans())
    base_row = Row(raw, base_kind, (size,)) if with_base else None
    rows, values = [], []
    for _ in range(models):
        kind = draw(kinds)
        raw, one = stored(block(), kind)
        row = Row(raw, kind, (size,), base_row)
        one = one - base if with_base else one
        for act, number, details in drawn_steps(draw, size):
            row, one = row.then(act, number, **details), stepped(one, act, number, **details)
        rows.append(row)
        values.append(one)
    for row, one in zip(rows, values, strict=True):
        assert_same_bits(torch.from_numpy(kernels.load(row, np.empty(size, np.float32))) + 0.0, one + 0.0)
        for reduction in (Sums("abs"), Sums("square")):
            found = reduction.of_stored([row], 700, None)[:, 0]
            parts = [reduction.measure(part, -1, None) for part in one.split(700)]
            np.testing.assert_array_equal(found, np.array(parts))
        k = draw(st.integers(1, size))
        if not row.counts:
            key, above, equal = kernels.select(row, True, k, 700)
            keys = ordered_keys(one, True)
            assert key == np.sort(keys)[size - k] and above == (keys > key).sum() and equal.sum() == (keys == key).sum()
    weight, out_kind, scaling = [0.3, 1.0, -0.5, 2.0][:models], draw(kinds), draw(st.sampled_from([1.0, 0.7]))
    together = torch.stack(values)
    first = draw(st.integers(0, models - 1))
    places = first, draw(st.integers(first + 1, models)), draw(st.sampled_from([0, models, (models + 1) // 2]))
    pieces = [
        lambda values: weigh_consensus(values, weight, weight, normalize=True),
        largest,
        lambda values: unanimous_sum(values, 0.3, 1.7),
        lambda values: scale_unique(values, weight),
        lambda values: middle(values, *places),
    ]
    made = [(piece(Stored(rows)), lambda piece=piece: piece(together)) for piece in pieces]
    made += [
        (Combination(rows, weight, 1.7), lambda: weighted_sum(together, weight) / 1.7),
        (
            Combination(rows, weight, served=Served(rows[::-1], weight, 2)),
            lambda: keep_consensus(weighted_sum(together, weight), together.flip(0), weight, 2),
        ),
    ]
    np.testing.assert_array_equal(
        Shared().of_stored([Stored(rows)], 700, None)[0, 0], Shared().measure(together, -1, None)
    )
    for combined, defined in made:
        out = np.empty(size, np.uint32 if out_kind == "F32" else np.uint16)
        kernels.combine(combined, out, base=base_row, scaling=scaling, kind=out_kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "available", lambda: False)
            merged = defined()
        merged = base + merged * scaling if with_base else merged
        wanted, _ = stored(merged, out_kind)
        found, wanted = (torch.from_numpy(a.view(np.uint8)).view(stored_dtype(out_kind)) for a in (out, wanted))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@settings(max_examples=100, deadline=None)
@given(deltas(), st.integers(1, 40), st.integers(1, 300), st.integers(0, 9), st.booleans())
def test_the_largest_of_every_stretch_are_their_definition(values, n, more, seed, many):
    delta = values.repeat(1, 40 if many else 1)[0]
    free = torch.from_numpy(np.random.default_rng(seed).random(len(delta)) < 0.7)
    layout = Layout(tuple(delta.shape))
    with pytest.MonkeyPatch.context() as patch, activated(Call(Place("w", layout, 0, layout.numel))):
        patch.setattr(cuvee.tensors.layout, "LEAF_ELEMENTS", 700)
        found = largest_of_stretches(kernels.row_of(delta), free.numpy(), n, n + more)
        np.testing.assert_array_equal(found, largest_of_stretches(delta, free, n, n + more))
        assert not (found & ~free.numpy()).any()


@pytest.mark.parametrize("shape", [(50, 30), (3, 2500), (7, 4, 5), (6, 1)])
@pytest.mark.parametrize("models", [1, 3, 5])
def test_gram_matrices_of_columns_and_rows_are_their_definition(shape, models):
    values = torch.randn((models, *shape), generator=torch.Generator().manual_seed(models)).to(torch.bfloat16).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuvee.tensors.layout, "LEAF_ELEMENTS", 700)
        layout = Layout(shape)
        for start, stop in layout.blocks(1400):
            block = values.reshape(models, -1)[:, start:stop]
            rows = Stored([kernels.row_of(one) for one in block.numpy()])
            measures = [(Gram(), "column")] + (
                [(RowWeights(shape[1], 1.0, 1.0), "all")] if len(shape) == 2 and shape[1] < 700 else []
            )
            for reduction, over in measures:
                misses = []
                for given_values in (rows, block):
                    call = Call(Place("w", layout, start, stop))
                    with activated(call), pytest.raises(Pending):
                        measured(reduction, given_values, over=over, scope="model")
                    (miss,) = call.misses.values()
                    misses.append(miss.partials)
                assert [leaf for leaf, _ in misses[0]] == [leaf for leaf, _ in misses[1]]
                for (_, one), (_, other) in zip(*misses, strict=True):
                    np.testing.assert_array_equal(one, other)


@settings(max_examples=50, deadline=None)
@given(deltas(), st.sampled_from(["raw_sum", "normalized_sum"]), st.sampled_from([1e-3, 0.3, 20.0]), st.booleans())
def test_a_competition_of_parameters_is_its_definition(values, inter, spread, flat):
    values = values.clamp(-100, 100) * (
        1 + spread * torch.rand(values.shape, generator=torch.Generator().manual_seed(1))
    )
    rows = Stored([kernels.row_of(one) for one in values])
    clamps = tuple((0.1, 0.1 if flat else 3.0 + k) for k in range(len(values)))
    ends = EndsOfScores(clamps, inter, 0.4, 2)
    state = None
    while True:
        one, other = ends.of_stored([rows], 1, state)[0, 0], ends.measure(values, -1, state)
        np.testing.assert_array_equal(one, other)
        outcome = ends.next(one, state, values[0].numel())
        if isinstance(outcome, Done):
            break
        state = outcome.state
    scores = [torch.sort(score.reshape(-1), descending=True).values for score in scores_of(values, clamps, inter)]
    floor = FloorAndTop(0.4)(values[0].numel())[0] - 1
    assert not scores[0].numel() or outcome.value == tuple((float(score[floor]), float(score[0])) for score in scores)
    weight = [1.0, 0.3, 0.7, -1.0, 2.0][: len(values)]
    for given_ends in (outcome.value, [(0.01 * k, 1.5 if k < 4 else 0.04) for k in range(len(values))]):
        found, right = (balanced(either, clamps, inter, given_ends, weight) for either in (rows, values))
        assert_same_bits(torch.from_numpy(found) + 0.0, right + 0.0)


@pytest.mark.parametrize("inter", ["normalized_sum", "raw_sum"])
def test_a_competition_whose_clamps_are_no_numbers_is_its_definition(inter):
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows, clamps, ends = (
        Stored([kernels.row_of(one) for one in values]),
        ((0.1, 2.0),) * 2 + ((math.nan, math.nan),),
        ((0.1, 1.5),) * 3,
    )
    found, right = (balanced(either, clamps, inter, ends, 1.0) for either in (rows, values))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(right.numpy()))
    assert np.isnan(found).any()


@pytest.mark.skipif(not kernels.available(), reason="the kernels are off")
def test_a_library_of_other_sources_is_not_used(monkeypatch):
    assert c_library.library.__wrapped__() is not None
    monkeypatch.setattr(c_library, "SOURCES", c_library.SOURCES[:-1])
    assert c_library.library.__wrapped__() is None
