"""Bayesian model merging: the mean of a posterior whose prior lies around an anchor, on the inputs of all models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.methods.combination import Matrices
from cuvee.methods.pieces.combine import OTHERS, weighted_sum
from cuvee.methods.pieces.regression import BMM, GramNorm, Init, MixedSource, posterior_mean, regression_bytes, start
from cuvee.methods.registry import MATRIX, Bound, Fraction, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=BMM,
    unit=MATRIX,
    others=None,
    workspace=regression_bytes,
    uses=("gram",),
    cost="1 eigendecomposition; of the input side",
    formula="G_i = τ_iᵀτ_i / ‖τ_i‖²;  C = Σ importance_i · G_i,  T = Σ importance_i · τ_i G_i;  "
    "out = θ_0 + scaling · (T + prior_precision · A)(C + prior_precision · I)⁻¹",
    differs="A reconstruction: the paper's text and code were not seen. The formula follows from Gaussian regression with a "
    "Gaussian prior at the anchor; the units of G_i and of the prior are our choice, and so is how a hybrid weighs data and "
    "task vectors (mix). The search of prior_precision by type of module is left to the user, by filters. Any other merge "
    "may be the anchor: after: [reforge: …]. By its prior, what is no matrix is the anchor (others: anchor); here it is the "
    "mean, as of all methods on matrices.",
    status="reconstruction",
)
def bayesian_model_merging(
    deltas: Any,
    *,
    importance: PerModel[Annotated[float, Bound(0)]] = 1.0,
    prior_precision: Annotated[float, Bound(0)] = 1.0,
    anchor: Init = "sum",
    gram: MixedSource = "auto",
    gram_norm: GramNorm = "mean_diagonal",
    mix: Fraction = 0.5,
    others: Literal["mean", "anchor", "base", "sum"] = "mean",
) -> Tensor:
    """Regress on the inputs of all models, as far as they say something; elsewhere stay at an anchor.

    Args:
        deltas: (K, m, n), or the (K, …) blocks of what is no matrix. Models that have not moved take no part in the regression.
        importance: of each model in the regression; it does not change the anchor.
        prior_precision: towards infinity the anchor comes out, towards 0 the regression alone.
        anchor: the sum or the mean of the task vectors, or the base (zero).
        gram: what the inputs are known by: task_vector, without data; data, the statistics gram/model0/<module> and so on,
            X_iᵀX_i divided by the tokens; auto, data where there is any; hybrid, both, each of trace 1.
        gram_norm: mean_diagonal: the diagonal of C is brought to a mean of 1, so that prior_precision has no unit;
            delta_frobenius: each G_i is divided by its trace, which is ‖τ_i‖² of a task vector; none: as they are.
        mix: the share of data in a hybrid.
        others: what becomes of what is no matrix: the mean of the task vectors, as of all methods on matrices; what the
            anchor is of it; nothing of them; or their sum.

    Returns:
        (m, n). A matrix without Gram matrices, where others have some, is the anchor; a hybrid knows it by its task vectors.

    Raises:
        MethodError: only some models have a Gram matrix of this tensor, or one is of another shape or not finite.
    """
    if not isinstance(deltas, Matrices):
        return start(anchor, weighted_sum(deltas), len(deltas)) if others == "anchor" else OTHERS[others](deltas)
    return posterior_mean(deltas, anchor, importance, prior_precision, gram, gram_norm, mix)
