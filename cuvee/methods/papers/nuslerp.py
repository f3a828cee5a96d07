"""Spherical interpolation of two models or of their task vectors, by tensor, row or column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.combination import spread
from cuvee.methods.measuring import Over, measured
from cuvee.methods.pieces.sphere import linear_combination, slerp_coefficients
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("NuSLERP", url="https://github.com/arcee-ai/mergekit"),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(2, 2),
    cost="two visits of each tensor",
    status="community",
    arrays=True,
    formula="out = [base +] slerp(x_0, x_1; t = weight_1 / (weight_0 + weight_1)),  x = θ, or τ with a base",
    differs="As mergekit, with its cosines in float64: antipodal vectors take the straight line instead of rounding noise. "
    "In mergekit's documentation rows and columns are named the other way round.",
)
def nuslerp(
    values: Tensor, *, weight: PerModel[float], nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False
) -> Tensor:
    """Interpolate on the sphere between two models, or between two task vectors when there is a base.

    Args:
        values: (2, …): weights, or task vectors with a base.
        weight: two numbers; t is the second's share, 0.5 when they sum to zero.
        nuslerp_flatten: each tensor is one vector. Otherwise the vectors lie along the last dimension,
        nuslerp_row_wise: or along dimension 0.
    """
    first, second = (float(w) for w in spread(weight, 2))
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    over: Over = "all" if nuslerp_flatten else "column" if nuslerp_row_wise else "row"
    gram = measured(Gram(), values, over=over)
    # A cosine within 1e-12 of ±1 has a sine below the noise of float32 inputs.
    return linear_combination(values, slerp_coefficients(gram, t, near=1 - 1e-12, unit_floor=1e-7), over)
