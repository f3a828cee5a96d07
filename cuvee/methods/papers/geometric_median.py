"""The geometric median: the point with the least sum of distances to the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from cuvee.methods.combination import spread
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.geometry import CenteredGram, distances_from
from cuvee.methods.pieces.sphere import linear_combination
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
    cost="two rounds over the model, three where models are all but equal; visits with scope: tensor",
    arrays=True,
    formula="out = argmin_x Σ weight_i ‖x − θ_i‖, by Weiszfeld's iteration on the K × K Gram matrix of what they "
    "differ by",
    differs="sd-mecha iterates on tensors, one at a time (scope: tensor), from their mean, and stops by the sum of distances, "
    "which one model far away dominates; here the start lies among most of the weight, and it stops when the point does. Where "
    "both have ended, the coefficients are the same to 1e-11.",
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
        tol: it stops when a step is shorter than this share of the harmonic mean of distances, on which a model far
            away has no bearing.
    """
    alpha = np.array([float(w) for w in spread(weight, len(values))])
    alpha = alpha if alpha.sum() > 0 else np.ones_like(alpha)
    where: Any = scope.removeprefix("per ").removeprefix("whole ")
    gram = measured(CenteredGram(tuple(alpha.tolist())), values, scope=where)
    return linear_combination(values, _weiszfeld(gram, alpha, max_iter, eps, tol))


def _weiszfeld(
    gram: NDArray[np.float64], alpha: NDArray[np.float64], max_iter: int, eps: float, tol: float
) -> NDArray[np.float64]:
    """Return the coefficients of the models, which sum to 1.

    The mean would be no start: one model at 1e30 takes it along, and a step comes back by a factor of K − 1 only.
    """
    distances = np.sqrt(np.maximum(np.diag(gram), 0.0))  # from the medoid
    pull = alpha / np.maximum(distances, max(eps, _typical(distances, alpha)))
    w = pull / pull.sum()
    for _ in range(max_iter):
        pull = alpha / np.maximum(distances_from(w, gram), eps)
        step = pull / pull.sum() - w
        w = w + step
        if np.sqrt(max(0.0, step @ gram @ step)) <= tol * alpha.sum() / pull.sum():
            break
    return w


def _typical(distances: NDArray[np.float64], alpha: NDArray[np.float64]) -> float:
    """Return the least distance within which more than half of the weight lies."""
    order = np.argsort(distances, kind="stable")
    within = np.cumsum(alpha[order]) > alpha.sum() / 2
    return float(distances[order][int(np.argmax(within))])
