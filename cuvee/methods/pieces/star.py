"""STAR: keep the strong directions of a task vector, and stretch them to the strength that all of them had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.calls import noted
from cuvee.methods.registry import MATRIX, Bound, Paper, Role, edit
from cuvee.methods.spectral import holding, svd, with_singular_values
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["star"]


@edit(
    role=Role.FILTER,
    paper=Paper("STAR: Spectral Truncation and Rescale for Model Merging", arxiv="2502.10339", year=2025),
    unit=MATRIX,
    workspace=holding(matrices=4),  # a task vector, its part along the directions kept, the result
    once="the fewest directions of those kept are the directions that one with a smaller eta keeps",
    alone={"normalize": True},
    cost="K decompositions",
    formula="τ_i = Σ_j s_j u_j v_jᵀ,  S = Σ s_j  (known_rank: of the leading ones);  "
    "r = the fewest with s_1 + … + s_r ≥ eta / 100 · S;  τ_i ← S / (s_1 + … + s_r) · Σ_{j ≤ r} s_j u_j v_jᵀ",
    differs="The official code averages what was kept, as `merge_method: star` does without inner; it knows LoRA weights only, "
    "and finds their singular vectors by randomised decompositions where known_rank is given. What is no matrix "
    "stays as it is.",
)
def star(
    delta: Tensor,
    *,
    eta: Annotated[float, Bound(0, 100)] = 40.0,
    known_rank: Annotated[int, Bound(1)] | None = None,
) -> Tensor:
    """Keep the fewest singular directions that hold `eta` percent of the nuclear norm, stretched so that it stays.

    Args:
        eta: percent of the sum of singular values that is kept; 100 changes nothing.
        known_rank: of the task vector, where it has one (a merged LoRA): what lies beyond counts for nothing.
    """
    if eta >= 100 and known_rank is None:
        return delta
    if known_rank is None:
        return with_singular_values(delta, lambda s: _stretched(s, eta))
    found = svd(delta, known_rank)
    return found._replace(s=_stretched(found.s, eta)).matrix


def _stretched(s: Tensor, eta: float) -> Tensor:
    """Return the leading singular values that reach eta percent of their sum, scaled to it, and zeros."""
    reached = s.cumsum(0)
    rank = int((reached[:-1] < reached[-1:] * (eta / 100)).sum()) + 1
    noted(star_rank=min(rank, len(s)))
    stretched = torch.zeros_like(s)
    stretched[:rank] = s[:rank] * (reached[-1:] / reached[rank - 1 : rank])
    return stretched
