"""Task vectors of few directions: the leading ones, and shrunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.calls import noted
from cuvee.methods.registry import MATRIX, Bound, Fraction, Paper, Role, edit
from cuvee.methods.spectral import holding, with_singular_values

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TWIN", "low_rank"]

TWIN = Paper("Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging", arxiv="2406.15479", year=2024)


@edit(
    role=Role.FILTER,
    paper=TWIN,
    unit=MATRIX,
    workspace=holding(matrices=4),  # a task vector, its part along the directions kept, the result
    once="the directions kept are those of the smaller density, and shrunk twice is shrunk by the sum",
    cost="K decompositions",
    formula="τ_i = Σ_j s_j u_j v_jᵀ;  τ_i ← Σ_{j ≤ r} max(s_j − shrink, 0) u_j v_jᵀ,  r = ⌊density · min(m, n)⌋",
    differs="Twin-Merging cuts what a model has beyond the merge of all, as the method `twin_svd` does; here each task vector "
    "is cut before any merge. Shrinking is what LoRE-Merging (arXiv 2502.10749) does to its parts. What is no matrix stays as "
    "it is.",
)
def low_rank(delta: Tensor, *, density: Fraction = 1.0, shrink: Annotated[float, Bound(0)] = 0.0) -> Tensor:
    """Keep the leading singular directions of a task vector, with singular values that are smaller by a constant.

    Args:
        density: the share of the min(m, n) directions that is kept, rounded down.
        shrink: what is taken off every singular value, down to zero, in the unit of weights.
    """
    rank = int(density * min(delta.shape))
    if density == 1 and not shrink:
        return delta

    def cut(s: Tensor) -> Tensor:
        kept = (s - shrink).clamp(min=0)
        kept[rank:] = 0
        noted(low_rank=int((kept > 0).sum()))
        return kept

    return with_singular_values(delta, cut)
