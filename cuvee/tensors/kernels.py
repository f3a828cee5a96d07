"""CPU kernels in C (`_kernels.c`), compiled when Cuvée is installed.

Each stands behind one piece, whose definition in PyTorch or NumPy it equals bit for bit (tests/differential); it is there
because `make bench-merge` shows that it pays. `CUVEE_KERNELS=0` turns them off. They release the GIL.

What a piece calls takes NumPy arrays or tensors and returns what it was given. Values are float32 and contiguous
(`serve` tells) unless said otherwise; a "leaf" is a run of that many elements. What measures or combines also takes `Row`s,
which are decoded, filtered and used in the cache.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cuvee.tensors import c_library
from cuvee.tensors.c_library import library
from cuvee.tensors.rows import Combination, InFile, Middle, Row, Rule, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float32]
    T = TypeVar("T", NDArray[Any], Tensor)

__all__ = [
    "KINDS",
    "MOST_OF_A_LEAF",
    "WINDOW",
    "available",
    "bernoulli",
    "column_products",
    "combine",
    "consensus",
    "count_equal",
    "count_high",
    "count_low",
    "count_shared",
    "count_special",
    "decode",
    "digest_leaves",
    "digests",
    "draws",
    "encode",
    "keep",
    "lane_sums",
    "largest_of_stretches",
    "load",
    "pcb_balance",
    "pcb_count",
    "product_sums",
    "rank_drop",
    "row_of",
    "select",
    "serve",
    "stream",
    "streams",
    "threshold",
    "variance",
    "weighted_sum",
]

KINDS = {"F32": 0, "BF16": 1, "F16": 2}
"""The storage types that `decode` and `encode` know, by safetensors' names."""
MOST_OF_A_LEAF = 1 << 20
"""Bytes of a leaf that `digest_leaves` and `stream` take."""

WINDOW = 64
"""High digits of which `count_high` says how often each leaf has them: a quarter of an octave above and below."""

_ALIGNED = 64
_UNREADABLE = -2


def available() -> bool:
    """True when the kernels were compiled and are not turned off."""
    return library() is not None


def serve(values: Any) -> bool:
    """True when kernels can work on a row, an array or a tensor: float32, on the CPU, contiguous."""
    if isinstance(values, Row):
        return True
    if isinstance(values, np.ndarray):
        return available() and values.dtype == np.float32 and values.flags.c_contiguous
    return (
        available() and values.device.type == "cpu" and str(values.dtype) == "torch.float32" and values.is_contiguous()
    )


def _flat(values: Any) -> Floats:
    """Return an array or a tensor as an (n,) array without a copy."""
    return (values if isinstance(values, np.ndarray) else values.numpy()).reshape(-1)


def _like(values: Any, out: Floats) -> Any:
    """Return a result as what `values` is, an array or a tensor."""
    if isinstance(values, np.ndarray):
        return out
    import torch

    return torch.from_numpy(out)


def _memory(code: int) -> int:
    if code < 0:
        raise MemoryError
    return code


def _at(values: NDArray[Any] | None) -> int | None:
    return None if values is None else values.__array_interface__["data"][0]


def _empty(values: Any) -> Floats:
    """Return an uninitialised result of K models: (…) for (K, …)."""
    return np.empty(tuple(values.shape[1:]), np.float32)


def row_of(values: Any) -> Row:
    """Return a row of an array or a tensor, without a copy."""
    return values if isinstance(values, Row) else Row(_flat(values), "F32", tuple(values.shape))


def _rows_of(values: Any) -> list[Row]:
    """Return the K rows of (K, …)."""
    return [row_of(one) for one in values]


def _at_elements(row: Row) -> int | None:
    return _at(row.elements)


def _as_step(step: Step) -> c_library.Step:
    factors = step.factors
    each = (_at(factors), 0 if factors is None else factors.size, step.run, step.first)
    return c_library.Step(step.act, step.number, *step.ties, _at(step.mask), *each)


def _as_c(rows: Sequence[Row], where: Callable[[Row], int | None] = _at_elements) -> Any:
    """Return the structures that the kernels read, for one call: they count the ties down.

    Args:
        where: what stands for the elements of a row.
    """
    found = (c_library.Row * len(rows))()
    for place, row in zip(found, rows, strict=True):
        place.source, place.kind = where(row), KINDS[row.kind]
        if row.base is not None:
            place.base, place.base_kind = where(row.base), KINDS[row.base.kind]
        if row.steps:
            steps = [_as_step(step) for step in row.steps]
            place.steps, place.count = (c_library.Step * len(steps))(*steps), len(steps)
    return found


def load(row: Row, out: Floats) -> Floats:
    """Write the elements of a row to `out`, (…) contiguous, and return it."""
    library().cuvee_load(_as_c([row]), out.size, _at(out))
    return out


def count_special(source: NDArray[Any], kind: str) -> int:
    """Return how many of the raw elements `source` are NaN or infinite."""
    return int(library().cuvee_count_special(_at(source), KINDS[kind], _count(source, kind)))


@functools.cache
def digests() -> bool:
    """True when `digest_leaves` is there, and about as fast on this processor as the package blake3."""
    return available() and bool(library().cuvee_digests_pay())


def digest_leaves(raw: NDArray[np.uint8], leaf: int, out: NDArray[np.uint8]) -> None:
    """Write the BLAKE3 digests, 32 bytes each, of runs of `leaf` ≤ `MOST_OF_A_LEAF` bytes; the last may be shorter."""
    library().cuvee_digest_leaves(_at(raw), raw.size, leaf, _at(out))


def decode(source: NDArray[Any], kind: str, base: Floats | None, out: Floats) -> int:
    """`out = float32(source) − base`; returns how many of `source` are NaN or infinite.

    Args:
        source: (n,) raw elements of `kind`, any dtype of that size.
        kind: one of `KINDS`.
        base: (n,) or None.
        out: (n,).
    """
    load(Row(source, kind, out.shape, None if base is None else row_of(base)), out)
    return count_special(source, kind)


def encode(values: Floats, base: Floats | None, scaling: float, kind: str, out: NDArray[Any]) -> int:
    """`out = round(base + values · scaling)`, or `round(values)`; returns how many of `out` are NaN or infinite.

    Args:
        values: (n,).
        base: (n,) or None.
        kind: one of `KINDS`.
        out: (n,) raw elements of `kind`.
    """
    one = Combination([row_of(values)], [1.0])
    return combine(one, out, base=None if base is None else row_of(base), scaling=scaling, kind=kind)


def combine(
    one: Combination, out: NDArray[Any], *, base: Row | None = None, scaling: float = 1.0, kind: str = "F32"
) -> int:
    """Write `base` + a combination · `scaling` in one pass over stored elements.

    Args:
        out: (n,) raw elements of `kind`.
        base: without steps; None: the combination itself, without `scaling`.

    Returns:
        how many of `out` are NaN or infinite.
    """
    described = _described(one, base, scaling, kind, _at_elements)
    return _memory(int(library().cuvee_combine(described, _count(out, kind), _at(out))))


def streams() -> bool:
    """True when `stream` can read, digest and combine on this machine."""
    return digests() and sys.platform != "win32"


def stream(
    one: Combination,
    out: NDArray[Any],
    take: Callable[[int], NDArray[np.uint8]],
    *,
    base: Row | None = None,
    scaling: float = 1.0,
    kind: str = "F32",
) -> tuple[int, float] | None:
    """Do as `combine` on rows whose sources are `InFile`, cut alike: read leaf by leaf, they stay in the cache.

    Args:
        take: gives so many bytes to read into.

    Returns:
        what `combine` returns, and the seconds that reading took; None where something cannot be read.
    """
    rows = [*([base] if base else []), *one.rows, *(one.served.tasks if one.served else ())]
    rows += [row.base for row in rows if row.base]
    kinds = {row.source: row.kind for row in rows if isinstance(row.source, InFile)}
    numbers: dict[Any, int] = {source: number for number, source in enumerate(kinds, start=1)}
    files = (c_library.File * len(kinds))()
    for file, (source, stored) in zip(files, kinds.items(), strict=True):
        file.fd, file.offset, file.kind, file.digests = source.fd, source.offset, KINDS[stored], _at(source.digests)
    leaf, size = next(iter(kinds)).leaf, _count(out, kind)
    room = -(-min(leaf, size) * 4 // _ALIGNED) * _ALIGNED
    buffers = take(room * (1 + len(files)))
    described = _described(one, base, scaling, kind, lambda row: numbers[row.source])
    made = library().cuvee_stream(described, files, len(files), leaf, size, _at(buffers), room, _at(out))
    if made == _UNREADABLE:
        return None
    for file, source in zip(files, kinds, strict=True):
        source.found(file.special)
    return _memory(int(made)), sum(file.nanoseconds for file in files) * 1e-9


def _described(
    one: Combination, base: Row | None, scaling: float, kind: str, where: Callable[[Row], int | None]
) -> Any:
    """Return a reference to the structure that says what to compute; `where`: see `_as_c`."""
    weights = np.array(one.weights, np.float32)
    votes = None if one.votes is None else np.array(one.votes, np.float32)
    served, middle = one.served, one.middle or Middle((), 0, 0)
    comparators = np.array(middle.comparators, np.int32).reshape(-1, 2)
    lambdas, factors = None if served is None else _floats(served.lambdas), _floats(one.factors)
    found = c_library.Sum(
        _as_c(one.rows, where),
        None if served is None else _as_c(served.tasks, where),
        _at(weights),
        _at(votes),
        _at(lambdas),
        None if base is None else where(base),
        _at(comparators),
        _at(factors),
        len(one.rows),
        0 if served is None else len(served.tasks),
        0 if served is None else served.least,
        len(comparators),
        len(factors),
        middle.first,
        middle.last,
        middle.nearest,
        one.divisor,
        one.floor,
        scaling,
        one.normalize,
        one.rule,
        0 if base is None else KINDS[base.kind],
        KINDS[kind],
    )
    found.held = weights, votes, lambdas, comparators, factors
    return ctypes.byref(found)


def _count(raw: NDArray[Any], kind: str) -> int:
    """Return how many elements of `kind` the bytes of an array are."""
    return raw.nbytes // (4 if kind == "F32" else 2)


def weighted_sum(values: T, weights: Sequence[float], divisor: float) -> T:
    """`pieces.combine.weighted_sum`: (K, …) into (…)."""
    out = _empty(values)
    combine(Combination(_rows_of(values), weights, divisor), out)
    return _like(values, out)


def threshold(values: T, limit: float, all_before: int, few_until: int, few: int, out: T | None = None) -> T:
    """`pieces.trim.keep_among`: the values whose magnitude is above the limit, the others zero; (…) into (…).

    Of those equal to the limit, all before `all_before` are kept and the first `few` of those before `few_until`.
    """
    flat, result = _flat(values), _like(values, np.empty(tuple(values.shape), np.float32)) if out is None else out
    library().cuvee_threshold(_at(flat), limit, all_before, few_until, few, flat.size, _at(_flat(result)))
    return result


def consensus(deltas: T, votes: Sequence[float], weights: Sequence[float], *, normalize: bool, floor: float) -> T:
    """`pieces.vote.weigh_consensus`: (K, …) into (…)."""
    out = _empty(deltas)
    combine(Combination(_rows_of(deltas), weights, 1.0, Rule.CONSENSUS, votes, normalize, floor), out)
    return _like(deltas, out)


def variance(rows: Sequence[Row], out: Floats) -> Floats:
    """`papers.sce.variance`: K rows into (…)."""
    _memory(library().cuvee_variance(_as_c(rows), len(rows), out.size, _at(out)))
    return out


def lane_sums(rows: Sequence[Row], leaf: int, *, square: bool) -> NDArray[np.float64]:
    """Σ |x|, or Σ x², of each leaf as `tensors.sums` adds them: R rows of n elements into (leaves, R); leaf ≥ 1."""
    size = math.prod(rows[0].shape)
    out = np.empty((-(-size // leaf), len(rows)))
    library().cuvee_lane_sums(_as_c(rows), len(rows), square, size, leaf, _at(out))
    return out


def count_shared(rows: Sequence[Row]) -> NDArray[np.int64]:
    """`reductions.Shared` of K rows: (2, K)."""
    out = np.empty((2, len(rows)), np.int64)
    _memory(library().cuvee_count_shared(_as_c(rows), len(rows), math.prod(rows[0].shape), _at(out)))
    return out


def product_sums(rows: Sequence[Row], leaf: int) -> NDArray[np.float64]:
    """`tensors.sums.product_sums` of each leaf: K rows of n elements into (leaves, K, K)."""
    models, size = len(rows), math.prod(rows[0].shape)
    out = np.empty((-(-size // leaf), models, models))
    _memory(library().cuvee_product_sums(_as_c(rows), models, size, leaf, _at(out)))
    return out


def column_products(rows: Sequence[Row], leaf: int, columns: int, first: int) -> NDArray[np.float64]:
    """Σ x_i x_j of each column of each leaf, the elements of a column in their order: K rows into (leaves, K, K, columns).

    Args:
        columns: of the tensor; element i of a row lies in column (first + i) mod columns.
    """
    models, size = len(rows), math.prod(rows[0].shape)
    out = np.empty((-(-size // leaf), models, models, columns))
    _memory(library().cuvee_column_products(_as_c(rows), models, size, leaf, columns, first, _at(out)))
    return out


def count_high(
    row: Row, magnitude: bool, leaf: int, shares: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return `order.high_counts`, and what `order.equal_in_windows` looks into.

    Args:
        shares: T of the keys; around the digits that these of the first leaf reach from above, short keys are counted by leaf.

    Returns:
        (2, 65536), or (2, 32768) of magnitudes; (leaves, T, 1 + WINDOW).
    """
    size, wanted = math.prod(row.shape), np.array(shares, np.float64)
    counts = np.empty((2, 1 << 16 >> magnitude), np.int64)
    windows = np.zeros((-(-size // leaf), len(wanted), 1 + WINDOW), np.int32)
    arguments = (size, leaf, _at(wanted), len(wanted), _at(counts), _at(windows))
    _memory(library().cuvee_count_high(_as_c([row]), magnitude, *arguments))
    return counts, windows


def select(row: Row, magnitude: bool, k: int, leaf: int) -> tuple[int, int, NDArray[np.int64]] | None:
    """Return the k-th largest key, 1 ≤ k ≤ n, how many keys are above it, and how many of each leaf are equal to it.

    None where its sample misled it. No step of the row may count.
    """
    size = math.prod(row.shape)
    key, above, equal = np.empty(1, np.uint32), np.empty(1, np.int64), np.empty(-(-size // leaf), np.int64)
    found = library().cuvee_select(_as_c([row]), magnitude, size, k, leaf, _at(key), _at(above), _at(equal))
    return (int(key[0]), int(above[0]), equal) if _memory(found) else None


def count_low(row: Row, magnitude: bool, highs: Sequence[int], counts: NDArray[np.int64]) -> None:
    """Add the counts of the low digits of the keys whose high digit is one of P `highs` to its row of `counts` (P, 65536)."""
    prefixes = np.array(highs, np.uint32)
    library().cuvee_count_low(_as_c([row]), magnitude, _at(prefixes), len(highs), math.prod(row.shape), _at(counts))


def count_equal(row: Row, magnitude: bool, key: int, leaf: int) -> NDArray[np.int64]:
    """Return how many keys of each leaf are `key`."""
    size = math.prod(row.shape)
    out = np.empty(-(-size // leaf), np.int64)
    library().cuvee_count_equal(_as_c([row]), magnitude, key, size, leaf, _at(out))
    return out


def draws(key: tuple[int, int], start: int, stop: int) -> NDArray[np.uint32]:
    """`tensors.draws.drawn_words`."""
    out = np.empty(stop - start, np.uint32)
    library().cuvee_draws(*key, start, out.size, _at(out))
    return out


def bernoulli(key: tuple[int, int], start: int, stop: int, limit: int) -> NDArray[np.bool_]:
    """Return for the elements `[start, stop)` whether their draw is below `limit`."""
    out = np.empty(stop - start, np.bool_)
    library().cuvee_bernoulli(*key, start, out.size, limit, _at(out))
    return out


def keep(mask: T, values: T, out: T | None = None) -> T:
    """`tensors.masking.keep_where`: (…) bool and (…) into (…)."""
    flat, result = _flat(values), _like(values, np.empty(tuple(values.shape), np.float32)) if out is None else out
    library().cuvee_keep(_at(_flat(mask)), _at(flat), flat.size, _at(_flat(result)))
    return result


def rank_drop(row: Row, key: tuple[int, int], start: int, limits: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """`pieces.drop`: whether an element is not zero, and its draw below the limit of its magnitude's rank.

    Args:
        row: n · length elements, ranked in runs of `length`, the lower index first among equals.
        key: of the draws, of which the first element's is the one at `start`.
        limits: (length,) a rising line, rounded.

    Returns:
        (n · length,).
    """
    length, out = len(limits), np.empty(math.prod(row.shape), np.bool_)
    rows = out.size // length
    _memory(library().cuvee_rank_drop(_as_c([row]), *key, start, _at(limits), rows, length, _at(out)))
    return out


def largest_of_stretches(row: Row, free: NDArray[np.bool_], n: int, m: int, leaf: int) -> NDArray[np.bool_]:
    """`papers.cabs.largest_of_stretches`: (…).

    Args:
        free: shaped as the row: which elements may be chosen.
    """
    out = np.empty(row.shape, np.bool_)
    _memory(library().cuvee_largest_of_stretches(_as_c([row]), _at(free), out.size, leaf, n, m, _at(out)))
    return out


def _floats(numbers: Sequence[float]) -> Floats:
    return np.array(numbers, np.float32)


def _rivals(rows: Sequence[Row], clamps: Sequence[tuple[float, float]], raw: bool) -> Any:
    """Return a reference to the structure that says how K rows compete."""
    low, high, span = map(_floats, zip(*((low, high, high - low) for low, high in clamps), strict=True))
    found = c_library.Rivals(_as_c(rows), _at(low), _at(high), _at(span), len(rows), raw)
    found.held = low, high, span
    return ctypes.byref(found)


def pcb_count(
    rows: Sequence[Row],
    clamps: Sequence[tuple[float, float]],
    highs: Sequence[Sequence[int]] | None,
    *,
    raw: bool,
) -> NDArray[np.int64]:
    """Count digits of the keys of `papers.pcb_merging.scores_of`, as `count_high` and `count_low` do.

    Args:
        rows: K.
        clamps: K pairs (low, high).
        highs: the high digits of each model whose low digits are counted, P of all models together; None: count the high ones.
        raw: inter is raw_sum.

    Returns:
        (P, 65536); (K, 65536) of high digits.
    """
    each = np.array([1 if highs is None else len(of_one) for of_one in highs or rows], np.int64)
    prefixes = None if highs is None else np.array([high for of_one in highs for high in of_one], np.uint32)
    out = np.zeros((each.sum(), 1 << 16), np.int64)
    size, rivals = math.prod(rows[0].shape), _rivals(rows, clamps, raw)
    _memory(library().cuvee_pcb_count(rivals, size, _at(prefixes), _at(each), _at(out)))
    return out


def pcb_balance(
    rows: Sequence[Row],
    clamps: Sequence[tuple[float, float]],
    ends: Sequence[tuple[float, float]],
    weights: Sequence[float],
    *,
    raw: bool,
) -> Floats:
    """`papers.pcb_merging.balanced`: K rows into (…).

    Args:
        clamps, ends: K pairs (low, high) of magnitudes, and of scores.
        weights: K.
        raw: inter is raw_sum.
    """
    size, out = math.prod(rows[0].shape), np.empty(rows[0].shape, np.float32)
    floors, spans = map(_floats, zip(*((floor, top - floor) for floor, top in ends), strict=True))
    factors, rivals = _floats(weights), _rivals(rows, clamps, raw)
    _memory(library().cuvee_pcb_balance(rivals, size, _at(floors), _at(spans), _at(factors), _at(out)))
    return out
