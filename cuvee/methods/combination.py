"""Blocks that nobody has decoded yet: a method that measures, filters and combines them makes no float32 copies of them.

A method marked `arrays=True` is given `Stored` values. A filter adds a step to a row, a reduction reads rows in the cache, and
what combines them gives a `Combination`, which the engine makes from the raw bytes in one pass. Whoever needs the values
themselves asks for them by `plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.calls import active
from cuvee.tensors import kernels
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Combination, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Matrices", "Stored", "beside", "by_model", "in_places", "plain", "spread"]


class Stored:
    """The K rows that a method is given; (K, …) like the array that they stand for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self.shape = (len(self.rows), *self.rows[0].shape)
        self.dtype = Row.dtype
        self._values: NDArray[Any] | None = None

    @property
    def values(self) -> NDArray[Any]:
        """The array, decoded once."""
        if self._values is None:
            if (call := active()) is not None:
                call.decodes = True
            self._values = np.empty(self.shape, np.float32)
            for row, values in zip(self.rows, self._values, strict=True):
                kernels.load(row, values)
        return self._values

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return self.values[index]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(self.values)


@dataclass(frozen=True)
class Matrices(Sequence["Tensor"]):
    """The K matrices of one tensor, of which none is in memory: each is made anew when it is asked for.

    Attributes:
        shape: (K, m, n).
        load: makes matrix k, (m, n), which is the caller's to change.
    """

    shape: tuple[int, int, int]
    load: Callable[[int], Tensor]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self.load(i) for i in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        return self.load(k % len(self))

    @property
    def values(self) -> Tensor:
        """All of them in memory, (K, m, n)."""
        first = self[0]
        stack = first.new_empty(self.shape)
        stack[0] = first
        for k in range(1, len(self)):
            stack[k] = self[k]
        return stack


def spread(value: Any, count: int) -> list[Any]:
    """Return `value` as a list of one entry a model."""
    if isinstance(value, list | tuple):
        if len(value) != count:
            raise MethodError(f"{len(value)} values for {count} models", right=f"one value, or {count}")
        return list(value)
    return [value] * count


def in_places(order: Any, count: int) -> list[int]:
    """Return the numbers of the models in their order: `order` says the place of each; None as they are listed.

    Raises:
        MethodError: it names a place twice.
    """
    places = [k if place is None else int(place) for k, place in enumerate(spread(order, count))]
    if len(set(places)) < len(places):
        raise MethodError(
            f"the order {places} names a place twice",
            right="order: 0 among the parameters under the first model, order: 1 under the next; a list for all models is a "
            "gradient over the layers",
        )
    return sorted(range(count), key=lambda k: places[k])


def plain(values: Any) -> Any:
    """Return values as an array or a tensor: stored ones decoded, combinations made, matrices loaded."""
    if isinstance(values, Row):
        return kernels.load(values, np.empty(values.shape, np.float32))
    if isinstance(values, Combination):
        made = np.empty(values.rows[0].shape, np.float32)
        kernels.combine(values, made)
        return made
    return values.values if isinstance(values, Stored | Matrices) else values


def beside(values: Any, one: Any) -> Any:
    """Return (K + 1, …): K blocks (K, …) and one more (…), which is made where it is a combination."""
    if isinstance(values, Stored):
        return Stored([*values.rows, kernels.row_of(plain(one) if isinstance(one, Combination) else one)])
    return torch.cat([values, one[None]])


def by_model(values: Any) -> Sequence[Any]:
    """Return the K blocks of (K, …): of stored ones the rows; matrices are still loaded when they are asked for."""
    if isinstance(values, Matrices):
        return values
    return list(values.rows if isinstance(values, Stored) else values)
