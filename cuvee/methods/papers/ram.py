"""RAM: reinforced agent merging of sparse task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.measuring import each
from cuvee.methods.pieces.trim import keep_above
from cuvee.methods.pieces.unique import scale_unique
from cuvee.methods.registry import Bound, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Behavior Knowledge Merge in Reinforced Agentic Models (RAM)", arxiv="2601.13572", year=2026),
    arrays=True,
    formula="a_i = [|τ_i| > epsilon];  out = θ_0 + scaling · Σ a_i τ_i / max(1, Σ a_i)",
    differs="As mergekit and the official code, with differences in float32.",
)
def ram(deltas: Tensor, *, epsilon: Annotated[float, Bound(0)] = 1e-5) -> Tensor:
    """Average task vectors where several changed an element, and take them in full where one did.

    Args:
        deltas: (K, …), sparse as reinforcement learning leaves them.
        epsilon: changes up to this count as none.
    """
    return scale_unique(each(keep_above, deltas, epsilon), [1.0] * len(deltas))
