"""Isotropic merging in the common subspace: the sum of the task vectors with all its singular values made equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cuvee.methods.calls import noted
from cuvee.methods.combination import Matrices
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import MATRIX, Paper, PerModel, merge_method
from cuvee.methods.spectral import holding, numerical_rank, with_singular_values

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
        arxiv="2502.04959",
        year=2025,
    ),
    unit=MATRIX,
    workspace=holding(matrices=4),  # base, a task vector, the sum and the result
    cost="1 decomposition",
    formula="A = Σ weight_i · τ_i = U S Vᵀ;  out = θ_0 + scaling · mean(S) · U Vᵀ",
    differs="The official code counts directions in which a sum of low rank has nothing but noise (rank: full); 96 % of its "
    "output then lies in them. It treats embeddings and heads as matrices too (not_matrix: []).",
)
def iso_c(deltas: Matrices, *, weight: PerModel[float] = 1.0, rank: Literal["auto", "full"] = "auto") -> Tensor:
    """Give every direction of the summed task vectors the mean singular value.

    Args:
        deltas: (K, m, n).
        weight: of each model in the sum.
        rank: auto: a sum of low rank keeps its rank; full: every direction counts that is not exactly zero.

    Returns:
        (m, n); zeros where the sum is zero.
    """
    side = min(deltas.shape[1:])

    def level(s: Tensor) -> Tensor:
        kept = numerical_rank(s, side) if rank == "auto" else side
        noted(rank=min(kept, len(s)))
        flat = s.new_zeros(len(s))
        flat[:kept] = s[:kept].sum() / max(1, kept)
        return flat

    return with_singular_values(weighted_sum(deltas, weight), level, strong=rank == "auto")
