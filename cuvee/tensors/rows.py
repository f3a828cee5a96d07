"""Rows: the elements of one model as they are stored, and what is done to them when a kernel reads them.

A filter of a task vector need not make a new one: it adds a step, and the kernels that measure or combine a row decode it in
the cache, a thousand elements at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Act", "Row", "Step"]


class Act(IntEnum):
    """What a step does; the numbers are those of `_kernels.c`."""

    KEEP_LARGEST = 0
    DROP_LARGEST = 1
    KEEP_MASK = 2
    MULTIPLY = 3
    DIVIDE = 4


@dataclass(frozen=True)
class Step:
    """One change of every element.

    Attributes:
        act: what is done.
        number: the threshold, the factor or the divisor, rounded to float32.
        ties: (all_before, few_until, few) of a threshold, see `kernels.threshold`.
        mask: (n,) bool, of `KEEP_MASK`.
    """

    act: Act
    number: float = 0.0
    ties: tuple[int, int, int] = (0, 0, 0)
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A block of one model that nobody has decoded yet; float32 to those who ask.

    Attributes:
        source: its elements, contiguous, of `kind`.
        kind: one of `kernels.KINDS`.
        shape: (…).
        base: what is subtracted; without a base and steps of its own.
        steps: done in this order.
    """

    source: NDArray[Any]
    kind: str
    shape: tuple[int, ...]
    base: Row | None = None
    steps: tuple[Step, ...] = ()

    dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def then(self, act: Act, number: float = 0.0, **details: Any) -> Row:
        """Return the row with one more step."""
        return replace(self, steps=(*self.steps, Step(act, float(number), **details)))

    def __mul__(self, number: float) -> Row:
        return self.then(Act.MULTIPLY, number)

    def __truediv__(self, number: float) -> Row:
        return self.then(Act.DIVIDE, number)

    @property
    def counts(self) -> bool:
        """True when a step counts equal elements, so that only a whole pass gives the right ones."""
        return any(step.ties[2] for step in self.steps)
