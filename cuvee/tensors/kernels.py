"""Hand-written CPU kernels, compiled by numba where it is installed (`pip install cuvee[kernels]`).

Each stands behind one piece, whose definition in PyTorch or NumPy it equals bit for bit (tests/differential); it is there
because `make bench-merge` shows that it pays. `CUVEE_KERNELS=0` turns them off. Compiled code is cached on disk.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "available",
    "consensus_kernel",
    "count_digit",
    "count_digit_below",
    "disabled",
    "magnitude_sum_kernel",
    "product_sums_kernel",
    "rank_drop_kernel",
    "threshold_kernel",
    "variance_kernel",
]

_CHUNK = 512


class _Here(threading.local):
    off = False


_here = _Here()


@functools.cache
def _installed() -> bool:
    return os.environ.get("CUVEE_KERNELS", "1") != "0" and importlib.util.find_spec("numba") is not None


def available() -> bool:
    """True when kernels can be compiled."""
    return not _here.off and _installed()


@contextmanager
def disabled() -> Iterator[None]:
    """Leave them aside in this thread: on a few elements, importing numba would be all the time there is."""
    before, _here.off = _here.off, True
    try:
        yield
    finally:
        _here.off = before


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call: importing numba takes 0.2 s."""

    @functools.cache
    def compile_once() -> Callable[..., Any]:
        import numba

        return numba.njit(nogil=True, cache=True)(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return compile_once()(*args)

    return call


@_compiled
def count_digit(bits: NDArray[np.uint32], mask: int, shift: int, counts: NDArray[np.int64]) -> None:
    """Add the counts of `((bits & mask) >> shift) & 0xffff` to `counts` (65536,)."""
    kept = np.uint32(mask)
    for i in range(bits.size):
        counts[((bits[i] & kept) >> shift) & 0xFFFF] += 1


@_compiled
def count_digit_below(bits: NDArray[np.uint32], mask: int, prefix: int, counts: NDArray[np.int64]) -> None:
    """Add the counts of the low digit of the keys `bits & mask` whose high digit is `prefix`."""
    kept, wanted = np.uint32(mask), np.uint32(prefix)
    chosen = np.empty(_CHUNK, np.uint32)
    for begin in range(0, bits.size, _CHUNK):
        source = bits[begin : min(begin + _CHUNK, bits.size)]
        count = 0
        for i in range(source.size):  # without a branch: which keys match cannot be predicted
            key = source[i] & kept
            chosen[count] = key
            count += (key >> 16) == wanted
        for i in range(count):
            counts[chosen[i] & 0xFFFF] += 1


@_compiled
def product_sums_kernel(values: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """`tensors.sums.product_sums`: out[i, j] = Σ x_i x_j in float64 over 256 lanes, for j ≤ i; (K, n) into (K, K)."""
    models, size = values.shape
    wide = np.zeros((models, 256), np.float64)
    lanes = np.zeros((models, models, 256), np.float64)
    for begin in range(0, size, 256):
        end = min(begin + 256, size)
        for i in range(models):
            source, target = values[i, begin:end], wide[i]
            for lane in range(source.size):
                target[lane] = source[lane]
            for lane in range(source.size, 256):
                target[lane] = 0.0
        for i in range(models):
            for j in range(i + 1):
                x, y, total = wide[i], wide[j], lanes[i, j]
                for lane in range(256):
                    total[lane] += x[lane] * y[lane]
    for i in range(models):
        for j in range(i + 1):
            total = lanes[i, j]
            result = 0.0
            for lane in range(256):
                result += total[lane]
            out[i, j] = result


@_compiled
def magnitude_sum_kernel(values: NDArray[np.float32]) -> float:
    """`tensors.sums.magnitude_sum`: Σ |x| in float64 over 256 lanes; (n,)."""
    lanes = np.zeros(256, np.float64)
    for begin in range(0, values.size, 256):
        source = values[begin : min(begin + 256, values.size)]
        for lane in range(source.size):
            lanes[lane] += abs(np.float64(source[lane]))
    result = 0.0
    for lane in range(256):
        result += lanes[lane]
    return result


@_compiled
def threshold_kernel(
    values: NDArray[np.float32], threshold: float, all_before: int, few_until: int, few: int, out: NDArray[np.float32]
) -> None:
    """`pieces.trim.keep_among`: values whose magnitude is above the threshold, and of those equal to it all before
    `all_before` and the first `few` of those before `few_until`; the others zero; (n,) into (n,)."""
    limit, zero = np.float32(threshold), np.float32(0.0)
    head, head_out = values[:all_before], out[:all_before]
    for i in range(head.size):
        value = head[i]
        head_out[i] = value if abs(value) >= limit else zero
    middle, middle_out = values[all_before:few_until], out[all_before:few_until]
    for i in range(middle.size):
        value = middle[i]
        size = abs(value)
        take = size > limit
        if size == limit and few > 0:
            take = True
            few -= 1
        middle_out[i] = value if take else zero
    tail, tail_out = values[few_until:], out[few_until:]
    for i in range(tail.size):
        value = tail[i]
        tail_out[i] = value if abs(value) > limit else zero


@_compiled
def consensus_kernel(
    deltas: NDArray[np.float32],
    votes: NDArray[np.float32],
    weights: NDArray[np.float32],
    normalize: bool,
    floor: float,
    out: NDArray[np.float32],
) -> None:
    """`pieces.vote.weigh_consensus`: (K, n) float32 into (n,)."""
    models, size = deltas.shape
    signs = np.empty(_CHUNK, np.float32)
    merged = np.empty(_CHUNK, np.float32)
    divisor = np.empty(_CHUNK, np.float32)
    zero, one, least = np.float32(0.0), np.float32(1.0), np.float32(floor)
    for begin in range(0, size, _CHUNK):
        end = min(begin + _CHUNK, size)
        signs[:] = zero
        for k in range(models):
            delta, vote = deltas[k, begin:end], votes[k]
            for i in range(delta.size):
                signs[i] += delta[i] * vote
        for i in range(_CHUNK):
            signs[i] = one if signs[i] >= zero else -one
        merged[:] = zero
        divisor[:] = zero
        for k in range(models):
            delta, vote, w = deltas[k, begin:end], votes[k], weights[k]
            for i in range(delta.size):
                agrees = delta[i] * vote * signs[i] > zero
                merged[i] += delta[i] * w if agrees else zero
                divisor[i] += w if agrees else zero
        target = out[begin:end]
        if not normalize:
            for i in range(target.size):
                target[i] = merged[i]
        elif least > zero:
            for i in range(target.size):
                target[i] = merged[i] / (least if divisor[i] < least else divisor[i])
        else:
            for i in range(target.size):
                target[i] = merged[i] / (one if divisor[i] == zero else divisor[i])


@_compiled
def variance_kernel(deltas: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """`papers.sce.variance`: the population variance over K models, (K, n) float32 into (n,)."""
    models, size = deltas.shape
    count = np.float32(models)
    zero = np.float32(0.0)
    center = np.empty(_CHUNK, np.float32)
    for begin in range(0, size, _CHUNK):
        end = min(begin + _CHUNK, size)
        target = out[begin:end]
        center[:] = zero
        for k in range(models):
            delta = deltas[k, begin:end]
            for i in range(delta.size):
                center[i] += delta[i]
        for i in range(_CHUNK):
            center[i] = center[i] / count
        for i in range(target.size):
            target[i] = zero
        for k in range(models):
            delta = deltas[k, begin:end]
            for i in range(delta.size):
                away = delta[i] - center[i]
                target[i] += away * away
        for i in range(target.size):
            target[i] = target[i] / count


@_compiled
def rank_drop_kernel(
    keys: NDArray[np.uint32],
    ordered: NDArray[np.uint32],
    drawn: NDArray[np.uint32],
    limits: NDArray[np.uint32],
    keep: NDArray[np.bool_],
) -> None:
    """`pieces.drop`: keep[r, j] = drawn[r, j] < limits[rank of keys[r, j] in its row], for keys above zero.

    Args:
        keys: (rows, length) magnitudes' keys; entries that are zero are not kept, which changes nothing.
        ordered: the rows sorted.
        drawn: (rows, length).
        limits: (length,) not falling.
        keep: (rows, length), the result.
    """
    rows, length = keys.shape
    lowest, highest = limits[0], limits[length - 1]
    steps = (length - 1) / max(1.0, float(highest) - float(lowest))
    for r in range(rows):
        row, sorted_row, draws, kept = keys[r], ordered[r], drawn[r], keep[r]
        for j in range(length):
            u, key = draws[j], row[j]
            if u < lowest:
                kept[j] = key != 0
                continue
            if u >= highest or key == 0:
                kept[j] = False
                continue
            # The first rank whose limit is above the draw: near the straight line that the limits round.
            need = int((float(u) - float(lowest)) * steps)
            while need > 0 and limits[need - 1] > u:
                need -= 1
            while limits[need] <= u:
                need += 1
            pivot = sorted_row[need]
            if key != pivot:
                kept[j] = key > pivot
                continue
            rank = np.searchsorted(sorted_row, key)
            for i in range(j):
                rank += row[i] == key
            kept[j] = rank >= need
