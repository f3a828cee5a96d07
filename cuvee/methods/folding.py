"""What a measurement is, and how the partials of blocks become one, whatever the blocks and their order.

A reduction says what is measured of values and what follows from the fold; the folds are of one tensor, or of several.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Accumulator", "Again", "Done", "Fold", "Miss", "Reduction", "Wide"]

Fold = Literal["count", "sum", "concat"]


@dataclass(frozen=True)
class Done:
    """The measurement is finished."""

    value: Any


@dataclass(frozen=True)
class Again:
    """The measurement needs one more look at the values, with this state."""

    state: Any


class Reduction(Protocol):
    """What is measured. A frozen dataclass, so that equal ones are one measurement.

    `fold` says how partials become one: "count" (whole numbers, added in any order), "sum" (float64, leaf after leaf
    in order), "concat" (one entry a leaf, in order). `stacked` says that values have a leading dimension of K models.
    A reduction may also have `at_once(values, place)`: the value of a tensor that is all here, or None; and
    `of_stored(given, leaf, state)`: the partials of V blocks that were not decoded (each a row, or K of them where it is
    stacked), (leaves, V, …) or (1, V, …) where whole numbers are counted, or None where they must be decoded;
    and `columns_of_stored(given, place)`: the same along dimension 0.
    """

    stacked: ClassVar[bool]

    def fold(self, state: Any) -> Fold:
        """Return how the partials of this stage are folded."""
        ...

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[Any]:
        """Return the partial of `values` (…, n), float32 or float64, reduced along `axis`."""
        ...

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        """Return the value, or the state for one more look; `numel` elements were measured."""
        ...


@dataclass
class Miss:
    """A measurement that a block has added to: its partials by leaf index, and the elements measured."""

    reduction: Reduction
    state: Any
    partials: list[tuple[int, NDArray[Any]]]
    numel: int


class Accumulator:
    """Folds the partials of one measurement over the blocks of one tensor, which may come in any order; they are its own."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.numel = 0
        self._total: Any = None
        self._waiting: dict[int, NDArray[Any]] = {}
        self._next = 0

    def add(self, miss: Miss) -> None:
        """Add the partials of one block."""
        self.numel += miss.numel
        if self.fold == "concat":
            self._waiting.update(miss.partials)
            return
        if self.fold == "count":
            for _, partial in miss.partials:
                self._total = _added(self._total, partial)
            return
        self._waiting.update(miss.partials)
        while self._next in self._waiting:
            partial = self._waiting.pop(self._next)
            self._total = partial if self._total is None else self._total + partial
            self._next += 1

    def folded(self, tensor: str) -> Any:
        """Return the fold; for "concat" a list of one (tensor, array)."""
        if self.fold == "concat":
            return [(tensor, np.array([self._waiting[index] for index in sorted(self._waiting)]))]
        return self._total


def _added(total: Any, counts: Any) -> Any:
    """Return their sum, in the memory of the first."""
    if total is None:
        return counts
    total += counts
    return total


@dataclass
class Wide:
    """A measurement over several tensors: their folds, joined in the order of their names.

    Whole numbers have no order: they are added as they come, so that a thousand tensors keep one table of counts.
    """

    reduction: Reduction
    state: Any
    numel: int = 0
    _folds: dict[str, Any] = field(default_factory=dict)

    def add(self, tensor: str, accumulator: Accumulator) -> None:
        """Add what was measured of one tensor."""
        fold = accumulator.folded(tensor)
        self.numel += accumulator.numel
        if accumulator.fold == "count":
            tensor, fold = "", _added(self._folds.get(""), fold)
        self._folds[tensor] = fold

    def finish(self) -> Done | Again:
        """Join the parts and ask the reduction what follows."""
        folds = [self._folds[name] for name in sorted(self._folds, key=lambda name: name.encode("utf-8"))]
        if self.reduction.fold(self.state) == "concat":
            return self.reduction.next([entry for fold in folds for entry in fold], self.state, self.numel)
        total = folds[0]
        for fold in folds[1:]:
            total = total + fold
        return self.reduction.next(total, self.state, self.numel)
