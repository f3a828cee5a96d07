"""What each model changes, as its leading singular directions, and one orthogonal frame for those of all models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cuvee.methods.calls import noted
from cuvee.methods.combination import Matrices, spread
from cuvee.methods.pieces.combine import mean_of_weighted
from cuvee.methods.spectral import Spectrum, orthogonalized, strong_svd, svd
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["leading_directions", "mean_if_narrow", "merged_whole", "orthogonal_frames", "share_of_rank"]


def mean_if_narrow(deltas: Matrices, weight: Any = 1.0) -> Tensor | None:
    """Return Σ w_i τ_i / K where K models would share fewer than 2 K directions, too few for a basis; which is noted."""
    if len(deltas) == 1 or min(deltas.shape[1:]) >= 2 * len(deltas):
        return None
    noted(fallback="the mean: min(m, n) < 2 K")
    return mean_of_weighted(deltas, weight)


def merged_whole(deltas: Matrices, weight: Any, rank: Any) -> Tensor | None:
    """Return w τ of one model that no rank is asked of, which has all directions; else see `mean_if_narrow`."""
    if len(deltas) == 1 and not isinstance(spread(rank, 1)[0], int):
        return mean_of_weighted(deltas, weight)
    return mean_if_narrow(deltas, weight)


def share_of_rank(deltas: Matrices) -> int:
    """Return the directions that each of K models gets of an m × n matrix: min(m, n) // K."""
    return min(deltas.shape[1:]) // len(deltas)


def leading_directions(deltas: Matrices, rank: Any, weight: Any = 1.0, *, strong: bool = False) -> list[Spectrum]:
    """Return the leading singular triplets of each task vector, loaded one at a time.

    Args:
        deltas: (K, m, n).
        rank: how many, one number or K; "share": a K-th part of min(m, n); "auto": the same, and never more than a task
            vector of low rank has.
        weight: of each model, a factor of its singular values; its sign goes into the left vectors.
        strong: never more than a task vector of low rank has, whatever `rank` says.
    """
    found = []
    for k, (w, r) in enumerate(zip(spread(weight, len(deltas)), spread(rank, len(deltas)), strict=True)):
        most = share_of_rank(deltas) if r in ("auto", "share") else int(r)
        spectrum = (strong_svd if strong or (r == "auto" and len(deltas) > 1) else svd)(deltas[k], most)
        found.append(Spectrum(spectrum.u if w >= 0 else -spectrum.u, spectrum.s * abs(w), spectrum.vh))
    noted(rank=[len(one.s) for one in found])
    return found


def orthogonal_frames(spectra: list[Spectrum], rtol: float = 1e-4) -> Spectrum:
    """Return the singular vectors of all models, (m, q), (q,) and (q, n), each side made orthogonal symmetrically.

    The polar factor is the orthogonal frame nearest to the vectors, so the order of models leaves no trace; equal
    directions of several models become one. How near to that they are is noted: the condition of both stacks.
    """
    u = orthogonalized([one.u for one in spectra], rtol)
    v = orthogonalized([one.vh.mT for one in spectra], rtol)
    noted(stack_condition=[math.ceil(round(one.condition, 3)) for one in (u, v)])
    if u.repetitions or v.repetitions:
        noted(repeated_directions=[u.repetitions, v.repetitions])
    return Spectrum(u.vectors, torch.cat([one.s for one in spectra]), v.vectors.mT)
