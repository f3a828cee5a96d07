"""Measure how K vectors lie to each other, to the last digits also where they lie close together and far from zero.

‖x_i − x_j‖² = G_ii + G_jj − 2 G_ij loses them all where it is some 1e-16 of G_ii. Where it is small, the differences themselves
are measured in one more look, which few models need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cuvee.methods.combination import Stored
from cuvee.methods.folding import Again, Done, Fold
from cuvee.methods.reductions import Gram, Sums
from cuvee.tensors import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["CenteredGram", "Distances", "distances_from", "medoid"]

_CANCELS = 1e-10
"""The share of a squared length below which a squared distance is measured from the difference."""


@dataclass(frozen=True)
class Distances:
    """‖x_i − x_j‖ of K vectors, (K, K), float64."""

    stacked: ClassVar[bool] = True

    def fold(self, state: Any) -> Fold:
        return "sum"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.float64]:
        if state is None:
            return Gram().measure(values, axis, None)
        return np.array([Sums("square").measure(values[i] - values[j], axis, None) for i, j in state[1]])

    def of_stored(self, given: Sequence[Stored], leaf: int, state: Any) -> NDArray[np.float64] | None:
        if state is None:
            return Gram().of_stored(given, leaf, None)
        if not _are_bare(given):
            return None
        rows = [[replace(v.rows[i], base=v.rows[j]) for i, j in state[1]] for v in given]
        return np.stack([kernels.lane_sums(one, leaf, square=True) for one in rows], axis=1)

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        if state is None:
            squares = _squares(folded)
            close = _cancelling(folded, squares)
            return Again((squares, close)) if close else Done(np.sqrt(squares))
        squares, close = state
        squares = squares.copy()
        for (i, j), found in zip(close, folded, strict=True):
            squares[i, j] = squares[j, i] = found
        return Done(np.sqrt(squares))


@dataclass(frozen=True)
class CenteredGram:
    """⟨x_i − x_m, x_j − x_m⟩ of K vectors, (K, K), float64, where x_m is their `medoid`.

    Attributes:
        weight: K; 0 for a vector that has no say in what the medoid is.
    """

    weight: tuple[float, ...]

    stacked: ClassVar[bool] = True

    def fold(self, state: Any) -> Fold:
        return "sum"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.float64]:
        return Gram().measure(values if state is None else values - values[state], axis, None)

    def of_stored(self, given: Sequence[Stored], leaf: int, state: Any) -> NDArray[np.float64] | None:
        if state is None:
            return Gram().of_stored(given, leaf, None)
        if not _are_bare(given):
            return None
        away = [Stored([replace(row, base=v.rows[state]) for row in v.rows]) for v in given]
        return Gram().of_stored(away, leaf, None)

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        if state is not None:
            return Done(folded)
        squares = _squares(folded)
        m = medoid(np.sqrt(squares), self.weight)
        if _cancelling(folded, squares):
            return Again(m)
        return Done(folded - folded[:, [m]] - folded[[m], :] + folded[m, m])


def distances_from(coefficients: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ‖x_i − Σ c_j x_j‖ for each i, (K,).

    Args:
        coefficients: (K,), with sum 1.
        gram: (K, K), a `CenteredGram`: a vector far away counts by its coefficient only.
    """
    away = np.eye(len(gram)) - coefficients
    return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", away, gram, away), 0.0))


def medoid(distances: NDArray[np.float64], weight: Sequence[float]) -> int:
    """Return which of K vectors has the least weighted sum of distances (K, K) to all; the first of equal ones.

    While others have less than half of the weight, they cannot make it one of them that lies far away.
    """
    return int(np.argmin(distances @ np.asarray(weight)))


def _squares(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = np.diag(gram)
    with np.errstate(invalid="ignore"):  # of models that hold infinities
        return np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)


def _cancelling(gram: NDArray[np.float64], squares: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Return the pairs i < j whose squared distance is small beside their lengths, and not sure for that."""
    lengths = np.diag(gram)
    lost = squares < _CANCELS * np.maximum.outer(lengths, lengths)
    return tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(lost, 1)))


def _are_bare(given: Sequence[Stored]) -> bool:
    """True when the rows are elements as they are stored, so that one can be subtracted from the other."""
    return all(row.base is None and not row.steps for values in given for row in values.rows)
