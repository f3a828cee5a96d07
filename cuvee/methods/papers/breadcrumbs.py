"""Model Breadcrumbs: drop both the largest and the smallest entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.measuring import each
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.rescale import Rescale, rescale_kept
from cuvee.methods.pieces.trim import keep_band, keep_largest_of_rows
from cuvee.methods.registry import ROW, Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Model Breadcrumbs", arxiv="2312.06795", year=2023),
    unit=ROW,
    cost="a few visits of each tensor",
    arrays=True,
    formula="τ̂_i = τ_i without its largest `gamma` share, then the largest so that `density` is kept;  "
    "out = θ_0 + scaling · Σ weight_i τ̂_i",
    differs="As mergekit, by tensor; but there a tensor too small for gamma to name one element (int(gamma·n) = 0) loses its "
    "whole task vector (compat: mergekit keeps that). The official code works by rows: keep_top, remove_top.",
)
def breadcrumbs(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    density: PerModel[Fraction] = 1.0,
    gamma: PerModel[Fraction] = 0.01,
    normalize: bool = False,
    rescale: Rescale = False,
    keep_top: Fraction | None = None,
    remove_top: Fraction = 0.0,
    remove_first: bool = True,
    int8_mask: bool = False,
) -> Tensor:
    """Drop the largest and the smallest entries of task vectors, and add.

    Args:
        deltas: (K, …).
        weight: coefficient of each model.
        density: share of each tensor kept; 1 keeps all, outliers too.
        gamma: share of the largest entries dropped.
        normalize: divide by the sum of weights.
        rescale: give each tensor its old Σ|x| back ("l1", true), or divide by density ("expected").
        keep_top: the official variant: share kept of each row, the largest of what remove_top left. Replaces density, gamma;
            without it and with remove_top all that is left.
        remove_top: share of the largest dropped from each row.
        remove_first: drop before keeping; otherwise of what keep_top has kept.
        int8_mask: accepted for mergekit's recipes; no effect.
    """
    if keep_top is not None or remove_top > 0:
        share = 1.0 if keep_top is None else keep_top
        kept = each(keep_largest_of_rows, deltas, share, remove_top, remove_first=remove_first)
    else:
        kept = each(_kept, deltas, density, gamma, rescale=rescale)
    return weighted_sum(kept, weight, normalize=normalize)


def _kept(delta: Tensor, density: float, gamma: float, *, rescale: Rescale) -> Tensor:
    kept = keep_band(delta, density, gamma)
    return kept if density >= 1 else rescale_kept(kept, delta, rescale, density)
