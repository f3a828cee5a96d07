"""Tell entries that only one model changed from those that several did, and scale the former."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.measuring import Scope, measured
from cuvee.methods.pieces.vote import sum_models
from cuvee.methods.reductions import Sums
from cuvee.tensors.masking import keep_where

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["average_shared_scale_unique"]


def average_shared_scale_unique(deltas: Tensor, epsilon: float, r: float, alpha: float, scope: Scope) -> Tensor:
    """Average the entries that several models changed; take those that one did times 1 + r · clip(ρ, 0, alpha).

    Args:
        deltas: (K, …).
        epsilon: changes up to this count as none.
        r: strength of the scaling.
        alpha: upper limit of ρ, the ratio of a model's shared entries to its unique ones.
        scope: over which entries are counted.

    Source: RAM+, arXiv 2601.13572.
    """
    changed = deltas.abs() > epsilon
    count = changed.sum(0)
    shared, unique = changed & (count >= 2), changed & (count == 1)
    counts = measured(Sums("nonzero"), [*shared, *unique], scope=scope).astype(float)
    k = len(deltas)
    # A model without unique entries has none to scale.
    ratios = [s / u if u else 0.0 for s, u in zip(counts[:k], counts[k:], strict=True)]
    scales = [1 + r * min(ratio, alpha) for ratio in ratios]
    alone = sum_models([keep_where(u, delta) * s for u, delta, s in zip(unique, deltas, scales, strict=True)])
    return alone + sum_models([keep_where(s, d) for s, d in zip(shared, deltas, strict=True)]) / count.clamp(min=1)
