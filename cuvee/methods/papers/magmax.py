"""MagMax: of each element, the change with the largest magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.pieces.combine import largest
from cuvee.methods.registry import Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("MagMax: Leveraging Model Merging for Seamless Continual Learning", arxiv="2407.06322", year=2024),
    arrays=True,
    formula="out = θ_0 + scaling · τ_{i*},  i* = argmax_i |τ_i| by element",
    differs="As the official code: of two magnitudes that are equal, the later model's change is taken.",
)
def magmax(deltas: Tensor) -> Tensor:
    """Take, for every element, the change of the model that changed it most.

    Args:
        deltas: (K, …), meant for checkpoints that were fine-tuned one after the other; the paper's scaling is 0.5.
    """
    return largest(deltas)
