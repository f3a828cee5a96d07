"""Multi-Krum: the mean of the models that have the closest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.calls import Scope, noted
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.geometry import Distances
from cuvee.methods.pieces.sort import check_trim
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Bound, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", arxiv="1703.02757", year=2017
    ),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(3, None),
    cost="two rounds over the model; three where models are all but equal",
    arrays=True,
    formula="score_i = sum of the distances from θ_i to its nearest others;  out = mean of the m models with the lowest",
    differs="The K × K distances come from one Gram matrix in float64, those of models that are all but equal from their "
    "differences in one more look. The paper adds the squares of the K − f − 2 nearest "
    "(variant: paper); the default is that of the Garfield code, K − f − 1 distances, not squared.",
)
def multi_krum(
    values: Tensor,
    *,
    f: Annotated[int, Bound(0)] = 1,
    m: Annotated[int, Bound(1)] | None = None,
    variant: Literal["garfield", "paper"] = "garfield",
    scope: Scope = "model",
) -> Tensor:
    """Average the m models whose neighbours are closest: for replicas of one task, some of which may be bad.

    Experts of different tasks look like bad models to it.

    Args:
        values: (K, …): weights, or task vectors with a base; K ≥ 2f + 3.
        f: how many models may be arbitrarily bad.
        m: how many are averaged; 1 is Krum. Without it K − f − 2.
        variant: which distances are added up, see below.
        scope: where models are chosen: once for the whole model, or in each layer or tensor.

    Raises:
        MethodError: K < 2f + 3, or m > K.
    """
    count = len(values)
    check_trim(f, count, 2 * f + 3)
    m = count - f - 2 if m is None else m
    if m > count:
        raise MethodError(f"m is {m}, and there are {count} models", right=f"m: {count - f - 2}")
    distances = measured(Distances(), values, scope=scope).copy()
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : count - f - (2 if variant == "paper" else 1)]
    scores = (nearest**2 if variant == "paper" else nearest).sum(1)
    chosen = np.argsort(scores, kind="stable")[:m]
    noted(chosen=sorted(map(int, chosen)))
    return linear_combination(values, np.isin(np.arange(count), chosen) / m)
