"""DARE with the sign vote of TIES."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.calls import Scope
from cuvee.methods.combination import spread
from cuvee.methods.measuring import each
from cuvee.methods.pieces.drop import drop_at_random
from cuvee.methods.pieces.rescale import Rescale
from cuvee.methods.pieces.trim import keep_largest
from cuvee.methods.pieces.vote import MergeFunc, TieSign, sign_consensus
from cuvee.methods.registry import Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Language Models are Super Mario (DARE)", arxiv="2311.03099", year=2023),
    cost="one pass; two visits of each tensor with rescale: l1",
    arrays=True,
    formula="m_i ~ Bernoulli(density);  out = θ_0 + scaling · sign_consensus(rescale(m_i ⊙ τ_i), weight)",
    differs="As mergekit, which drops the trim of TIES and does not normalise: similar models overshoot by their number. "
    "The paper trims after dropping: ties_density, with trim_scope: model, "
    "tie_sign: global_majority, merge_func: mean, rescale: expected.",
)
def dare_ties(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    density: PerModel[Fraction] = 1.0,
    normalize: bool = False,
    rescale: Rescale = True,
    ties_density: PerModel[Fraction] = 1.0,
    trim_scope: Scope = "tensor",
    inclusive_threshold: bool | None = None,
    tie_sign: TieSign = "plus",
    merge_func: MergeFunc = "weighted_mean",
    int8_mask: bool = False,
) -> Tensor:
    """Drop entries of task vectors at random, rescale the rest, and merge those that agree in sign.

    Args:
        deltas: (K, …).
        weight: coefficient of each model, in the vote and in the result.
        density: probability with which an entry is kept; 1 keeps all and does not rescale.
        normalize: divide by the weights of the models that agree.
        rescale: "l1" (true): to the old Σ|x| of the tensor; "expected": divide by density; "none" (false).
        ties_density: share of what was kept that the trim of TIES keeps; 1: no trim.
        trim_scope: where the share of ties_density is taken: in each tensor, layer, or the whole model.
        inclusive_threshold: keep every entry that reaches the threshold; without it, as the official code, where
            trim_scope is model.
        tie_sign: the sign of a balanced vote: plus, or that of most elements of the model.
        merge_func: weighted_mean, sum, mean (without weights) or max.
        int8_mask: accepted for mergekit's recipes; no effect.
    """
    dropped = each(drop_at_random, deltas, density, rescale=rescale)
    if any(share < 1 for share in spread(ties_density, len(deltas))):
        inclusive = trim_scope == "model" if inclusive_threshold is None else inclusive_threshold
        dropped = each(keep_largest, dropped, ties_density, scope=trim_scope, inclusive=inclusive)
    return sign_consensus(dropped, weight, normalize=normalize, tie_sign=tie_sign, merge_func=merge_func)
