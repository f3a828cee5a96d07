"""NegMerge: forget by the changes on which all fine-tunes agree in sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.pieces.vote import unanimous_sum
from cuvee.methods.registry import Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("NegMerge: Sign-Consensual Weight Merging for Machine Unlearning", arxiv="2410.05583", year=2024),
    arrays=True,
    formula="c = [|Σ sgn τ_i| = K];  out = θ_0 − scaling · c ⊙ mean τ_i",
    differs="As the official code.",
)
def negmerge(deltas: Tensor) -> Tensor:
    """Subtract the mean of the changes that have one sign in all models.

    Args:
        deltas: (K, …), of fine-tunes on what is to be forgotten, with different hyper-parameters. An entry that one of them
            left alone is no consensus.

    Returns:
        (…); of one model its negation.
    """
    return unanimous_sum(deltas, -1.0, len(deltas))
