"""ReForge: regress a merged task vector towards what the inputs of all models ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.pieces.regression import BMM, GramNorm, MixedSource, posterior_mean, regression_bytes
from cuvee.methods.registry import MATRIX, Bound, Fraction, Role, edit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["reforge"]


@edit(role=Role.REFINER, paper=BMM, unit=MATRIX, workspace=regression_bytes, uses=("gram",), status="reconstruction")
def reforge(
    merged: Tensor,
    deltas: Tensor,
    *,
    prior_precision: Annotated[float, Bound(0)] = 1.0,
    gram: MixedSource = "auto",
    gram_norm: GramNorm = "mean_diagonal",
    mix: Fraction = 0.5,
) -> Tensor:
    """Take any merge as the anchor of `bayesian_model_merging`: what is no matrix stays as it is.

    Args:
        prior_precision: towards infinity the merge comes out unchanged, towards 0 the regression alone.
        gram, gram_norm, mix: as there.

    Source: the later version of the paper; a reconstruction, since neither its text nor its code was seen.
    """
    return posterior_mean(deltas, merged, 1.0, prior_precision, gram, gram_norm, mix)
