"""The Flag Aggregator: the mean of the task vectors within the subspace that most of them span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from cuvee.methods.measuring import Scope, measured
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import Bound, Paper, merge_method

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_FLOOR = 1e-12


@merge_method(
    paper=Paper("Flag Aggregator: Scalable Distributed Training under Failures", arxiv="2302.05865", year=2023),
    models=(2, None),
    cost="two rounds over the model",
    arrays=True,
    formula="Y = argmin over r-dimensional bases of Σ √(1 − ‖Yᵀτ̂_i‖²) + regularization·mean of pairs;  "
    "out = θ_0 + scaling · Y Yᵀ mean τ_i",
    differs="The official code normalises every task vector, divides by r and so loses all lengths (scale: official); it takes "
    "one step from a random start; here iterations begin at the principal subspace.",
)
def flag_aggregator(
    deltas: Tensor,
    *,
    r: Annotated[int, Bound(1)] | None = None,
    regularization: Annotated[float, Bound(0)] = 0.0,
    iterations: Annotated[int, Bound(1)] = 10,
    scale: Literal["preserve", "official", "median_norm"] = "preserve",
    scope: Scope = "model",
) -> Tensor:
    """Average task vectors within the r-dimensional subspace that lies closest to all of them.

    Args:
        deltas: (K, …). A zero task vector has no direction, and counts in the mean.
        r: dimensions of the subspace; without it ⌈(K + 1) / 2⌉.
        regularization: weight of the term that keeps differences of pairs in the subspace.
        iterations: most steps of reweighted least squares; 1 is the principal subspace.
        scale: "preserve" the lengths of task vectors; "median_norm": give all the median length; "official": length 1,
            summed and divided by r.
        scope: over which the subspace is taken: the whole model, or each layer or tensor.
    """
    gram = measured(Gram(), deltas, scope=scope)
    return linear_combination(deltas, _coefficients(gram, r, regularization, iterations, scale))


def _coefficients(
    gram: NDArray[np.float64], r: int | None, regularization: float, iterations: int, scale: str
) -> NDArray[np.float64]:
    count = len(gram)
    r = min(count, (count + 2) // 2 if r is None else r)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    inverse = np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)
    unit = gram * np.outer(inverse, inverse)
    u = _subspace(unit, r, regularization, iterations)  # Y = Σ_i u_i· τ̂_i
    if scale == "preserve":
        target, divisor = norms, float(count)
    elif scale == "median_norm":
        moved = norms[norms > 0]
        target, divisor = np.full(count, float(np.median(moved)) if moved.size else 0.0), float(count)
    else:
        target, divisor = np.ones(count), float(r)
    return inverse * (u @ (u.T @ (unit @ (target * (norms > 0))))) / divisor


def _subspace(unit: NDArray[np.float64], r: int, regularization: float, iterations: int) -> NDArray[np.float64]:
    """Return U, (K, ≤ r): the columns of Σ_i u_ik τ̂_i are an orthonormal basis of the subspace.

    Reweighted least squares: each step takes the top singular vectors of the unit vectors and their differences, those that
    lie far outside the subspace weighted less. A step is taken only if the objective falls.
    """
    count = len(unit)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j] if regularization else []
    columns = np.hstack([np.eye(count), *[(np.eye(count)[:, [i]] - np.eye(count)[:, [j]]) for i, j in pairs]])
    share = np.r_[np.ones(count), np.full(len(pairs), regularization / (count * (count - 1)))]

    def outside(u: NDArray[np.float64]) -> NDArray[np.float64]:
        """1 − ‖Yᵀg‖² of every column, whose own length is 1 or that of a difference."""
        return np.abs(1.0 - ((u.T @ unit @ columns) ** 2).sum(0))

    best = _top(unit, columns * share, r)
    value = float(share @ np.sqrt(outside(best)))
    for _ in range(iterations - 1):
        u = _top(unit, columns * share * (outside(best) + 1e-7) ** -0.25, r)
        found = float(share @ np.sqrt(outside(u)))
        if not found < value:
            break
        best, value = u, found
    return best


def _top(unit: NDArray[np.float64], columns: NDArray[np.float64], r: int) -> NDArray[np.float64]:
    """Return U of the top r left singular vectors of the matrix whose columns are combinations of the unit vectors."""
    values, vectors = np.linalg.eigh(columns.T @ unit @ columns)
    values, vectors = values[::-1][:r], vectors[:, ::-1][:, :r]
    kept = values > _FLOOR * max(float(values[0]), np.finfo(float).tiny)
    return columns @ vectors[:, kept] / np.sqrt(values[kept])
