"""RAM+ by tensor: RAM with the entries that only one model changed scaled up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.measuring import measured
from cuvee.methods.pieces.vote import sum_models
from cuvee.methods.reductions import Sums
from cuvee.methods.registry import Bound, Paper, merge_method
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Behavior Knowledge Merge in Reinforced Agentic Models (RAM+)", arxiv="2601.13572", year=2026),
    cost="two visits of each tensor",
    formula="ρ_i = #shared_i / #unique_i by tensor;  unique entries · (1 + r · clip(ρ_i, 0, alpha)), shared ones averaged",
    differs="As mergekit, by tensor; the official code counts over the whole model (method ram_plus, not built yet).",
)
def ramplus_tl(
    deltas: Tensor,
    *,
    epsilon: Annotated[float, Bound(0)] = 1e-5,
    r: float = 0.1,
    alpha: Annotated[float, Bound(0)] = 0.2,
) -> Tensor:
    """As ram, with what only one model changed scaled up by how much that model shares with others.

    Args:
        deltas: (K, …).
        epsilon: changes up to this count as none.
        r: strength of the scaling.
        alpha: upper limit of the ratio of shared to unique entries.
    """
    changed = deltas.abs() > epsilon
    count = changed.sum(0)
    shared, unique = changed & (count >= 2), changed & (count == 1)
    counts = measured(Sums("nonzero"), [*shared, *unique]).astype(float)
    k = len(deltas)
    # A model without unique entries has none to scale.
    ratios = [s / max(u, epsilon) if u else 0.0 for s, u in zip(counts[:k], counts[k:], strict=True)]
    scales = [1 + r * min(max(ratio, 0.0), alpha) for ratio in ratios]
    alone = sum_models(
        torch.where(unique, deltas, 0)
        * torch.tensor(scales, dtype=deltas.dtype, device=deltas.device).reshape(-1, *[1] * (deltas.ndim - 1))
    )
    return alone + sum_models(torch.where(shared, deltas, 0)) / count.clamp(min=1)
