"""Factors of low-rank adapters, W = B A, merged as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cuvee.errors import MethodError
from cuvee.methods.pieces.trim import keep_largest
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Factors", "merge_robustly"]


class Factors(NamedTuple):
    """The factors of one adapter: `down` (R, I), called A in its file, and `up` (O, R), called B."""

    down: Tensor
    up: Tensor


def merge_robustly(
    adapters: Sequence[Factors], *, density: float = 0.2, clamp_top: float = 0.2, factor_scale: float = 2.0
) -> Factors:
    """Merge adapters of one rank: trimmed down-factors add up, up-factors are averaged by how much the trim took.

    A = factor_scale · Σ Â_i and B = factor_scale · Σ c_i B̂_i / Σ c_i, where Â and B̂ keep the largest entries, and
    c_i, one for each rank, is Σ|A_i| / Σ|Â_i| along its row, lifted to the `clamp_top` largest.

    Args:
        adapters: K of them, at least one.
        density: share of entries kept of each factor, all that reach its threshold.
        clamp_top: share of ranks whose c stays as it is; the others get the smallest of theirs.
        factor_scale: coefficient of both factors, so its square of their product.

    Returns:
        Factors of the same rank. Their product holds B̂_i Â_j of different models too. A row that the trim leaves empty
        counts with c = 1 before it is lifted (0/0 in the official code).

    Raises:
        MethodError: there are none, or their shapes differ.

    Source: RobustMerge, first called CoPA-Merging, arXiv 2502.17159; official code `load_and_merge_pretrained_model`.
    """
    if not adapters:
        raise MethodError("no adapters", right="at least one")
    shapes = {(tuple(one.down.shape), tuple(one.up.shape)) for one in adapters}
    if len(shapes) > 1 or any(down[0] != up[1] for down, up in shapes):
        raise MethodError(f"the factors are {sorted(shapes)}", right="adapters of one shape and rank")
    kept = [Factors(*(keep_largest(factor, density, inclusive=True) for factor in one)) for one in adapters]
    gains = [_gain(one.down, trimmed.down, clamp_top) for one, trimmed in zip(adapters, kept, strict=True)]
    down = torch.stack([one.down for one in kept]).sum(0)
    up = torch.stack([gain * one.up for gain, one in zip(gains, kept, strict=True)]).sum(0) / sum(gains)
    return Factors(factor_scale * down, factor_scale * up)


def _gain(down: Tensor, kept: Tensor, clamp_top: float) -> Tensor:
    """Return c, (R,)."""
    before, after = down.abs().sum(1), kept.abs().sum(1)
    gain = torch.where(after > 0, before / after.clamp(min=torch.finfo(after.dtype).tiny), 1.0)
    ranks = len(gain)
    return gain.clamp(min=gain.sort().values[min(int(ranks * (1 - clamp_top)), ranks - 1)]) if ranks else gain
