"""The filter of outputs of SWUDI: directions of outputs that few task vectors write to are damped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cuvee.methods.pieces.regression import FLOOR, unit_gram
from cuvee.methods.registry import MATRIX, Bound, Paper, Role, edit
from cuvee.methods.spectral import decomposition_bytes, eigh, product
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["output_filter"]


def _bytes(rows: int, columns: int, models: int, _: Mapping[str, Any]) -> int:
    """Return the bytes that it holds: the result and a product in float64; the moments of outputs, and what solves them."""
    return (8 + 4) * rows * columns + 8 * 2 * rows * rows + decomposition_bytes(rows)


@edit(
    role=Role.REFINER,
    paper=Paper("Closed-Form Spectral Regularization for Multi-Task Model Merging", arxiv="2606.07289", year=2026),
    unit=MATRIX,
    workspace=_bytes,
    once="the same directions would be damped twice; a smaller time damps them more",
    cost="1 eigendecomposition; of the output side, and of K Gram matrices of 2 m² n operations",
    formula="Σ τ_i τ_iᵀ / ‖τ_i‖² = U diag(σ) Uᵀ;  τ ← U diag(1 − exp(−σ · time)) Uᵀ τ",
    differs="Of arXiv 2606.07289, where it may follow the closed form of wudi_merging; its code gives `time` no default, 1000 "
    "is ours. Directions with σ of 1e-8 or less are filtered as those of 1e-8. What is no matrix stays as it is.",
)
def output_filter(merged: Tensor, deltas: Tensor, *, time: Annotated[float, Bound(0)] = 1000.0) -> Tensor:
    """Damp the directions of outputs in a merged task vector that few models write to.

    Args:
        time: towards infinity the merge comes out unchanged, where any model has moved; 0: the base.
    """
    moments = merged.new_zeros((len(merged), len(merged)), dtype=torch.float64)
    for delta in deltas:
        moments += unit_gram(delta, "rows")
    values, u = eigh(moments)
    gain = -torch.expm1(-values.clamp(min=FLOOR) * time)
    return product(product(merged.mT, u, torch.float64) * gain, u.mT, merged.dtype).mT
