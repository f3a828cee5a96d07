"""What is measured: sums, Gram matrices, counts and exact ranks, each an ordered reduction over blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from cuvee.methods.calls import Place, current
from cuvee.methods.combination import Stored, plain
from cuvee.methods.folding import Again, Done, Fold
from cuvee.tensors import kernels
from cuvee.tensors.either import as_tensor, number_of
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.order import (
    DIGIT,
    count_equal,
    digit_counts,
    equal_in_windows,
    high_counts,
    kth_largest,
    value_of_key,
)
from cuvee.tensors.rows import Row
from cuvee.tensors.sums import lane_sum, magnitude_sum, product_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Gram", "MeanOfTensors", "Ranked", "Ranks", "Shared", "Sums"]


def _wide_sum(values: Any, axis: int) -> NDArray[np.float64]:
    """Return sums in float64 along an axis: in lanes along a row, one after the other along a column."""
    if not isinstance(values, np.ndarray):
        return values.sum(axis).cpu().numpy()
    return lane_sum(values) if axis == -1 else np.add.reduce(values, axis=axis)


def _as_array(values: Any) -> NDArray[Any] | None:
    """Return an array, or a tensor on the CPU, as an array without a copy; None for a tensor elsewhere."""
    if isinstance(values, np.ndarray):
        return values
    return values.numpy() if values.device.type == "cpu" else None


def _count_nonzero(values: Any) -> int:
    """Return how many values are not zero: those whose magnitude has another key than 0."""
    if isinstance(values, Row):
        return number_of(values) - int(kernels.count_equal(values, True, 0, max(1, number_of(values))).sum())
    return number_of(values) - int(count_equal(values.reshape(1, -1), True, [0])[0, 0])


def _widened(values: Any) -> Any:
    array = _as_array(values)
    return values.double() if array is None else array.astype(np.float64)


@dataclass(frozen=True)
class Sums:
    """Σ|x| ("abs"), Σx² ("square"), the number of x ≠ 0 ("nonzero") or Σ sgn(x) ("sign"); shape (…)."""

    of: Literal["abs", "square", "nonzero", "sign"]

    stacked: ClassVar[bool] = False

    def fold(self, state: Any) -> Fold:
        return "count" if self.of in ("nonzero", "sign") else "sum"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[Any]:
        if self.of in ("nonzero", "sign"):
            values = as_tensor(values)
        if self.of == "nonzero":
            return torch.count_nonzero(values, axis).cpu().numpy()
        if self.of == "sign":
            return torch.sign(values).to(torch.int64).sum(axis).cpu().numpy()
        found = _as_array(values)
        if found is not None and axis == -1:
            return np.asarray(magnitude_sum(found) if self.of == "abs" else product_sums(found[None])[0, 0])
        wide = _widened(values)
        return _wide_sum(abs(wide) if self.of == "abs" else wide * wide, axis)

    def of_stored(self, given: Sequence[Row], leaf: int, state: Any) -> NDArray[Any] | None:
        return kernels.lane_sums(given, leaf, square=self.of == "square") if self.of in ("abs", "square") else None

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        return Done(folded)


@dataclass(frozen=True)
class MeanOfTensors:
    """The mean over tensors of a number that each of them says once: all values of its block are that number."""

    stacked: ClassVar[bool] = False

    def fold(self, state: Any) -> Fold:
        return "concat"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.float64]:
        return np.asarray(as_tensor(values).select(axis, 0).double().cpu())

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        said = [float(leaves.flat[0]) for _, leaves in folded]
        return Done(sum(said) / len(said))


@dataclass(frozen=True)
class Shared:
    """How many entries of each of K vectors are not zero, where others are not zero too, and where none is: (2, K)."""

    stacked: ClassVar[bool] = True

    def fold(self, state: Any) -> Fold:
        return "count"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.int64]:
        changed = as_tensor(values) != 0
        count = changed.sum(0)
        return torch.stack([(changed & (count > 1)).sum(axis), (changed & (count == 1)).sum(axis)]).cpu().numpy()

    def of_stored(self, given: Sequence[Stored], leaf: int, state: Any) -> NDArray[np.int64]:
        return np.stack([kernels.count_shared(values.rows) for values in given])[None]

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        return Done(folded)


@dataclass(frozen=True)
class Gram:
    """G_ij = ⟨x_i, x_j⟩ of K vectors, float64; values (K, …, n), result (K, K, …)."""

    stacked: ClassVar[bool] = True

    def fold(self, state: Any) -> Fold:
        return "sum"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.float64]:
        found = _as_array(values)
        if found is not None and axis == -1:
            return product_sums(found)
        wide = _widened(values)
        rows = [[_wide_sum(wide[i] * wide[j], axis) for j in range(i + 1)] for i in range(len(values))]
        return np.array([[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))])

    def of_stored(self, given: Sequence[Stored], leaf: int, state: Any) -> NDArray[np.float64]:
        return np.stack([kernels.product_sums(values.rows, leaf) for values in given], axis=1)

    def columns_of_stored(self, given: Sequence[Stored], place: Place) -> NDArray[np.float64] | None:
        shape, leaf = place.layout.shape, place.layout.leaf
        columns = math.prod(shape[1:])
        if columns < 2:  # NumPy would sum a single column pairwise
            return None
        found = [kernels.column_products(v.rows, leaf, columns, place.start % columns) for v in given]
        return np.stack(found, axis=1)

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        return Done(folded)


@dataclass(frozen=True)
class Ranked:
    """The k largest of n values, exactly, the lower index first among equals.

    Attributes:
        value: the k-th largest value; NaN when k = 0, which no value reaches (Inf would be reached by Inf).
        tie: (tensor, leaf, count): of the values equal to it, those in earlier leaves are among the k, and the first
            `count` of this leaf; None when all of them are.
    """

    value: float
    tie: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class _Target:
    """One rank on its way: `remaining` more are wanted among the keys that begin with `prefix`."""

    prefix: int | None
    remaining: int


@dataclass(frozen=True)
class _Stage:
    digit: int
    targets: tuple[_Target, ...]

    @property
    def prefixes(self) -> list[int]:
        return list(dict.fromkeys(target.prefix or 0 for target in self.targets if target.remaining))


@dataclass(frozen=True)
class _Ties:
    targets: tuple[_Target, ...]
    all_of_them: tuple[bool, ...]

    @property
    def keys(self) -> list[int]:
        return [t.prefix or 0 for t, whole in zip(self.targets, self.all_of_them, strict=True) if not whole]


@dataclass(frozen=True)
class Ranks:
    """The k-th largest value for one or several k, exactly: radix selection on the bits, 16 at a time.

    Differences of bf16 numbers mostly end with the first 16 bits; where the k-th does, one look is enough.

    Args:
        counts: called with n, returns the k's (0 ≤ k ≤ n); a frozen value, so that equal ones are one measurement.
        magnitude: rank |x| instead of x.
        resolve_ties: find which of the equal values are among the k; without, `Ranked.tie` is None.
        digits: 2 for float32 values, 4 for float64.
        of_nonzero: `counts` is called with the number of values that are not zero.
    """

    counts: Any
    magnitude: bool = True
    resolve_ties: bool = True
    digits: int = 2
    of_nonzero: bool = False

    stacked: ClassVar[bool] = False

    def fold(self, state: Any) -> Fold:
        return "concat" if isinstance(state, _Ties) else "count"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[Any]:
        if isinstance(state, _Ties):
            return count_equal(values, self.magnitude, state.keys)
        if state is None:
            return high_counts(values, self.magnitude, self.digits)
        return digit_counts(values, self.magnitude, state.prefixes, state.digit)

    def of_stored(self, given: Sequence[Row], leaf: int, state: Any) -> NDArray[Any]:
        if isinstance(state, _Ties):
            ties = [
                [self._equal_by_leaf(one, number, key, leaf) for key in state.keys] for number, one in enumerate(given)
            ]
            return np.moveaxis(np.array(ties), -1, 0)
        if state is None and self.resolve_ties:
            counted = [self._high_counts(one, number, leaf) for number, one in enumerate(given)]
        else:
            counted = [self.measure(one, -1, state) for one in given]  # type: ignore[arg-type]
        return counted[0][None, None] if len(counted) == 1 else np.stack(counted)[None]  # they are large

    def _high_counts(self, one: Row, number: int, leaf: int) -> NDArray[np.int64]:
        """Return `high_counts`; what was seen around the ranks on the way is kept: it mostly says where the ties are."""
        call = current()
        numel = call.place.layout.numel
        shares = [k / numel for k in self.counts(numel)] if call.memory else []
        counts, windows = kernels.count_high(one, self.magnitude, leaf, shares)
        if call.memory:
            call.memory.put(call.place.tensor, (call.measuring, number, call.place.start), windows)
        return counts

    def _equal_by_leaf(self, one: Row, number: int, key: int, leaf: int) -> NDArray[np.int64]:
        call = current()
        kept = (call.measuring, number, call.place.start)
        windows = call.memory.get(call.place.tensor, kept) if call.memory else None
        found = None if windows is None else equal_in_windows(windows, key)
        return kernels.count_equal(one, self.magnitude, key, leaf) if found is None else found

    def at_once(self, values: Any, place: Place) -> tuple[Ranked, ...] | None:
        """Return the ranks of a tensor that is all here, in a pass or two; None where it takes the counting of digits."""
        if isinstance(values, Row) and values.counts:
            values = plain(values)
        numel = _count_nonzero(values) if self.of_nonzero else number_of(values)
        ranked = [self._select(values, place, k) for k in self.counts(numel)]
        return None if None in ranked else tuple(r for r in ranked if r)

    def _select(self, values: Any, place: Place, k: int) -> Ranked | None:
        if k == 0:
            return Ranked(float("nan"))
        found = kth_largest(values, self.magnitude, k, place.layout.leaf)
        if found is None:
            return None
        key, above, by_leaf = found
        ranked = Ranked(value_of_key(key, self.digits, self.magnitude))
        if not self.resolve_ties or k - above == by_leaf.sum():
            return ranked
        return Ranked(ranked.value, _place_tie([(place.tensor, by_leaf[:, None])], 0, k - above))

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        if isinstance(state, _Ties):
            return Done(self._ranked(state, folded))
        if state is None:
            return self._next_to_high(folded, numel)
        rows = dict(zip(state.prefixes, folded, strict=True))
        found = [_descend(target, rows.get(target.prefix)) for target in state.targets]
        targets = tuple(target for target, _ in found)
        if state.digit > 0 and any(t.remaining for t in targets):
            return Again(_Stage(state.digit - 1, targets))
        return self._last(found)

    def _next_to_high(self, folded: NDArray[np.int64], numel: int) -> Done | Again:
        counts, short = folded
        zeros = int(short[0 if self.magnitude else 1 << (DIGIT - 1)])
        wanted = self.counts(numel - zeros if self.of_nonzero else numel)
        high = [_descend(_Target(None, k), counts) for k in wanted]
        found = [_end_short(target, equal, short, DIGIT * (self.digits - 1)) for target, equal in high]
        ended = [one for one in found if one]
        if len(ended) == len(high):
            return self._last(ended)
        return Again(_Stage(self.digits - 2, tuple(target for target, _ in high)))

    def _last(self, found: Sequence[tuple[_Target, int]]) -> Done | Again:
        whole = tuple(not self.resolve_ties or target.remaining in (0, equal) for target, equal in found)
        ties = _Ties(tuple(target for target, _ in found), whole)
        return Done(self._ranked(ties, [])) if all(whole) else Again(ties)

    def _ranked(self, ties: _Ties, folded: Any) -> tuple[Ranked, ...]:
        ranked = []
        column = 0
        for target, whole in zip(ties.targets, ties.all_of_them, strict=True):
            if target.remaining == 0:
                ranked.append(Ranked(float("nan")))
                continue
            value = value_of_key(target.prefix or 0, self.digits, self.magnitude)
            ranked.append(Ranked(value, None if whole else _place_tie(folded, column, target.remaining)))
            column += not whole
        return tuple(ranked)


def _descend(target: _Target, row: Any) -> tuple[_Target, int]:
    """Return the target one digit further, and the number of keys that begin with its new prefix.

    Args:
        row: how many keys that begin with its prefix have each next digit.
    """
    if target.remaining == 0:
        return target, 0
    reached = np.cumsum(row[::-1])
    step = int(np.searchsorted(reached, target.remaining))
    digit = len(row) - 1 - step
    above = int(reached[step - 1]) if step else 0
    prefix = ((target.prefix or 0) << DIGIT) | digit
    return _Target(prefix, target.remaining - above), int(row[digit])


def _end_short(target: _Target, equal: int, short: NDArray[np.int64], bits: int) -> tuple[_Target, int] | None:
    """Return the target at its key, and the number of equal ones; None where it is not a short one.

    Args:
        equal: how many keys begin with the target's prefix.
        short: how many keys with each high digit have only zeros behind it: the least of them.
        bits: behind the high digit.
    """
    if target.remaining == 0:
        return target, 0
    high = target.prefix or 0
    longer = equal - int(short[high])
    if target.remaining <= longer:
        return None
    return _Target(high << bits, target.remaining - longer), int(short[high])


def _place_tie(folded: Any, column: int, remaining: int) -> tuple[str, int, int]:
    """Return (tensor, leaf, count) where the last of `remaining` equal values lies."""
    for tensor, leaves in folded:
        for leaf, count in enumerate(leaves[:, column]):
            if remaining <= count:
                return tensor, leaf, remaining
            remaining -= int(count)
    raise AssertionError("fewer equal values than were counted")
