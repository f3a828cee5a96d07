"""Consensus task arithmetic: add task vectors, keep what several tasks use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.localize import keep_consensus
from cuvee.methods.registry import Bound, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "Localizing Task Information for Improved Model Merging and Compression", arxiv="2405.07813", year=2024
    ),
    arrays=True,
    formula="τ = Σ τ_i;  m_i = [|τ_i| > mask_lambda_i · |τ − τ_i|];  out = θ_0 + scaling · [Σ m_i ≥ k] ⊙ τ",
    differs="As the official code, which chooses mask_lambda of each task on validation data, from 0.2 to 0.6.",
)
def consensus_ta(
    deltas: Tensor, *, mask_lambda: PerModel[Annotated[float, Bound(0)]] = 0.4, k: Annotated[int, Bound(0)] = 2
) -> Tensor:
    """Add task vectors, and keep the entries that at least k tasks use.

    Args:
        deltas: (K, …). The paper's scaling is about 0.3.
        mask_lambda: the larger, the fewer entries count as used by this task.
        k: 0 keeps all (task arithmetic), 1 drops what no task uses, 2 also what only one does; beyond K all goes.
    """
    return keep_consensus(weighted_sum(deltas, 1.0), deltas, mask_lambda, k)
