"""Sort: order the values of K models, element by element, and average some of those in the middle."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.combination import plain
from cuvee.methods.pieces.combine import mean
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_trim", "mean_near", "median", "sorted_over_models", "trimmed"]


@functools.cache
def _network(count: int) -> tuple[tuple[int, int], ...]:
    """Return the comparators (low, high) that sort `count` values: Batcher's odd-even merge sort."""
    found = []
    p = 1
    while p < count:
        k = p
        while k:
            for j in range(k % p, count - k, 2 * k):
                for i in range(j, min(j + k, count - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        found.append((i, i + k))
            k //= 2
        p *= 2
    return tuple(found)


@functools.cache
def _comparators(count: int, wanted: frozenset[int]) -> tuple[tuple[int, int], ...]:
    """Return those comparators on which the places `wanted` depend."""
    needed, kept = set(wanted), []
    for low, high in reversed(_network(count)):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return tuple(reversed(kept))


def sorted_over_models(values: Tensor, wanted: Iterable[int] | None = None) -> list[Tensor]:
    """Return the K values of every element in ascending order.

    Args:
        values: (K, …), arrays or tensors.
        wanted: the places (0: the smallest) that must be right; None: all.

    Returns:
        K blocks (…), by place.
    """
    rows: list[Any] = list(plain(values))
    is_array = isinstance(rows[0], np.ndarray)
    smaller, larger = (np.minimum, np.maximum) if is_array else (torch.minimum, torch.maximum)
    places = frozenset(range(len(rows)) if wanted is None else wanted)
    for low, high in _comparators(len(rows), places):
        rows[low], rows[high] = smaller(rows[low], rows[high]), larger(rows[low], rows[high])
    return rows


def median(values: Tensor, *, lower: bool = False) -> Tensor:
    """Return the middle of the K values; of an even number the mean of both middles, or the `lower` one."""
    count = len(values)
    middle = ((count - 1) // 2,) if lower or count % 2 else (count // 2 - 1, count // 2)
    rows = sorted_over_models(values, middle)
    return rows[middle[0]] if len(middle) == 1 else (rows[middle[0]] + rows[middle[1]]) * 0.5


def trimmed(values: Tensor, f: int) -> Tensor:
    """Return the mean of what is left of the K values without the `f` smallest and the `f` largest.

    Source: Yin et al. 2018, arXiv 1803.01498, definition 2.
    """
    if f == 0:
        return mean(values)
    places = range(f, len(values) - f)
    rows = sorted_over_models(values, places)
    return _mean([rows[place] for place in places])


def mean_near(rows: Sequence[Tensor], center: Tensor, f: int) -> Tensor:
    """Return the mean of the K − f values that are closest to `center`; of two as far away, the smaller one.

    Args:
        rows: K blocks in ascending order.
        center: (…).
    """
    count = len(rows) - f
    kept = list(rows[:count])
    where: Any = np.where if isinstance(center, np.ndarray) else torch.where
    for place in range(f):  # the closest lie side by side: the window moves up as long as its lower end is the farther
        farther = center - rows[place] > rows[place + count] - center
        kept[place % count] = where(farther, rows[place + count], kept[place % count])
    return _mean(kept)


def _mean(rows: Sequence[Tensor]) -> Tensor:
    total = rows[0] * 1.0
    for row in rows[1:]:
        total += row
    total /= len(rows)
    return total


def check_trim(f: int, count: int, least: int) -> None:
    """Raise where `f` bad models of `count` are more than a method can bear, which takes `least` of them."""
    if count < least:
        bearable = max((g for g in range(f) if least - 2 * (f - g) <= count), default=0)
        raise MethodError(f"f is {f}, which takes {least} models, and there are {count}", right=f"f: {bearable}")
