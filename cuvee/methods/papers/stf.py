"""Superpose Task-specific Features: the least matrix that answers each model's directions as that model does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.methods.calls import noted
from cuvee.methods.combination import Matrices
from cuvee.methods.pieces.subspaces import leading_directions, merged_whole
from cuvee.methods.registry import MATRIX, Bound, Paper, PerModel, merge_method
from cuvee.methods.spectral import Spectrum, holding, least_solution
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Superpose Task-specific Features for Model Merging", arxiv="2502.10698", year=2025),
    unit=MATRIX,
    workspace=holding(matrices=4, factors=3),  # base, a task vector, the result, all directions, the system in float64
    cost="K decompositions; 1 linear system",
    formula="τ_i ≈ Σ_j s_ij u_ij v_ijᵀ, rank r;  M = Σ a_ij u_ij v_ijᵀ with u_ijᵀ M v_ij = s_ij for all i and j;  "
    "out = θ_0 + scaling · M",
    differs="Neither paper nor code was seen: the idea is the paper's, the linear system and its least solution, which asks "
    "once for what several models have alike, Cuvée's. The rank of each model is not known from the paper; with all min(m, n) "
    "the system has K times as many unknowns as a side. A note of others says that the paper adds up biases and embeddings and "
    "averages norms: others does one for all.",
    status="reconstruction",
)
def stf(
    deltas: Matrices,
    *,
    weight: PerModel[float] = 1.0,
    rank: PerModel[Annotated[int, Bound(1)] | Literal["auto", "share"]] = "auto",
) -> Tensor:
    """Superpose the leading directions of all models so that each still has its own strength.

    Args:
        deltas: (K, m, n).
        weight: of each model, a factor of its singular values.
        rank: directions of each model; share: min(m, n) // K; auto: the same, and never more than a task vector of low
            rank has.

    Returns:
        (m, n). One model, where it may have all directions, gives its own task vector; where min(m, n) < 2 K, the mean.
    """
    whole = merged_whole(deltas, weight, rank)
    if whole is not None:
        return whole
    spectra = leading_directions(deltas, rank, weight)
    u, s, vh = (torch.cat(parts, axis) for parts, axis in zip(zip(*spectra, strict=True), (1, 0, 0), strict=True))
    a, repetitions = least_solution((u.mT @ u).double() * (vh @ vh.mT).double(), s)
    if repetitions:
        noted(repeated_directions=repetitions)
    return Spectrum(u, a.to(s.dtype), vh).matrix
