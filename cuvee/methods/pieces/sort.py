"""Sort: order the values of K models, element by element, and average some of those in the middle."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cuvee.errors import MethodError
from cuvee.methods.combination import Stored
from cuvee.methods.pieces.combine import mean
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Combination, Middle, Rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_trim", "median", "middle", "sorted_over_models", "trimmed"]


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
    """Return the K values of every element in ascending order, all of them NaN where one is.

    Args:
        values: (K, …).
        wanted: the places (0: the smallest) that must be right; None: all.

    Returns:
        K blocks (…), by place.
    """
    rows = list(values)
    places = frozenset(range(len(rows)) if wanted is None else wanted)
    for low, high in _comparators(len(rows), places):
        a, b = rows[low], rows[high]
        # Not `minimum` and `maximum`: which of −0 and 0 these return differs from machine to machine.
        rows[low], rows[high] = torch.where((a <= b) | a.isnan(), a, b), torch.where((a > b) | a.isnan(), a, b)
    return rows


def middle(values: Tensor, first: int, last: int, nearest: int = 0) -> Tensor:
    """Return the mean of places [first, last) of the K values in ascending order.

    Args:
        values: (K, …).
        nearest: the mean of so many values, K/2 or more, that are closest to that mean is returned instead; of two as far
            away the smaller one is taken. 0: that mean itself.
    """
    count = len(values)
    wanted = frozenset(range(count) if nearest else range(first, last))
    if isinstance(values, Stored):
        which = Middle(_comparators(count, wanted), first, last, nearest)
        return Combination(values.rows, [1.0] * count, rule=Rule.MIDDLE, middle=which)
    rows = sorted_over_models(values, wanted)
    center = mean(torch.stack(rows[first:last]))
    if not nearest:
        return center
    # The closest lie side by side: the window moves up while its lower end is farther.
    for place in range(count - nearest):
        lower, upper = rows[place], rows[place + nearest]
        rows[place] = torch.where(center - lower > upper - center, upper, lower)
    return mean(torch.stack(rows[:nearest]))


def median(values: Tensor, *, lower: bool = False) -> Tensor:
    """Return the middle of the K values; of an even number the mean of both middles, or the `lower` one."""
    first = (len(values) - 1) // 2
    return middle(values, first, first + 1 if lower else len(values) // 2 + 1)


def trimmed(values: Tensor, f: int) -> Tensor:
    """Return the mean of what is left of the K values without the `f` smallest and the `f` largest.

    Source: Yin et al. 2018, arXiv 1803.01498, definition 2.
    """
    return middle(values, f, len(values) - f) if f else mean(values)


def check_trim(f: int, count: int, least: int) -> None:
    """Raise where `f` bad models of `count` are more than a method can bear, which takes `least` of them."""
    if count < least:
        bearable = max(0, f - (least - count + 1) // 2)  # each f takes two models
        raise MethodError(f"f is {f}, which takes {least} models, and there are {count}", right=f"f: {bearable}")
