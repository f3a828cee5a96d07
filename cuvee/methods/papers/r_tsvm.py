"""R-TSVM (RESM): task singular vectors whose models are weighted by outliers, and have ranks by density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.combination import Matrices, spread
from cuvee.methods.pieces.subspaces import leading_directions, merged_whole, orthogonal_frames, share_of_rank
from cuvee.methods.registry import MATRIX, Bound, Paper, PerModel, merge_method
from cuvee.methods.spectral import holding

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "Mix Data or Merge Models? Balancing the Helpfulness, Honesty, and Harmlessness of Large Language Model via "
        "Model Merging",
        arxiv="2502.06876",
        year=2025,
    ),
    unit=MATRIX,
    workspace=holding(matrices=3, factors=3),  # as tsv_m
    cost="K + 2 decompositions; every model is read twice",
    formula="a_i = Σ |x| over the entries of τ_i above mean + outlier · std of |τ_i|;  w_i = K a_i / Σ a_j;  "
    "r_i ≈ min(m, n) · density_i / Σ density_j;  τ_i ≈ U_i S_i V_iᵀ, rank r_i;  U = polar [U_1 … U_K], V = polar [V_1 … V_K];  "
    "out = θ_0 + scaling · U diag(weight_i w_i S_i) Vᵀ",
    differs="Text and code of the paper were not seen. That outliers weigh the models and sparsity sets the ranks is its own; "
    "the formulas are Cuvée's. Models of equal density and equal outliers give tsv_m.",
    status="reconstruction",
)
def r_tsvm(
    deltas: Matrices,
    *,
    weight: PerModel[float] = 1.0,
    outlier: Annotated[float, Bound(0)] = 3.0,
    threshold: Annotated[float, Bound(0)] = 1e-5,
    polar_rtol: Annotated[float, Bound(0, 1)] = 1e-4,
) -> Tensor:
    """Merge leading singular directions, made orthogonal; models with heavy tails count more, dense ones get more rank.

    Args:
        deltas: (K, m, n).
        weight: of each model, on top of what its outliers give it.
        outlier: deviations above the mean magnitude from which an entry is one.
        threshold: magnitude above which an entry counts as changed, or 1 % of the largest if that is less.
        polar_rtol: directions of the joint frame that are this much weaker than the strongest are repetitions.

    Returns:
        (m, n). One model gives its own task vector; where min(m, n) < 2 K, the mean.
    """
    whole = merged_whole(deltas, weight, "auto")
    if whole is not None:
        return whole
    side = min(deltas.shape[1:])
    found = [_outliers_and_density(deltas[k], outlier, threshold) for k in range(len(deltas))]
    scores, densities = _shares([one[0] for one in found]), _shares([one[1] for one in found])
    weights = [w * score * len(deltas) for w, score in zip(spread(weight, len(deltas)), scores, strict=True)]
    ranks = _ranks(densities, side, share_of_rank(deltas) * len(deltas))
    return orthogonal_frames(leading_directions(deltas, ranks, weights, strong=True), polar_rtol).matrix


def _outliers_and_density(delta: Tensor, outlier: float, threshold: float) -> tuple[float, float]:
    """Return the sum of the magnitudes of outliers, and the share of entries that have changed."""
    sizes = delta.abs()
    limit = float(sizes.mean() + outlier * sizes.std())
    changed = min(threshold, float(sizes.max()) / 100)
    return float((sizes * (sizes > limit)).sum()), float((sizes > changed).count_nonzero()) / sizes.numel()


def _ranks(shares: list[float], side: int, directions: int) -> list[int]:
    """Return each model's share of the directions, at least 1, rounded to nearest where they fit in a side, else down."""
    nearest = [max(1, round(directions * share)) for share in shares]
    return nearest if sum(nearest) <= side else [max(1, int(directions * share)) for share in shares]


def _shares(values: list[float]) -> list[float]:
    """Return values divided by their sum; equal shares where all are zero."""
    total = sum(values)
    return [value / total if total else 1 / len(values) for value in values]
