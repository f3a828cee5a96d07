"""Vote on signs: elect one per element, then combine the entries that agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cuvee.methods.combination import Stored, plain, spread
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.reductions import Sums
from cuvee.tensors import kernels
from cuvee.tensors.either import as_tensor
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.masking import keep_where, sign_or_plus
from cuvee.tensors.rows import Combination, Rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MergeFunc",
    "Regain",
    "TieSign",
    "elect_signs",
    "sign_consensus",
    "sum_models",
    "unanimous_sum",
    "weigh_consensus",
]

TieSign = Literal["plus", "global_majority"]
MergeFunc = Literal["weighted_mean", "sum", "mean", "max"]
Regain = Literal["none", "row", "tensor"]


def elect_signs(votes: Tensor, tie_sign: TieSign = "plus") -> Tensor:
    """Return the sign of a sum of votes.

    Args:
        votes: (…), Σ w_i τ_i.
        tie_sign: what a balanced vote gives: +1, or the sign that most elements of the model have (official TIES).

    Returns:
        (…), values in {−1, 1}; 0 only where the whole model is balanced too.
    """
    if tie_sign == "plus":
        return sign_or_plus(votes)
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
    regain: Regain = "none",
) -> Tensor:
    """Elect a sign per element and combine the entries that have it.

    Args:
        deltas: (K, …), trimmed; zeros never agree.
        weight: K coefficients; they scale the vote and the result.
        normalize: divide a "weighted_mean" by the weights of those that agree (1 where these sum to 0).
        merge_func: "weighted_mean"; "sum" of w_i τ_i; "mean" of τ_i over those that agree; "max": the largest.
        regain: scale what a model has left after the vote, of each row along the last dimension or of the tensor, by how many
            entries it had over how many agree.

    Source: TIES-Merging, arXiv 2306.01708, steps 2 and 3; weights as in mergekit; `regain` in the code of DELLA-Merging.
    """
    weights = [float(w) for w in spread(weight, len(deltas))]
    if tie_sign == "plus" and merge_func in ("weighted_mean", "sum") and regain == "none":
        return weigh_consensus(deltas, weights, weights, normalize=normalize and merge_func == "weighted_mean")
    deltas = as_tensor(plain(deltas))
    signs = elect_signs(weighted_sum(deltas, weights), tie_sign)
    agrees = [delta * w * signs > 0 for delta, w in zip(deltas, weights, strict=True)]
    if regain != "none":
        deltas = _regained(deltas, agrees, regain)
    if merge_func == "max":
        return signs * torch.stack([keep_where(a, d) for a, d in zip(agrees, deltas.abs(), strict=True)]).amax(0)
    if merge_func == "mean":
        count = torch.stack(agrees).sum(0).clamp(min=1)
        return sum_models([keep_where(a, delta) for a, delta in zip(agrees, deltas, strict=True)]) / count
    return _weigh(deltas, agrees, weights, normalize=normalize and merge_func == "weighted_mean", floor=0.0)


def weigh_consensus(
    deltas: Tensor, votes: list[float], weights: list[float], *, normalize: bool, floor: float = 0.0
) -> Tensor:
    """Elect signs by Σ votes_i τ_i, a balanced vote counting as plus, and add weights_i τ_i of those that agree.

    Args:
        deltas: (K, …): a tensor, an array, or stored blocks, whose consensus is then a `Combination`.
        normalize: divide by the weights of those that agree.
        floor: the least divisor; 0: a divisor of 0 counts as 1.
    """
    if isinstance(deltas, Stored):
        return Combination(deltas.rows, weights, 1.0, Rule.CONSENSUS, votes, normalize, floor)
    if kernels.serve(deltas):
        return kernels.consensus(deltas, votes, weights, normalize=normalize, floor=floor)
    deltas = as_tensor(deltas)
    signs = sign_or_plus(weighted_sum(deltas, votes))
    agrees = [delta * vote * signs > 0 for delta, vote in zip(deltas, votes, strict=True)]
    return _weigh(deltas, agrees, weights, normalize=normalize, floor=floor)


def _regained(deltas: Tensor, agrees: list[Tensor], regain: Regain) -> Tensor:
    left = [keep_where(agree, delta) for agree, delta in zip(agrees, deltas, strict=True)]
    counts = measured(Sums("nonzero"), [*deltas, *left], over="row" if regain == "row" else "all")
    had, agree = np.stack(counts).reshape(2, len(deltas), *np.shape(counts[0]))
    gains = torch.as_tensor(had / np.maximum(agree, 1), dtype=deltas.dtype, device=deltas.device)
    return torch.stack([delta * gain[..., None] for delta, gain in zip(deltas, gains, strict=True)])


def _weigh(deltas: Tensor, agrees: list[Tensor], weights: list[float], *, normalize: bool, floor: float) -> Tensor:
    merged = sum_models([keep_where(a, delta * w) for a, delta, w in zip(agrees, deltas, weights, strict=True)])
    if not normalize:
        return merged
    divisor = sum_models([agree.to(deltas.dtype) * w for agree, w in zip(agrees, weights, strict=True)])
    return merged / (divisor.clamp(min=floor) if floor > 0 else divisor + (divisor == 0))


def unanimous_sum(deltas: Tensor, factor: float, divisor: float) -> Tensor:
    """Return Σ factor · τ_i / divisor where all τ_i have one sign, +1 or −1, and 0 elsewhere; (K, …) into (…)."""
    if isinstance(deltas, Stored):
        return Combination(deltas.rows, [factor] * len(deltas), divisor, Rule.UNANIMOUS)
    agree = sum_models([torch.sign(delta) for delta in deltas]).abs() == len(deltas)
    return keep_where(agree, weighted_sum(deltas, factor) / divisor)


def sum_models(values: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the sum over the K models, in their order."""
    total = torch.zeros_like(values[0])
    for value in values:
        total.add_(value)
    return total
