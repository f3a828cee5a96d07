"""Task arithmetic: add task vectors to the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Editing Models with Task Arithmetic", arxiv="2212.04089", year=2022),
    arrays=True,
    formula="out = θ_0 + scaling · Σ weight_i · τ_i  [/ Σ weight_i if normalize]",
    differs="As the paper and mergekit. A weight of −1 forgets a task; the sum of an instruct model's vector and another "
    "one is the chat vector; weight 1 + α on an aligned model with its SFT model as base is ExPO (arXiv 2404.16792).",
)
def task_arithmetic(deltas: Tensor, *, weight: PerModel[float] = 1.0, normalize: bool = False) -> Tensor:
    """Add up task vectors.

    Args:
        deltas: (K, …).
        weight: coefficient of each model, any sign.
        normalize: divide by their sum (left alone where it is below 1e-8).
    """
    return weighted_sum(deltas, weight, normalize=normalize)
