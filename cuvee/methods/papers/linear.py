"""Model soups: the weighted average of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.errors import MethodError
from cuvee.methods.combination import spread
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import NONE, WEIGHTS, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Model soups", arxiv="2203.05482", year=2022),
    on=WEIGHTS,
    base=NONE,
    arrays=True,
    formula="out = Σ weight_i · θ_i  [/ Σ weight_i if normalize]",
    differs="As mergekit, in float32. Weights that sum to zero under normalize are refused (mergekit: NaN). Equal weights are "
    "the uniform soup; a greedy soup has them too, of the models that it keeps on validation data.",
)
def linear(weights: Tensor, *, weight: PerModel[float] = 1.0, normalize: bool = True) -> Tensor:
    """Average the weights of the models.

    Args:
        weights: (K, …), K ≥ 1.
        weight: coefficient of each model, any sign.
        normalize: divide by their sum; a fine-tune and its base with weights (α, 1 − α) is WiSE-FT (arXiv 2109.01903).

    Returns:
        (…); K equal models give that model.

    Raises:
        MethodError: the weights sum to zero under normalize.
    """
    given = spread(weight, len(weights))
    if normalize and abs(sum(given)) < 1e-8:
        raise MethodError(f"the weights {given} sum to {sum(given):g}", right="weights with a sum, or normalize: false")
    return weighted_sum(weights, weight, normalize=normalize)
