"""Spherical mean of several models by weighted unit vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.combination import spread
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Bound, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("MultiSLERP", url="https://github.com/arcee-ai/mergekit"),
    on=WEIGHTS,
    base=OPTIONAL,
    cost="two visits of each tensor",
    status="community",
    arrays=True,
    formula="m = Σ weight_i · x_i/‖x_i‖;  out = [base +] (m/‖m‖) · Σ weight_i ‖x_i‖",
    differs="mergekit adds a step in the tangent space that is identically zero; this is its closed form.",
)
def multislerp(
    values: Tensor,
    *,
    weight: PerModel[float],
    normalize_weights: bool = True,
    eps: Annotated[float, Bound(0, open_low=True)] = 1e-8,
) -> Tensor:
    """Take the mean direction of K tensors and their mean norm.

    Args:
        values: (K, …): weights, or task vectors with a base. One model comes back as it is.
        weight: K coefficients.
        normalize_weights: divide them by their sum.
        eps: added to norms; a mean direction shorter than this is none.

    Raises:
        MethodError: the weights sum to zero under normalize_weights, or K > 2 directions cancel.
    """
    if len(values) == 1:
        return values[0]
    w = np.array([float(x) for x in spread(weight, len(values))])
    if normalize_weights:
        if abs(w.sum()) < eps:
            raise MethodError(
                f"the weights {w.tolist()} sum to zero",
                right="weights with a sum, or normalize_weights: false",
            )
        w = w / w.sum()
    gram = measured(Gram(), values)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    toward = w / (norms + eps)
    length = float(np.sqrt(max(toward @ gram @ toward, 0.0)))
    if length >= eps:
        return linear_combination(values, toward / length * float(w @ norms))
    if len(values) == 2 or norms.max() <= eps:  # all but zero: no directions at all
        return linear_combination(values, w)
    raise MethodError("the weighted directions of the models cancel", right="other weights, or the method linear")
