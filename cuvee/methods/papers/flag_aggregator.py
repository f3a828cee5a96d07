"""The Flag Aggregator: the mean of the task vectors within the subspace that most of them span."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.calls import Scope, current
from cuvee.methods.combination import plain
from cuvee.methods.folding import Again, Done, Fold
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import Bound, Paper, merge_method
from cuvee.tensors.either import as_tensor
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_FLOOR = 1e-12
_LARGEST_START = 1 << 24


@merge_method(
    paper=Paper("Flag Aggregator: Scalable Distributed Training under Failures", arxiv="2302.05865", year=2023),
    models=(2, None),
    cost="two rounds over the model",
    arrays=True,
    formula="Y = argmin over r-dimensional bases of Σ √(1 − ‖Yᵀτ̂_i‖²) + regularization·mean of pairs;  "
    "out = θ_0 + scaling · Y Yᵀ mean τ̂_i · median ‖τ_i‖",
    differs="The official code normalises every task vector, divides by r and so loses all lengths (scale: official); here all "
    "get the median length, and with scale: preserve keep their own, as in the paper. The official code takes "
    "one step from a random start (init_seed: 1, iterations: 1); here iterations begin at the principal subspace.",
)
def flag_aggregator(
    deltas: Tensor,
    *,
    r: Annotated[int, Bound(1)] | None = None,
    regularization: Annotated[float, Bound(0, 1e6)] = 0.0,
    iterations: Annotated[int, Bound(1)] = 10,
    init_seed: int | None = None,
    scale: Literal["preserve", "official", "median_norm"] | None = None,
    scope: Scope = "model",
) -> Tensor:
    """Average task vectors within the r-dimensional subspace that lies closest to all of them.

    Args:
        deltas: (K, …). A zero task vector has no direction, and counts in the mean.
        r: dimensions of the subspace; without it ⌈(K + 1) / 2⌉.
        regularization: weight of the term that keeps differences of pairs in the subspace.
        iterations: most steps of reweighted least squares; 1 is the principal subspace.
        init_seed: begin at the random subspace of the official code, which must be held whole: for small models.
        scale: "median_norm": give all task vectors that are not zero the median length, so that no long one leads;
            "preserve" their lengths: r = K is then the mean, and one model that is far away carries it off; "official":
            length 1, summed and divided by r. Without it median_norm, or with init_seed official.
        scope: over which the subspace is taken: the whole model, or each layer or tensor.

    Raises:
        MethodError: r > K; or the model is too large for init_seed, or scope is not model there.
    """
    count = len(deltas)
    r = (count + 2) // 2 if r is None else r
    if r > count:
        raise MethodError(
            f"r is {r}, and {count} models span {count} dimensions at most", right=f"r: {(count + 2) // 2}"
        )
    if init_seed is None:
        gram, inside = measured(Gram(), deltas, scope=scope), None
    else:
        together = torch.cat([as_tensor(plain(deltas)), _official_start(deltas, init_seed, r, scope)])
        gram = measured(Gram(), together, scope=scope)
        gram, inside = gram[:count, :count], gram[count:, :count]
    scale = scale or ("median_norm" if init_seed is None else "official")
    return linear_combination(deltas, _coefficients(gram, r, regularization, iterations, scale, inside))


@dataclass(frozen=True)
class Sizes:
    """The number of elements of each tensor of a model, by name."""

    stacked: ClassVar[bool] = False

    def fold(self, state: Any) -> Fold:
        return "concat"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[Any]:
        return np.full(tuple(values.shape[:-1]), values.shape[-1])

    def next(self, folded: Sequence[tuple[str, NDArray[Any]]], state: Any, numel: int) -> Done | Again:
        return Done({name: int(leaves.sum()) for name, leaves in folded})


def _official_start(deltas: Tensor, seed: int, r: int, scope: str) -> Tensor:
    """Return the rows of the official code's first subspace that belong to this block, (r, …)."""
    sizes = measured(Sizes(), deltas[0], scope="model")
    total, place = sum(sizes.values()), current(deltas[0]).place
    if total * r > _LARGEST_START or scope != "model":
        raise MethodError(
            f"init_seed makes a matrix of {total} rows and {r} columns for the whole model",
            right="leave init_seed out: without it the start is the principal subspace",
        )
    before = sum(size for name, size in sizes.items() if name.encode() < place.tensor.encode())
    rows = _random_subspace(seed, total, r)[before + place.start : before + place.stop]
    return rows.T.reshape(r, *deltas[0].shape).to(as_tensor(deltas[0]))


@functools.lru_cache(1)
def _random_subspace(seed: int, rows: int, r: int) -> Tensor:
    drawn = torch.rand(rows, r, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5
    return torch.linalg.qr(drawn)[0]


def _coefficients(
    gram: NDArray[np.float64],
    r: int,
    regularization: float,
    iterations: int,
    scale: str,
    inside: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    count = len(gram)
    if not np.isfinite(gram).all():  # LAPACK takes no NaN
        return np.full(count, np.nan)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    inverse = np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)
    unit = gram * np.outer(inverse, inverse)
    start = None if inside is None else inside * inverse
    u = _subspace(unit, r, regularization, iterations, start)
    if scale == "preserve":
        target, divisor = norms, float(count)
    elif scale == "median_norm":
        target, divisor = np.full(count, float(np.median(norms))), float(count)
    else:
        target, divisor = np.ones(count), float(r)
    return inverse * (u @ (u.T @ (unit @ (target * (norms > 0))))) / divisor


def _subspace(
    unit: NDArray[np.float64], r: int, regularization: float, iterations: int, start: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return U, (K, ≤ r): the columns of Σ_i u_ik τ̂_i are an orthonormal basis Y of the subspace.

    Reweighted least squares: each step takes the top singular vectors of the unit vectors and their differences, those that
    lie far outside the subspace weighted less. A step is taken only if the objective falls.

    Args:
        unit: (K, K), ⟨τ̂_i, τ̂_j⟩.
        start: (r, K), Yᵀτ̂ of the first subspace; without it the principal one.
    """
    count = len(unit)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j] if regularization else []
    columns = np.hstack([np.eye(count), *[(np.eye(count)[:, [i]] - np.eye(count)[:, [j]]) for i, j in pairs]])
    share = np.r_[np.ones(count), np.full(len(pairs), regularization / (count * (count - 1)))]

    def outside(inside: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return |1 − ‖Yᵀg‖²| of every column g, given Yᵀτ̂."""
        return np.abs(1.0 - ((inside @ columns) ** 2).sum(0))

    best = _top(unit, columns * share, r)
    left = outside(best.T @ unit if start is None else start)
    value = float("inf") if start is not None else float(share @ np.sqrt(left))
    for _ in range(iterations - (start is None)):
        u = _top(unit, columns * share * (left + 1e-7) ** -0.25, r)
        left = outside(u.T @ unit)
        found = float(share @ np.sqrt(left))
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
