"""The geometric median: the point with the least sum of distances to the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from cuvee.methods.combination import spread
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.geometry import distances_from
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Bound, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SpokenScope = Literal["tensor", "layer", "model", "per tensor", "per layer", "whole model"]


@merge_method(
    paper=Paper("Robust Aggregation for Federated Learning (RFA)", arxiv="1912.13445", year=2019),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(2, None),
    cost="two rounds over the model; two visits of each tensor with scope: tensor",
    arrays=True,
    formula="out = argmin_x Σ weight_i ‖x − θ_i‖, by Weiszfeld's iteration on the K × K Gram matrix",
    differs="sd-mecha iterates on tensors, one at a time (scope: tensor); the coefficients are the same to 1e-11.",
)
def geometric_median(
    values: Tensor,
    *,
    weight: PerModel[Annotated[float, Bound(0)]] = 1.0,
    scope: SpokenScope = "model",
    max_iter: Annotated[int, Bound(1)] = 100,
    eps: Annotated[float, Bound(0, open_low=True)] = 1e-6,
    tol: Annotated[float, Bound(0)] = 1e-12,
) -> Tensor:
    """Take the point with the least sum of distances: fewer than half of the models cannot carry it away.

    Args:
        values: (K, …): weights, or task vectors with a base. Of two the midpoint.
        weight: of each model's distance.
        scope: where distances are taken: over the whole model, or in each layer or tensor.
        max_iter: steps of the iteration.
        eps: distances below this count as this.
        tol: it stops when the sum of distances changes by less than this share.
    """
    alpha = np.array([float(w) for w in spread(weight, len(values))])
    where: Any = scope.removeprefix("per ").removeprefix("whole ")
    gram = measured(Gram(), values, scope=where)
    return linear_combination(values, _weiszfeld(gram, alpha, max_iter, eps, tol))


def _weiszfeld(
    gram: NDArray[np.float64], alpha: NDArray[np.float64], max_iter: int, eps: float, tol: float
) -> NDArray[np.float64]:
    """Return the coefficients of the models, which sum to 1; those of equal weights where all weights are 0."""
    alpha = alpha if alpha.sum() > 0 else np.ones_like(alpha)
    w = alpha / alpha.sum()
    before = np.inf
    for _ in range(max_iter):
        distances = distances_from(w, gram)
        total = float(alpha @ distances)
        if abs(before - total) <= tol * total:
            break
        before = total
        pull = alpha / np.maximum(distances, eps)
        w = pull / pull.sum()
    return w
