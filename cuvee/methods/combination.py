"""Blocks that nobody has decoded yet: a method that only combines them never makes float32 copies of them.

A method marked `arrays=True` is given `Stored` values. What measures them decodes them; what combines them (`weighted_sum`)
gives a `Combination`, which the engine makes from the raw bytes in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Combination", "Matrices", "Stored", "plain"]


@dataclass
class Stored:
    """The K blocks that a method is given, as they are stored; (K, …) like the array that they stand for.

    Attributes:
        shape: (K, …).
        decode: makes that array, float32.
        products: makes the Gram matrix of each leaf of so many elements, (leaves, K, K), without it.
    """

    shape: tuple[int, ...]
    decode: Callable[[], NDArray[Any]]
    products: Callable[[int], NDArray[Any]]
    _values: NDArray[Any] | None = field(default=None, repr=False)

    @property
    def values(self) -> NDArray[Any]:
        """The array, decoded once."""
        if self._values is None:
            self._values = self.decode()
        return self._values

    def __len__(self) -> int:
        return self.shape[0]

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


@dataclass(frozen=True)
class Combination:
    """Σ weights_k · values_k / divisor, not computed yet."""

    weights: Sequence[float]
    divisor: float


def plain(values: Any) -> Any:
    """Return values as an array or a tensor: stored ones decoded, matrices loaded."""
    return values.values if isinstance(values, Stored | Matrices) else values
