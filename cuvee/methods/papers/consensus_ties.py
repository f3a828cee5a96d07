"""Consensus TIES: merge by TIES, keep what several tasks use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.calls import Scope
from cuvee.methods.measuring import each
from cuvee.methods.pieces.localize import keep_consensus
from cuvee.methods.pieces.trim import keep_largest
from cuvee.methods.pieces.vote import MergeFunc, TieSign, sign_consensus
from cuvee.methods.registry import Bound, Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "Localizing Task Information for Improved Model Merging and Compression", arxiv="2405.07813", year=2024
    ),
    cost="a few rounds over the model; with trim_scope: tensor a few visits of each tensor",
    arrays=True,
    formula="τ = TIES(τ_i, ties_density);  m_i = [|τ_i| > mask_lambda_i · |τ − τ_i|];  "
    "out = θ_0 + scaling · [Σ m_i ≥ k] ⊙ τ",
    differs="As the official code, with masks from untrimmed task vectors; a balanced vote counts as plus unless tie_sign says "
    "otherwise. That code chooses mask_lambda of each task on validation data, from 0.2 to 0.6.",
)
def consensus_ties(
    deltas: Tensor,
    *,
    mask_lambda: PerModel[Annotated[float, Bound(0)]] = 0.4,
    k: Annotated[int, Bound(0)] = 2,
    ties_density: PerModel[Fraction] = 0.2,
    trim_scope: Scope = "model",
    tie_sign: TieSign = "plus",
    merge_func: MergeFunc = "sum",
) -> Tensor:
    """Merge by TIES, and keep the entries that at least k tasks use.

    Args:
        deltas: (K, …).
        mask_lambda: the larger, the fewer entries count as used by this task.
        k: 0 keeps all (TIES), 1 drops what no task uses, 2 also what only one does; beyond K all goes.
        ties_density, trim_scope, tie_sign, merge_func: as density and the others in ties.
    """
    trimmed = each(keep_largest, deltas, ties_density, scope=trim_scope, inclusive=trim_scope == "model")
    merged = sign_consensus(trimmed, tie_sign=tie_sign, merge_func=merge_func)
    return keep_consensus(merged, deltas, mask_lambda, k)
