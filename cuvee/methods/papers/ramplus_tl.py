"""RAM+ by tensor: RAM with the entries that only one model changed scaled up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.pieces.unique import average_shared_scale_unique
from cuvee.methods.registry import Bound, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Behavior Knowledge Merge in Reinforced Agentic Models (RAM+)", arxiv="2601.13572", year=2026),
    cost="two visits of each tensor",
    arrays=True,
    formula="ρ_i = #shared_i / #unique_i by tensor;  unique entries · (1 + r · clip(ρ_i, 0, alpha)), shared ones averaged",
    differs="As mergekit, by tensor; the official code counts over the whole model (method ram_plus).",
)
def ramplus_tl(
    deltas: Tensor,
    *,
    epsilon: Annotated[float, Bound(0)] = 1e-5,
    r: float = 0.1,
    alpha: Annotated[float, Bound(0)] = 0.2,
) -> Tensor:
    """As ram_plus, with what a model shares counted tensor by tensor, as mergekit does.

    Args:
        deltas: (K, …).
        epsilon: changes up to this count as none.
        r: strength of the scaling.
        alpha: upper limit of the ratio of shared to unique entries.
    """
    return average_shared_scale_unique(deltas, epsilon, r, alpha, "tensor")
