"""ReForge: regress a merged task vector towards what the inputs of all models ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.pieces.regression import BMM, GramNorm, MixedSource, posterior_mean, regression_bytes
from cuvee.methods.registry import MATRIX, Bound, Fraction, Role, edit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["reforge"]


@edit(
    role=Role.REFINER,
    paper=BMM,
    unit=MATRIX,
    workspace=regression_bytes,
    uses=("gram",),
    cost="1 eigendecomposition; of the input side",
    formula="G_i = τ_iᵀτ_i / ‖τ_i‖², or of data, in the unit of gram_norm;  C = Σ G_i,  T = Σ τ_i G_i;  "
    "τ ← (T + prior_precision · τ)(C + prior_precision · I)⁻¹",
    differs="A reconstruction: the later version of the paper was not seen, neither its text nor its code. The formula is that "
    "of bayesian_model_merging, with any merge as the anchor, and so are the units of G_i and of the prior. What is no matrix "
    "stays as it is.",
    once="the same inputs would count as evidence twice; a smaller prior_precision lets them count more",
    status="reconstruction",
)
def reforge(
    merged: Tensor,
    deltas: Tensor,
    *,
    prior_precision: Annotated[float, Bound(0)] = 1.0,
    gram: MixedSource = "auto",
    gram_norm: GramNorm = "mean_diagonal",
    mix: Fraction = 0.5,
) -> Tensor:
    """Regress a merged task vector towards what the inputs of all models ask for, as `bayesian_model_merging` does an anchor.

    Args:
        prior_precision: towards infinity the merge comes out unchanged, towards 0 the regression alone.
        gram: what the inputs are known by: task_vector, without data; data, the statistics gram/model0/<module> and so on,
            X_iᵀX_i divided by the tokens; auto, data where there is any; hybrid, both, each of trace 1.
        gram_norm: mean_diagonal: the diagonal of C is brought to a mean of 1, so that prior_precision has no unit;
            delta_frobenius: each G_i is divided by its trace, which is ‖τ_i‖² of a task vector; none: as they are.
        mix: the share of data in a hybrid.
    """
    return posterior_mean(deltas, merged, 1.0, prior_precision, gram, gram_norm, mix)
