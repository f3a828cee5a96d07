"""Singular value calibration: weaken the directions of a merged task vector that several models have all added to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cuvee.methods.registry import MATRIX, Bound, Paper, Role, edit
from cuvee.methods.spectral import holding, svd
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["singular_value_calibration"]

_NO_RESPONSE = 1e-12
_LEAST = 1e-300


@edit(
    role=Role.REFINER,
    paper=Paper(
        "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging", arxiv="2602.05536", year=2026
    ),
    unit=MATRIX,
    embeddings=True,
    workspace=holding(matrices=7),  # merged, its factors, a task vector, its responses, products, the result
    once="what the first has weakened the second would weaken again, for the same responses",
    cost="1 decomposition; and K + 1 products of 2 m n min(m, n) operations",
    formula="τ = U S Vᵀ;  a_ij = u_jᵀ τ_i,  c_ij = ⟨s_j v_j, a_ij⟩ / max(‖a_ij‖², 1e-12 ‖τ_i‖²);  "
    "g_j = K / Σ_i max(alpha, c_ij);  τ ← Σ_j g_j s_j u_j v_jᵀ",
    differs="The official code divides by max(‖a_ij‖², 1e-12), whatever the norm of τ_i. Embeddings are matrices, as there; "
    "what is no matrix stays as it is.",
)
def singular_value_calibration(
    merged: Tensor, deltas: Sequence[Tensor], *, alpha: Annotated[float, Bound(0, open_low=True)] = 1.0
) -> Tensor:
    """Divide each singular value of the merged task vector by how many times over the models' own responses it holds.

    In direction u_j of the merged τ = U S Vᵀ, model i answers with a_ij, and the merged model with s_j v_jᵀ.

    Args:
        alpha: the least that a coefficient c_ij counts; 1 can only weaken, less may strengthen directions in which
            the merged task vector has less than every model.
    """
    u, s, vh = svd(merged)
    own = s[:, None] * vh
    counts = torch.zeros_like(s, dtype=torch.float64)
    for k in range(len(deltas)):
        delta = deltas[k]
        answer = u.mT @ delta
        floor = max(_NO_RESPONSE * float(_squares(delta).sum()), _LEAST)
        overlap = (own * answer).sum(1, dtype=torch.float64)
        counts += (overlap / _squares(answer).clamp(min=floor)).clamp(min=alpha)
    gain = (len(deltas) / counts - 1).to(merged.dtype)
    return merged + (u * gain) @ own


def _squares(rows: Tensor) -> Tensor:
    """Return the sum of squares of each row, float64."""
    return (rows * rows).sum(1, dtype=torch.float64)
