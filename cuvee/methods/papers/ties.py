"""TIES-Merging: trim, elect a sign, merge those that agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.calls import Scope
from cuvee.methods.measuring import each
from cuvee.methods.pieces.rescale import Rescale, rescale_kept
from cuvee.methods.pieces.trim import keep_largest
from cuvee.methods.pieces.vote import MergeFunc, TieSign, sign_consensus
from cuvee.methods.registry import Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("TIES-Merging", arxiv="2306.01708", year=2023),
    cost="a few visits of each tensor; with trim_scope: model a few rounds over the model",
    arrays=True,
    formula="τ̂_i = the largest `density` of τ_i;  s = sgn Σ weight_i τ̂_i;  "
    "out = θ_0 + scaling · Σ_{sgn τ̂_i = s} weight_i τ̂_i / Σ_{sgn τ̂_i = s} weight_i",
    differs="Default as mergekit: the trim is by tensor, weights vote and scale. The official code trims over the whole "
    "model, has no weights, and gives a balanced vote the model's majority sign: trim_scope: model, "
    "tie_sign: global_majority, merge_func: mean. Where mergekit fails because density keeps "
    "no element of a small tensor, that task vector counts as zero there.",
)
def ties(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    density: PerModel[Fraction] = 1.0,
    normalize: bool = True,
    rescale: Rescale = False,
    trim_scope: Scope = "tensor",
    inclusive_threshold: bool | None = None,
    tie_sign: TieSign = "plus",
    merge_func: MergeFunc = "weighted_mean",
    int8_mask: bool = False,
) -> Tensor:
    """Trim task vectors, elect one sign per element, and merge the entries that have it.

    Args:
        deltas: (K, …).
        weight: coefficient of each model, in the vote and in the result.
        density: share of each task vector kept, the largest magnitudes; 1 keeps all.
        normalize: divide by the weights of the models that agree.
        rescale: give each trimmed tensor its old Σ|x| back ("l1", true), or divide by density ("expected").
        trim_scope: where the share is taken: in each tensor, layer, or the whole model.
        inclusive_threshold: keep every entry that reaches the threshold; without it, as the official code, where
            trim_scope is model.
        tie_sign: the sign of a balanced vote: plus, or that of most elements of the model.
        merge_func: weighted_mean, sum, mean (without weights) or max.
        int8_mask: accepted for mergekit's recipes; no effect.

    Returns:
        (…); one model at density 1 comes back as it is.
    """
    inclusive = trim_scope == "model" if inclusive_threshold is None else inclusive_threshold
    trimmed = each(_trimmed, deltas, density, rescale=rescale, scope=trim_scope, inclusive=inclusive)
    return sign_consensus(trimmed, weight, normalize=normalize, tie_sign=tie_sign, merge_func=merge_func)


def _trimmed(delta: Tensor, density: float, *, rescale: Rescale, scope: Scope, inclusive: bool) -> Tensor:
    kept = keep_largest(delta, density, scope=scope, inclusive=inclusive)
    return kept if density >= 1 else rescale_kept(kept, delta, rescale, density)
