"""TIES with a slack variable: a model whose entries the vote does not discard so soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.calls import Scope
from cuvee.methods.combination import spread
from cuvee.methods.measuring import each
from cuvee.methods.pieces.trim import keep_largest
from cuvee.methods.pieces.vote import weigh_consensus
from cuvee.methods.registry import Bound, Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Unlocking the Potential of Model Merging for Low-Resource Languages", arxiv="2407.03994", year=2024),
    cost="a few visits of each tensor",
    arrays=True,
    status="reconstruction",
    formula="τ̂_i = the largest `density` of τ_i;  s = sgn Σ (1 + slack_i) weight_i τ̂_i;  "
    "out = θ_0 + scaling · Σ_{sgn τ̂_i = s} weight_i τ̂_i / Σ_{sgn τ̂_i = s} weight_i",
    differs="A reconstruction: the paper's formula was not seen, only that a slack variable relaxes the vote of TIES, which "
    "discards ever more of an instruct model the longer the other one was trained on a language.",
)
def ties_sv(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    density: PerModel[Fraction] = 1.0,
    slack: PerModel[Annotated[float, Bound(0)]] = 0.0,
    normalize: bool = True,
    trim_scope: Scope = "tensor",
) -> Tensor:
    """Merge by TIES with more votes for a model that is to be protected.

    Args:
        deltas: (K, …), such as a model trained on a language and an instruct model.
        weight: coefficient of each model, in the vote and in the result.
        density: share of each task vector kept, the largest magnitudes.
        slack: how much more a model's votes count; 0 is TIES, a very large one always wins.
        normalize: divide by the weights of the models that agree.
        trim_scope: where the share is taken: in each tensor, layer, or the whole model.
    """
    trimmed = each(keep_largest, deltas, density, scope=trim_scope, inclusive=trim_scope == "model")
    weights = [float(w) for w in spread(weight, len(deltas))]
    votes = [w * (1 + float(s)) for w, s in zip(weights, spread(slack, len(deltas)), strict=True)]
    return weigh_consensus(trimmed, votes, weights, normalize=normalize)
