"""Centered clipping: from a robust start, go towards every model, but to none by more than tau."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from cuvee.methods.calls import Scope
from cuvee.methods.combination import beside
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.geometry import CenteredGram, distances_from
from cuvee.methods.pieces.sort import median
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Bound, Paper, merge_method

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@merge_method(
    paper=Paper("Learning from History for Byzantine Robust Optimization", arxiv="2012.10333", year=2020),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(3, None),
    cost="two rounds over the model; three where models are all but equal",
    arrays=True,
    formula="v = the coordinate-wise median;  max_iter times: v ← v + 1/K · Σ (θ_i − v) · min(1, tau / ‖θ_i − v‖);  out = v",
    differs="The paper starts at the last round's aggregate; here the start is this round's median, or mean. Without tau it "
    "is the median of the distances from the start.",
)
def centered_clipping(
    values: Tensor,
    *,
    tau: Annotated[float, Bound(0)] | None = None,
    max_iter: Annotated[int, Bound(1, 1000)] = 3,
    start: Literal["median", "mean"] = "median",
    scope: Scope = "model",
) -> Tensor:
    """Average the models around a robust centre, those that are far away only as if they were not.

    No model is left out, and none moves the result by more than tau / K in a step.

    Args:
        values: (K, …): weights, or task vectors with a base.
        tau: the length to which differences are clipped.
        max_iter: steps.
        start: the first centre: the coordinate-wise median (the lower of two middles) or the mean.
        scope: what a length is taken over: the whole model, or each layer or tensor.
    """
    count = len(values)
    if start == "median":
        values = beside(values, median(values, lower=True))
    gram = measured(CenteredGram((1.0,) * count + (0.0,) * (len(values) - count)), values, scope=scope)
    first = np.full(count, 1 / count) if start == "mean" else np.eye(count + 1)[count]
    return linear_combination(values, _clipped(gram, first, count, tau, max_iter))


def _clipped(
    gram: NDArray[np.float64], v: NDArray[np.float64], count: int, tau: float | None, max_iter: int
) -> NDArray[np.float64]:
    """Return the coefficients of the centre after all steps; the first `count` vectors are the models."""
    for _ in range(max_iter):
        distances = distances_from(v, gram)[:count]
        tau = float(np.median(distances)) if tau is None else tau
        share = np.minimum(1.0, tau / np.where(distances > 0, distances, 1.0)) / count
        v = (1 - share.sum()) * v
        v[:count] += share
    return v
