"""OrthoMerge: what fine-tunes rotate is merged as rotations, what is left as task vectors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.methods.calls import current, noted
from cuvee.methods.combination import Matrices, plain
from cuvee.methods.measuring import measured
from cuvee.methods.papers.ties import ties
from cuvee.methods.papers.tsv_m import tsv_m
from cuvee.methods.pieces.combine import mean, weighted_sum
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import MATRIX, OPTIONAL, WEIGHTS, Bound, Fraction, Paper, merge_method
from cuvee.methods.spectral import cayley, decomposition_bytes, inverse_cayley, polar, spectral_norm, svd
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

Residual = Literal["task_arithmetic", "ties", "tsv_m"]

_SCALES = {"task_arithmetic": 0.2, "ties": 1.0, "tsv_m": 1.0}
_SIZE: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median_low,
    "max": max,
}
_HALF_TURN = 1e4
"""A skew matrix this large belongs to a rotation that turns something by 180 degrees: it has none that means anything."""


def ortho_bytes(rows: int, columns: int, models: int, _: Mapping[str, Any]) -> int:
    """Return the bytes that it holds: all residuals and what trims them, a rotation of each model, the rotated base."""
    side = min(columns, (models + 1) * rows)
    return 4 * (2 * models + 5) * rows * columns + (4 * models + 5 * 8) * side * side + decomposition_bytes(side)


@merge_method(
    paper=Paper("Orthogonal Model Merging", arxiv="2602.05943", year=2026),
    on=WEIGHTS,
    base=OPTIONAL,
    unit=MATRIX,
    others=None,
    embeddings=True,
    workspace=ortho_bytes,
    cost="K decompositions",
    formula="R_i = polar(Wᵀ W_i), A_i = (R_i + I)⁻¹(R_i − I);  A = theta ‖A_i‖ · Σ A_i / ‖Σ A_i‖, R = (I − A)⁻¹(I + A);  "
    "out = W R + residual_scale · residual(W_i − W R_i), W of the base",
    differs="The official code takes the polar factor of Wᵀ W_i as it is, which is arbitrary where W has fewer rows than "
    "columns and has no Cayley transform where its determinant is −1; ridge mends both (0: neither). It stores residuals "
    "in bfloat16. Of an expert that turns something by 180 degrees all is residual.",
)
def ortho_merge(
    deltas: Any,
    *,
    target: Literal["all", "conflict_rows"] = "all",
    conflict_threshold: Annotated[float, Bound(-1, 1)] = 0.0,
    theta: Literal["mean", "median", "max"] = "mean",
    direction_weight: Literal["theta", "uniform"] = "theta",
    residual: Residual = "task_arithmetic",
    residual_scale: float | None = None,
    density: Fraction = 0.2,
    ridge: Annotated[float, Bound(0)] = 1e-4,
    base: Tensor | None = None,
) -> Tensor:
    """Rotate the base by the mean of the experts' rotations, and add what their rotations do not explain.

    Without a base the models are orthogonal adapters (OFT): tensors called `oft_…` hold skew-symmetric blocks and become
    c/K · Σ A_i with c = Σ ‖A_i‖ / ‖Σ A_i‖; all other tensors are averaged.

    Args:
        deltas: (K, …).
        target: what a rotation is sought for: all of an expert, or only its rows that conflict with the mean task vector.
        conflict_threshold: rows conflict below this cosine.
        theta: which of the sizes of the rotations the merged one has.
        direction_weight: theta: large rotations count more; uniform: all the same.
        residual: how residuals, and what is no matrix, are merged.
        residual_scale: their coefficient; without it 0.2 for task_arithmetic, 1 for the others.
        density: of ties.
        ridge: what pulls rotations towards none where the base says little, relative to the norm of Wᵀ W_i.

    Returns:
        (…). One model with residual_scale 1 gives that model.
    """
    if base is None:
        return _adapters(deltas)
    scale = _SCALES[residual] if residual_scale is None else residual_scale
    if not isinstance(deltas, Matrices):
        return _merged(deltas, residual, density) * scale
    average = mean(deltas) if target == "conflict_rows" else None
    turns, sizes = [], []
    span = _span(base, deltas)
    inner = base if span is None else base @ span.mT
    one = torch.eye(inner.shape[1], dtype=torch.float64, device=base.device)
    total = torch.zeros_like(one)
    half_turns = 0
    for k in range(len(deltas)):
        delta = deltas[k]
        if average is not None:
            delta[torch.cosine_similarity(delta, average, dim=1) >= conflict_threshold] = 0
        expert = delta.add_(base)
        skew = _skew(inner, expert if span is None else expert @ span.mT, ridge)
        if skew is None:
            half_turns, skew = half_turns + 1, torch.zeros_like(one)
        size = float(skew.norm())
        total += skew / size if direction_weight == "uniform" and size else skew
        turns.append((cayley(skew) - one).to(base.dtype))
        sizes.append(size)
    if half_turns:
        noted(models_not_rotated=half_turns)
    length = float(total.norm())
    rotate = _SIZE[theta]
    turn = cayley(total * (rotate(sizes) / length if length >= 1e-8 else 0.0)) - one

    def moved(turn: Tensor) -> Tensor:  # W R − W, exactly 0 where nothing turns
        return inner @ turn if span is None else inner @ turn @ span

    residuals = Matrices(deltas.shape, lambda k: deltas[k].sub_(moved(turns[k])))
    return (_merged(residuals, residual, density) * scale).add_(moved(turn.to(base.dtype)))


def _span(base: Tensor, deltas: Matrices) -> Tensor | None:
    """Return an orthonormal basis (r, n) of all rows, beyond which nothing is rotated; None where it would not be small."""
    if (len(deltas) + 1) * base.shape[0] >= base.shape[1]:
        return None
    return svd(torch.cat([base, *deltas])).vh


def _skew(base: Tensor, expert: Tensor, ridge: float) -> Tensor | None:
    """Return the skew-symmetric matrix of the rotation R with base R ≈ expert, (n, n), float64; None of half a turn."""
    one = torch.eye(base.shape[1], dtype=torch.float64, device=base.device)
    overlap = base.double().mT @ expert.double()
    size = 0.0 if torch.equal(base, expert) else spectral_norm(overlap)
    if not size:  # no change has no rotation, not even by a rounding error that a residual would be made of
        return torch.zeros_like(one)
    skew = inverse_cayley(polar(overlap + ridge * size * one, rtol=0.0))
    return skew if bool(torch.isfinite(skew).all()) and float(skew.abs().max()) < _HALF_TURN else None


def _merged(residuals: Any, how: Residual, density: float) -> Tensor:
    """Return residuals or task vectors merged, without any scale."""
    if how == "tsv_m":
        return tsv_m(residuals) if isinstance(residuals, Matrices) else mean(residuals)
    return weighted_sum(residuals) if how == "task_arithmetic" else ties(plain(residuals), density=density)


def _adapters(values: Any) -> Tensor:
    """Return orthogonal adapters merged: the norm of a skew matrix is √2 that of the half that is stored."""
    values = plain(values)
    if "oft_" not in current(values[0]).place.tensor:
        return mean(values)
    gram = measured(Gram(), values)
    size = max(float(gram.sum()), 0.0) ** 0.5
    sizes = sum(float(gram[k, k]) ** 0.5 for k in range(len(values)))
    return weighted_sum(values, sizes / size / len(values) if size else 0.0)
