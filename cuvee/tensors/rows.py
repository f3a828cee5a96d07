"""Rows: the elements of one model as they are stored, and what is done to them when a kernel reads them.

A filter of a task vector need not make a new one: it adds a step, and the kernels that measure or combine a row decode it in
the cache, a thousand elements at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Act", "Combination", "InFile", "Middle", "Row", "Rule", "Served", "Step"]


class Act(IntEnum):
    """What a step does; the numbers are those of `_kernels.c`."""

    KEEP_LARGEST = 0
    DROP_LARGEST = 1
    KEEP_MASK = 2
    MULTIPLY = 3
    DIVIDE = 4
    MULTIPLY_EACH = 5
    SHORTEN = 6


@dataclass(frozen=True)
class Step:
    """One change of every element.

    Attributes:
        act: what is done.
        number: the threshold, the factor, the divisor or the length of a step, rounded to float32.
        ties: (all_before, few_until, few) of a threshold, see `kernels.threshold`.
        mask: (n,) bool, of `KEEP_MASK`.
        factors: (F,) float32, of `MULTIPLY_EACH`: element i is taken times number (first + i) // run mod F of them.
        run, first: see factors.
    """

    act: Act
    number: float = 0.0
    ties: tuple[int, int, int] = (0, 0, 0)
    mask: NDArray[np.bool_] | None = None
    factors: NDArray[np.float32] | None = None
    run: int = 1
    first: int = 0


@dataclass(eq=False)
class InFile:
    """Raw elements that lie in a file until someone asks for them.

    Attributes:
        fd: the open file.
        offset: of the first element, in bytes.
        leaf: elements of a leaf; the first begins one.
        digests: (32 · leaves,) bytes for the leaves' digests, filled by whoever reads them first; None: nobody asks, nor
            for how many are not finite.
        load: reads and digests them, and says what is wrong where they cannot be read.
        found: told how many are NaN or infinite, when a kernel has read them instead.
    """

    fd: int
    offset: int
    leaf: int
    digests: NDArray[np.uint8] | None
    load: Callable[[], NDArray[np.uint8]]
    found: Callable[[int], None]
    _raw: NDArray[np.uint8] | None = None

    @property
    def raw(self) -> NDArray[np.uint8]:
        """The elements, read once; `cached_property` would let one thread read at a time."""
        if self._raw is None:
            self._raw = self.load()
        return self._raw

    @property
    def is_read(self) -> bool:
        """True when they are in memory."""
        return self._raw is not None


@dataclass(frozen=True, eq=False)
class Row:
    """A block of one model that nobody has decoded yet; float32 to those who ask.

    Attributes:
        source: its elements, contiguous, of `kind`, in memory or still in a file.
        kind: one of `kernels.KINDS`.
        shape: (…).
        base: what is subtracted; without a base and steps of its own.
        steps: done in this order.
    """

    source: NDArray[Any] | InFile
    kind: str
    shape: tuple[int, ...]
    base: Row | None = None
    steps: tuple[Step, ...] = ()

    dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def elements(self) -> NDArray[Any]:
        """Its elements in memory."""
        return self.source.raw if isinstance(self.source, InFile) else self.source

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


class Rule(IntEnum):
    """How a combination makes one value of the K of an element; the numbers are those of `_kernels.c`."""

    SUM = 0
    CONSENSUS = 1
    LARGEST = 2
    UNANIMOUS = 3
    UNIQUE = 4
    MIDDLE = 5


@dataclass(frozen=True)
class Middle:
    """Which of the K values of an element are averaged, once they are in ascending order (`pieces.sort`).

    Attributes:
        comparators: the places (low, high) that are put in order, one pair after the other.
        first, last: the mean of places [first, last) is taken.
        nearest: the mean of so many values that are closest to that one is taken instead; 0: that one.
    """

    comparators: Sequence[tuple[int, int]]
    first: int
    last: int
    nearest: int = 0


@dataclass(frozen=True)
class Served:
    """Which entries of a combination are kept: those that serve `least` of the tasks (`pieces.localize`).

    Attributes:
        tasks: T rows.
        lambdas: T.
        least: how many.
    """

    tasks: Sequence[Row]
    lambdas: Sequence[float]
    least: int


@dataclass(frozen=True)
class Combination:
    """Σ weights_k · rows_k / divisor, not computed yet; or what another rule makes of K rows.

    Attributes:
        rows: K.
        weights: K.
        divisor: of a weighted sum.
        rule: SUM; CONSENSUS (`pieces.vote.weigh_consensus`); LARGEST (`pieces.combine.largest`); UNANIMOUS
            (`pieces.vote.unanimous_sum`); UNIQUE (`pieces.unique.scale_unique`); MIDDLE (`pieces.sort.middle`).
        votes, normalize, floor: of a consensus; votes: K.
        middle: of that rule.
        served: what is kept of it; None: all.
        factors: it is taken times each of them at last, one after the other.
    """

    rows: Sequence[Row]
    weights: Sequence[float]
    divisor: float = 1.0
    rule: Rule = Rule.SUM
    votes: Sequence[float] | None = None
    normalize: bool = False
    floor: float = 0.0
    middle: Middle | None = None
    served: Served | None = None
    factors: tuple[float, ...] = ()

    def __mul__(self, number: float) -> Combination:
        return replace(self, factors=(*self.factors, float(number)))
