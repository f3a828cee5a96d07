"""Tell entries that only one model changed from those that several did, and scale the former."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cuvee.methods.calls import Scope
from cuvee.methods.combination import Stored
from cuvee.methods.measuring import each, measured
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.trim import keep_above
from cuvee.methods.pieces.vote import sum_models
from cuvee.methods.reductions import Shared
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Combination, Rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["average_shared_scale_unique", "scale_unique"]


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
    changes = each(keep_above, deltas, epsilon)
    shared, unique = measured(Shared(), changes, scope=scope).astype(float)
    # A model without unique entries has none to scale.
    ratios = [s / u if u else 0.0 for s, u in zip(shared, unique, strict=True)]
    return scale_unique(changes, [1 + r * min(ratio, alpha) for ratio in ratios])


def scale_unique(changes: Tensor, scales: Sequence[float]) -> Tensor:
    """Average the entries that are not zero; one that only one model has is taken times that model's scale.

    Args:
        changes: (K, …).
        scales: K.
    """
    if isinstance(changes, Stored):
        return Combination(changes.rows, scales, rule=Rule.UNIQUE)
    count = (changes != 0).sum(0)
    return torch.where(count == 1, weighted_sum(changes, scales), sum_models(changes) / count.clamp(min=1))
