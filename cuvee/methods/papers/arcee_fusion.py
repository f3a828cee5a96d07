"""Arcee Fusion: take over the entries that matter most by divergence and distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.methods.measuring import measured
from cuvee.methods.reductions import Ranks
from cuvee.methods.registry import ROW, Paper, merge_method
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.masking import keep_where
from cuvee.tensors.order import digits_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Quartiles:
    """The ranks, from the largest, of sorted(x)[int(q·(n − 1))] for q = 1/4, 1/2, 3/4."""

    def __call__(self, n: int) -> tuple[int, ...]:
        return tuple(n - int(q * (n - 1)) for q in (0.25, 0.5, 0.75))


@merge_method(
    paper=Paper("Arcee Fusion", url="https://github.com/arcee-ai/mergekit"),
    models=(1, 1),
    unit=ROW,
    cost="a few visits of each tensor",
    status="community",
    formula="importance = |τ| · KL(softmax θ_1 ‖ softmax θ_0) by row;  out = θ_0 + τ where importance ≥ "
    "median + 1.5·(q3 − q1)",
    differs="As mergekit, with exact quartiles; mergekit draws a sample of a million from larger tensors.",
)
def arcee_fusion(deltas: Tensor, *, base: Tensor) -> Tensor:
    """Take over from the other model the entries whose importance is an outlier.

    Args:
        deltas: (1, …).
        base: (…), the base's own weights.
    """
    (delta,) = deltas
    vector = base.ndim < 2 or base.shape[-1] == base.numel()
    rows, changed = (base.reshape(1, -1), delta.reshape(1, -1)) if vector else (base, delta)
    p = torch.softmax(rows + changed, dim=-1) + 1e-8
    q = torch.softmax(rows, dim=-1) + 1e-8
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    importance = (changed.abs() * divergence).reshape(delta.shape)
    ranks = Ranks(Quartiles(), magnitude=False, resolve_ties=False, digits=digits_of(delta.dtype))
    q1, median, q3 = measured(ranks, importance)
    return keep_where(importance >= median.value + 1.5 * (q3.value - q1.value), delta)
