"""Scale a merged task vector where it stands among the edits; `scaling` of a recipe comes after all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.registry import Paper, Role, edit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["scale"]


@edit(
    role=Role.REFINER,
    arrays=True,
    paper=Paper("Editing Models with Task Arithmetic", arxiv="2212.04089", year=2022),
    formula="τ ← factor · τ",
    differs="mergekit's `lambda` is the parameter `scaling` of a method, which comes after all edits.",
)
def scale(merged: Tensor, deltas: Tensor, *, factor: float) -> Tensor:
    """Multiply the merged task vector by a number, before the edits that follow.

    Args:
        factor: the number. Where an edit is named as the merge method, `inner_scaling` gives it to what is wrapped.
    """
    return merged * factor
