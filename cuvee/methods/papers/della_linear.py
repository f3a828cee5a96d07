"""DELLA with a weighted sum: drop the small entries of each row more often, rescale, add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.measuring import each
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.drop import Ranking, drop_by_rank
from cuvee.methods.pieces.rescale import Rescale
from cuvee.methods.registry import ROW, Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("DELLA-Merging", arxiv="2406.11617", year=2024),
    unit=ROW,
    whole={"ranks": "tensor"},
    cost="a sort of every row; two visits of each tensor with rescale: l1",
    arrays=True,
    formula="p = density − ε + 2ε·rank/(length − 1) by row;  m_i ~ Bernoulli(p);  "
    "out = θ_0 + scaling · Σ weight_i · rescale(m_i ⊙ τ_i)",
    differs="As mergekit, whose rescale gives each tensor its old Σ|x| back; the paper divides each entry by its own p "
    "(rescale: expected). Rows of length 1, NaN there, are kept with probability density. A convolution's row is "
    "everything that belongs to one output channel. epsilon is half of the paper's window.",
)
def della_linear(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    density: PerModel[Fraction] = 1.0,
    epsilon: PerModel[Fraction] = 0.15,
    normalize: bool = False,
    rescale: Rescale = True,
    ranks: Ranking = "row",
    int8_mask: bool = False,
) -> Tensor:
    """Drop entries of task vectors at random, small ones more often, rescale the rest, and add.

    Args:
        deltas: (K, …).
        weight: coefficient of each model.
        density: mean probability with which an entry is kept; 1 keeps all and does not rescale.
        epsilon: half the spread of that probability over a row; density ± epsilon must lie inside (0, 1).
        normalize: divide by the sum of weights.
        rescale: "l1" (true): to the old Σ|x| of the tensor; "expected": divide by the probability; "none" (false).
        ranks: of an entry's magnitude: in its row; or in the tensor, which is then held whole; or no rank, but its magnitude
            between the least and the largest of the row (variants of the official code).
        int8_mask: accepted for mergekit's recipes; no effect.

    Raises:
        MethodError: density ± epsilon leaves (0, 1).
    """
    dropped = each(drop_by_rank, deltas, density, epsilon, rescale=rescale, ranks=ranks)
    return weighted_sum(dropped, weight, normalize=normalize)
