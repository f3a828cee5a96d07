"""DARE with a weighted sum: drop entries at random, rescale, add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.measuring import each
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.drop import drop_at_random
from cuvee.methods.pieces.rescale import Rescale
from cuvee.methods.registry import Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Language Models are Super Mario (DARE)", arxiv="2311.03099", year=2023),
    cost="one pass; two visits of each tensor with rescale: l1",
    arrays=True,
    formula="m_i ~ Bernoulli(density);  out = θ_0 + scaling · Σ weight_i · rescale(m_i ⊙ τ_i)",
    differs="As mergekit, whose rescale gives each tensor its old Σ|x| back; the paper divides by density "
    "(rescale: expected). Draws depend on the seed, the tensor, the model's place and the element only.",
)
def dare_linear(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    density: PerModel[Fraction] = 1.0,
    normalize: bool = False,
    rescale: Rescale = True,
    int8_mask: bool = False,
) -> Tensor:
    """Drop entries of task vectors at random, rescale the rest, and add.

    Args:
        deltas: (K, …).
        weight: coefficient of each model.
        density: probability with which an entry is kept; 1 keeps all and does not rescale.
        normalize: divide by the sum of weights.
        rescale: "l1" (true): to the old Σ|x| of the tensor; "expected": divide by density; "none" (false).
        int8_mask: accepted for mergekit's recipes; no effect.
    """
    dropped = each(drop_at_random, deltas, density, rescale=rescale)
    return weighted_sum(dropped, weight, normalize=normalize)
