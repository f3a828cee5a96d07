"""Twin-Merging without its router: a shared merge, and of each model the leading directions of what that lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuvee.methods.combination import Matrices, spread
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.low_rank import TWIN
from cuvee.methods.registry import MATRIX, Fraction, PerModel, merge_method
from cuvee.methods.spectral import holding, truncated

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=TWIN,
    unit=MATRIX,
    others=None,
    workspace=holding(
        matrices=6, factors=1
    ),  # base, the shared merge, the result, a task vector, its part, that times its share
    cost="K decompositions; every model is read twice",
    formula="M = Σ weight_i τ_i;  E_i = the ⌊density · min(m, n)⌋ leading directions of τ_i − M;  "
    "out = θ_0 + scaling · (M + Σ share_i E_i / K)",
    differs="Without the router, which gives each input its own shares: with fixed ones, as Long-to-Short Reasoning with Model "
    "Merging (arXiv 2503.20641) uses it; its code was not published. What is no matrix is not cut, as there.",
    status="reconstruction",
)
def twin_svd(
    deltas: Any, *, weight: PerModel[float] = 0.3, density: Fraction = 0.1, share: PerModel[float] = 1.0
) -> Tensor:
    """Add to the sum of all task vectors the leading directions of what each model has beyond it.

    Args:
        deltas: (K, m, n), or the (K, …) blocks of what is no matrix.
        weight: of each model in the shared merge.
        density: the share of the min(m, n) directions that is kept of each model's own part, rounded down.
        share: of each model's own part; 1 for all is the mean of the parts.

    Returns:
        (m, n), or a block.
    """
    shared, shares = weighted_sum(deltas, weight), [one / len(deltas) for one in spread(share, len(deltas))]
    if not isinstance(deltas, Matrices):
        return shared * (1 - sum(shares)) + weighted_sum(deltas, shares)
    rank, merged = int(density * min(deltas.shape[1:])), shared.clone()
    for k, part in enumerate(shares):
        own = deltas[k].sub_(shared)
        merged += part * (own if density == 1 else truncated(own, rank))
    return merged
