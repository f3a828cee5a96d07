"""DC-Merge: sparse sign consensus between the cores that task vectors have in common cover spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.methods.combination import Matrices, spread
from cuvee.methods.pieces.subspaces import leading_directions, mean_if_narrow, orthogonal_frames, share_of_rank
from cuvee.methods.registry import MATRIX, Bound, Fraction, Paper, PerModel, merge_method
from cuvee.methods.spectral import Spectrum, holding
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

Smoothing = Literal["avg", "linear"]

_AS_LARGE = 1 - 1e-5
_ROUNDING = 1e-6


@merge_method(
    paper=Paper("DC-Merge: Improving Model Merging with Directional Consistency", arxiv="2603.06242", year=2026),
    unit=MATRIX,
    workspace=holding(
        matrices=3, factors=3, cores=6
    ),  # base, a task vector, the result, all directions, their frames, cores
    cost="K + 2 decompositions",
    formula="τ_i ≈ U_i S_i V_iᵀ, rank r, S_i smoothed;  C_u = polar [U_1 … U_K], C_v = polar [V_1 … V_K];  "
    "M_i = the `keep` largest entries of C_uᵀ U_i S_i V_iᵀ C_v;  M = mean of the entries that have the sign of Σ M_i, "
    "in the blocks of each model's own directions;  out = θ_0 + scaling · C_u M C_vᵀ",
    differs="The official code for full fine-tunes gives every model min(m, n)/K directions even where it has fewer (rank: "
    "share); its code for LoRA takes rank 16 and smoothing: avg (or linear). Where no rank is set, `keep` counts entries of a "
    "min(m, n) × min(m, n) core, padding included, as there. Entries within 1e-5 of the smallest that is kept are kept too; "
    "those below 1e-6 of the largest are rounding, and take no part in a mean. Of what K models have alike the blocks of each "
    "leave 1/K, as in the official code: equal models give a K-th of one, which scaling makes up for.",
)
def dc_merge(
    deltas: Matrices,
    *,
    weight: PerModel[float] = 1.0,
    rank: PerModel[Annotated[int, Bound(1)] | Literal["auto", "share"]] = "auto",
    smoothing: Smoothing | None = None,
    rho: Annotated[float, Bound(1)] = 5.0,
    keep: Fraction = 1e-3,
) -> Tensor:
    """Merge task vectors by sign consensus in a basis that covers the leading directions of all.

    Args:
        deltas: (K, m, n).
        weight: of each model, a factor of its singular values.
        rank: directions of each model; share: min(m, n) // K; auto: the same, and never more than a task vector of low
            rank has.
        smoothing: of singular values, whose sum stays: avg: all alike; linear: falling evenly. Good for LoRA, not for full
            fine-tunes.
        rho: of linear, the first singular value beside the last, at most.
        keep: share of the entries of each core that is kept, the largest; at least one.

    Returns:
        (m, n); where min(m, n) < 2 K and K > 1, the mean.
    """
    mean = mean_if_narrow(deltas, weight)
    if mean is not None:
        return mean
    side = min(deltas.shape[1:])
    spectra = [_smoothed(one, smoothing, rho) for one in leading_directions(deltas, rank, weight)]
    cover = orthogonal_frames(spectra)
    sizes = [len(one.s) for one in spectra]
    declared = any(isinstance(one, int) for one in spread(rank, len(deltas)))
    padded = not declared and set(sizes) == {share_of_rank(deltas)}
    kept = max(1, int(keep * (side if padded else sum(sizes)) ** 2))
    blocks = torch.stack([_own_blocks(_largest(_core(one, cover), kept), sizes) for one in spectra])
    merged = _consensus(blocks)
    out = cover.u.new_zeros(deltas.shape[1:])
    parts = (torch.split(cover.u, sizes, 1), torch.split(cover.vh, sizes), _unpacked(merged, sizes))
    for u, vh, block in zip(*parts, strict=True):
        out += u @ block @ vh
    return out


def _smoothed(one: Spectrum, smoothing: Smoothing | None, rho: float) -> Spectrum:
    if smoothing is None or not len(one.s):
        return one
    top = min(rho, float(one.s[0] / one.s[-1])) if smoothing == "linear" else 1.0
    shape = torch.linspace(top, 1.0, len(one.s), dtype=one.s.dtype, device=one.s.device)
    return one._replace(s=shape * (one.s.sum() / shape.sum()))


def _core(one: Spectrum, cover: Spectrum) -> Tensor:
    """Return C_uᵀ T C_v of a truncated task vector T, (q, q)."""
    return (cover.u.mT @ one.u * one.s) @ (one.vh @ cover.vh.mT)


def _largest(core: Tensor, count: int) -> Tensor:
    """Zero all but the `count` largest entries by magnitude, and those as large but for rounding; zero what is rounding."""
    if not core.numel():
        return core
    sizes = core.abs()
    threshold = sizes.reshape(-1).kthvalue(max(0, core.numel() - count) + 1).values
    return core * (sizes >= torch.maximum(threshold * _AS_LARGE, sizes.amax() * _ROUNDING))


def _own_blocks(core: Tensor, sizes: list[int]) -> Tensor:
    """Return the diagonal blocks, (Σ size²,): what lies between the directions of two models takes no part."""
    rows = torch.split(core, sizes)
    return torch.cat([torch.split(row, sizes, 1)[k].reshape(-1) for k, row in enumerate(rows)])


def _unpacked(blocks: Tensor, sizes: list[int]) -> list[Tensor]:
    parts = torch.split(blocks, [size * size for size in sizes])
    return [part.reshape(size, size) for part, size in zip(parts, sizes, strict=True)]


def _consensus(values: Tensor) -> Tensor:
    """Return the mean of the entries that have the sign of their sum, (K, n) into (n,); 0 where the sum is 0."""
    agrees = values * values.sum(0).sign() > 0
    return (values * agrees).sum(0) / agrees.sum(0).clamp(min=1)
