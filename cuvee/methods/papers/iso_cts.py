"""Isotropic merging in common and task-specific subspaces: Iso-C, with room made for what each model has of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cuvee.methods.calls import noted
from cuvee.methods.combination import Matrices, spread
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.subspaces import orthogonal_frames
from cuvee.methods.registry import MATRIX, Fraction, Paper, PerModel, merge_method
from cuvee.methods.spectral import Spectrum, holding, numerical_rank, strong_svd, svd

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING_OF_ITS_OWN = 1e-6


@merge_method(
    paper=Paper(
        "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
        arxiv="2502.04959",
        year=2025,
    ),
    unit=MATRIX,
    workspace=holding(matrices=4, factors=3),  # base, a task vector, its projection, the result; directions, frames
    cost="K + 3 decompositions; every model is read twice",
    formula="Σ weight_i · τ_i ≈ U_c S_c V_cᵀ, rank c ≈ common_fraction · min(m, n);  "
    "τ_i − U_c U_cᵀ τ_i ≈ U_i S_i V_iᵀ, rank (min(m, n) − c) / K;  "
    "U = polar [U_1 … U_K U_c], V = polar [V_1 … V_K V_c];  out = θ_0 + scaling · mean(S) · U Vᵀ",
    differs="The official code takes min(m, n) directions even where the sum has fewer (rank: full keeps that; its LoRA port "
    "takes 16 a model, about what auto finds); rounding may give it more task directions than there are. It treats embeddings "
    "and heads as matrices too (not_matrix: []).",
)
def iso_cts(
    deltas: Matrices,
    *,
    weight: PerModel[float] = 1.0,
    common_fraction: Fraction = 0.8,
    rank: Literal["auto", "full"] = "auto",
) -> Tensor:
    """Give equal standing to the leading directions of the sum and to those of each model outside of them.

    Args:
        deltas: (K, m, n).
        weight: of each model, a factor of its task vector.
        common_fraction: share of the directions that are the sum's; the others are split among the models. 1 is iso_c.
        rank: auto: a sum of low rank shares out its own rank; full: min(m, n).

    Returns:
        (m, n); zeros where the sum is zero.
    """
    total, side = weighted_sum(deltas, weight), min(deltas.shape[1:])
    shared = strong_svd(total) if rank == "auto" else svd(total)
    slots = numerical_rank(shared.s, side) if rank == "auto" else side
    own = _own_directions(slots, len(deltas), common_fraction)
    common = shared.cut(slots - own * len(deltas))
    noted(rank=len(common.s), own_directions=own)
    parts = [_outside(deltas[k] * w, common, own) for k, w in enumerate(spread(weight, len(deltas)))] if own else []
    frames = orthogonal_frames([*parts, common])
    return (frames.u @ frames.vh) * (float(frames.s.sum()) / max(1, slots))


def _own_directions(slots: int, models: int, common_fraction: float) -> int:
    """Return how many directions each model gets, half a direction rounded to even as in the official code."""
    return min(round((slots - int(slots * common_fraction)) / models), slots // models)


def _outside(delta: Tensor, common: Spectrum, rank: int) -> Spectrum:
    """Return the leading directions of what a task vector has outside of the common left subspace, if it has anything."""
    size = float(delta.norm())
    found = svd(delta - common.u @ (common.u.mT @ delta), rank)
    return found.cut(int((found.s > _NOTHING_OF_ITS_OWN * size).sum()))
