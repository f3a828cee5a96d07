"""Vote on signs: elect one per element, then combine the entries that agree with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cuvee.methods.measuring import measured, spread
from cuvee.methods.reductions import Sums
from cuvee.tensors import kernels
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MergeFunc", "TieSign", "elect_signs", "sign_consensus"]

TieSign = Literal["plus", "global_majority"]
MergeFunc = Literal["weighted_mean", "sum", "mean", "max"]


def elect_signs(votes: Tensor, tie_sign: TieSign = "plus") -> Tensor:
    """Return the sign of a sum of votes.

    Args:
        votes: (…), Σ w_i τ_i.
        tie_sign: what a balanced vote gives: +1, or the sign that most elements of the model have (official TIES).

    Returns:
        (…), values in {−1, 1}; 0 only where the whole model is balanced too.
    """
    if tie_sign == "plus":
        return torch.where(votes >= 0, 1.0, -1.0).to(votes.dtype)
    majority = int(measured(Sums("sign"), votes, scope="model"))
    signs = torch.sign(votes)
    return torch.where(signs == 0, float((majority > 0) - (majority < 0)), signs)


def sign_consensus(
    deltas: Tensor,
    weight: Any = 1.0,
    *,
    normalize: bool = True,
    tie_sign: TieSign = "plus",
    merge_func: MergeFunc = "weighted_mean",
) -> Tensor:
    """Elect a sign per element and combine the entries that have it.

    Args:
        deltas: (K, …), trimmed; zeros never agree.
        weight: K coefficients; they scale the vote and the result.
        normalize: divide a "weighted_mean" by the weights of those that agree (1 where these sum to 0).
        merge_func: "weighted_mean"; "sum" of w_i τ_i; "mean" of τ_i over those that agree; "max": the largest.

    Source: TIES-Merging, arXiv 2306.01708, steps 2 and 3; weights as in mergekit.
    """
    weights = [float(w) for w in spread(weight, len(deltas))]
    if tie_sign == "plus" and merge_func in ("weighted_mean", "sum") and _has_kernel(deltas):
        return _compiled_consensus(deltas, weights, normalize and merge_func == "weighted_mean")
    weighted = torch.stack([delta * w for delta, w in zip(deltas, weights, strict=True)])
    signs = elect_signs(sum_models(weighted), tie_sign)
    agrees = weighted * signs > 0
    if merge_func == "max":
        return signs * torch.where(agrees, deltas.abs(), 0).amax(0)
    if merge_func == "mean":
        count = agrees.sum(0).clamp(min=1)
        return sum_models(torch.where(agrees, deltas, 0)) / count
    merged = sum_models(torch.where(agrees, weighted, 0))
    if merge_func == "sum" or not normalize:
        return merged
    return merged / consensus_weight(agrees, weights, merged)


def sum_models(values: Tensor) -> Tensor:
    """Return the sum over the K models, in their order."""
    total = values[0].clone()
    for value in values[1:]:
        total.add_(value)
    return total


def consensus_weight(agrees: Tensor, weights: list[float], like: Tensor) -> Tensor:
    """Return the summed weight of the models that agree at each element, 1 where it is 0."""
    total = torch.zeros_like(like)
    for agree, w in zip(agrees, weights, strict=True):
        total.add_(torch.where(agree, w, 0.0).to(like.dtype))
    return torch.where(total == 0, 1.0, total)


def _has_kernel(deltas: Tensor) -> bool:
    return kernels.available() and deltas.device.type == "cpu" and deltas.dtype == torch.float32


def _compiled_consensus(deltas: Tensor, weights: list[float], normalize: bool) -> Tensor:
    """The same bits from one pass through the cache instead of twenty."""
    merged = torch.empty_like(deltas[0])
    flat = deltas.reshape(len(deltas), -1).numpy()
    kernels.consensus_kernel(flat, np.array(weights, np.float32), normalize, merged.reshape(-1).numpy())
    return merged
