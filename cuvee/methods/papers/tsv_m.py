"""Task Singular Vectors: keep each model's leading directions, and make those of all models orthogonal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.methods.combination import Matrices
from cuvee.methods.pieces.subspaces import leading_directions, merged_whole, orthogonal_frames
from cuvee.methods.registry import MATRIX, Bound, Paper, PerModel, merge_method
from cuvee.methods.spectral import holding

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Task Singular Vectors: Reducing Task Interference in Model Merging", arxiv="2412.00081", year=2024),
    unit=MATRIX,
    workspace=holding(
        matrices=3, factors=3
    ),  # base, a task vector, the result, the factors of all models and their frames
    cost="K + 2 decompositions",
    formula="τ_i ≈ U_i S_i V_iᵀ, rank r;  U = polar [U_1 … U_K], V = polar [V_1 … V_K];  out = θ_0 + scaling · U S Vᵀ",
    differs="The official code gives every model min(m, n)/K directions even where its task vector has fewer (a merged LoRA), "
    "and equal standing to noise and signal (rank: share keeps that); equal directions of several models are not unique there. "
    "It treats embeddings and heads as matrices too (not_matrix: []).",
)
def tsv_m(
    deltas: Matrices,
    *,
    weight: PerModel[float] = 1.0,
    rank: PerModel[Annotated[int, Bound(1)] | Literal["auto", "share"]] = "auto",
    polar_rtol: Annotated[float, Bound(0, 1)] = 1e-4,
) -> Tensor:
    """Merge the leading singular directions of each task vector after making them orthogonal to one another.

    Args:
        deltas: (K, m, n).
        weight: of each model, a factor of its singular values.
        rank: of each model; share: min(m, n) // K; auto: the same, and never more than a task vector of low rank has.
        polar_rtol: directions of the joint frame that are this much weaker than the strongest are repetitions.

    Returns:
        (m, n). One model, where it may have all directions, gives its own task vector; where min(m, n) < 2 K, the mean.
    """
    whole = merged_whole(deltas, weight, rank)
    if whole is not None:
        return whole
    return orthogonal_frames(leading_directions(deltas, rank, weight), polar_rtol).matrix
