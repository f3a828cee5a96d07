"""Decom-Renorm-Merge: prune and vote where all task vectors share a basis, each direction of each model at length one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cuvee.methods.calls import noted
from cuvee.methods.combination import Matrices, spread
from cuvee.methods.measuring import measured_each
from cuvee.methods.pieces.fused import by_parts
from cuvee.methods.reductions import Ranks
from cuvee.methods.registry import MATRIX, Fraction, Paper, PerModel, merge_method
from cuvee.methods.spectral import decomposition_bytes, right_vectors
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.order import digits_of

if TYPE_CHECKING:
    from torch import Tensor

_AS_LARGE = 1 - 1e-5
_NO_PART = 1e-6
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Survivors:
    """How many of n entries a share dropped leaves, and one more: the threshold of the official code."""

    drop: float

    def __call__(self, n: int) -> tuple[int, ...]:
        return (min(n, round(n * (1 - self.drop)) + 1),)


def drm_bytes(rows: int, columns: int, models: int, _: Mapping[str, Any]) -> int:
    """Return the bytes that it holds: the task vectors side by side, their directions, what is voted on, the result."""
    side = min(max(rows, columns), models * min(rows, columns))
    return 4 * (5 * models + 3) * rows * columns + decomposition_bytes(side)


@merge_method(
    paper=Paper(
        "Decom-Renorm-Merge: Model Merging on the Right Space Improves Multitasking", arxiv="2505.23117", year=2025
    ),
    unit=MATRIX,
    others=None,
    workspace=drm_bytes,
    cost="1 decomposition; of all task vectors side by side",
    formula="[τ_1 … τ_K] = U S [V_1 … V_K]ᵀ;  "
    "X_i = S V_iᵀ where |v_ij| / ‖v_ij‖ is among the largest 1 − drop of all, else 0;  "
    "out = θ_0 + scaling · U · mean over the X_i that have the sign of Σ X_i, each times weight_i",
    differs="The official code divides by zero where a model has nothing in a direction; here it takes no part in it. It gives "
    "an entry whose votes cancel exactly the majority's sign, here +. What is no matrix goes the same way without a basis.",
)
def drm(
    deltas: Any,
    *,
    weight: PerModel[float] = 1.0,
    direction: Literal["horizontal", "vertical"] = "horizontal",
    drop: Fraction = 0.8,
    disjoint: bool = True,
    sign_election: bool = True,
    other_drop: Fraction = 0.0,
    rank_rtol: Fraction = 1e-2,
    split_fused: bool = False,
) -> Tensor:
    """Decompose all task vectors at once, and merge each model's directions, made equally long for pruning, by signs.

    Args:
        deltas: (K, m, n), or the (K, …) blocks of what is no matrix.
        weight: of each model, after the vote.
        direction: task vectors lie side by side and share their left directions, or above one another.
        drop: share of the entries of all unit directions that is dropped; 0: no basis, no vote.
        disjoint: divide by the number of models that agree; otherwise by K.
        sign_election: models vote on each entry, in the size of what they have there; the others are left out of it.
        other_drop: share of what is no matrix that is dropped, by magnitude over the model.
        rank_rtol: directions that are this much weaker than the strongest are left out.
        split_fused: merge queries, keys and values that lie in one matrix each by itself, and gate and up; where their
            order is not known, the matrix is merged whole.

    Returns:
        (m, n), or a block.
    """
    weights = spread(weight, len(deltas))
    if not isinstance(deltas, Matrices):
        return _merged(_trimmed(deltas, other_drop), weights, disjoint=disjoint, elect=sign_election)
    if drop == 0:
        return _merged(deltas.values, weights, disjoint=disjoint, elect=False)
    across = direction == "horizontal"
    ranks: list[int] = []

    def merge(part: Matrices) -> Tensor:
        parts, shared = _in_shared_basis(_stacked(part, across=across), rank_rtol)
        ranks.append(len(shared))
        least = _least(parts, drop)
        out = parts.new_empty(parts.shape[1:])
        rows = max(1, _BLOCK // max(1, parts[:, 0].numel()))  # so that what is voted on stays in the cache
        for begin in range(0, len(out), rows):
            block = parts[:, begin : begin + rows]
            kept = block * (block.abs() >= least)
            out[begin : begin + rows] = _merged(kept, weights, disjoint=disjoint, elect=sign_election)
        out = out @ shared
        return out.mT if across else out

    merged = by_parts(merge, deltas) if split_fused else merge(deltas)
    noted(rank=ranks)
    return merged


def _stacked(deltas: Matrices, *, across: bool) -> Tensor:
    """Return the task vectors, or their transposes, (K, a, b)."""
    k, m, n = deltas.shape
    first = deltas[0]
    stack = first.new_empty((k, n, m) if across else (k, m, n))
    for number in range(k):
        one = deltas[number] if number else first
        stack[number] = one.mT if across else one
    return stack


def _in_shared_basis(stack: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    """Return each model's coordinates, (K, a, R), and the basis of rows that they share, (R, b)."""
    v = right_vectors(stack.reshape(-1, stack.shape[2]), rtol).to(stack.dtype)
    return stack @ v, v.mT


def _least(parts: Tensor, drop: float) -> Tensor:
    """Return from which size on an entry survives, (K, 1, R): a threshold over all unit directions, times each one's length.

    Args:
        parts: (K, a, R). A direction in which a model has next to nothing takes no part: infinity.
    """
    lengths = torch.stack([part.square().sum(0, keepdim=True) for part in parts]).sqrt_()
    lengths[lengths <= _NO_PART * torch.linalg.vector_norm(lengths, dim=0)] = torch.inf
    there = int((lengths < torch.inf).any(2).sum())
    count = Survivors(drop)(there * parts[0].numel())[0] if there else 0
    if not count:
        return torch.full_like(lengths, torch.inf)
    sizes = (parts / lengths).abs_().reshape(-1)
    place = len(sizes) - count
    if sizes.device.type == "cpu":
        threshold = float(np.partition(sizes.numpy(), place)[place])  # ten times as fast as kthvalue
    else:
        threshold = float(sizes.kthvalue(place + 1).values)
    return torch.where(lengths < torch.inf, lengths * (threshold * _AS_LARGE), torch.inf)


def _trimmed(deltas: Tensor, drop: float) -> Tensor:
    """Zero the smallest entries of each model over all that is no matrix."""
    if drop == 0:
        return deltas
    ranks = measured_each(
        Ranks(Survivors(drop), resolve_ties=False, digits=digits_of(deltas.dtype)), deltas, scope="model"
    )
    least = [float(one.value) for (one,) in ranks]
    return torch.stack([delta * (delta.abs() >= limit) for delta, limit in zip(deltas, least, strict=True)])


def _merged(values: Tensor, weights: list[float], *, disjoint: bool, elect: bool) -> Tensor:
    """Return the mean of weighted entries, (K, …) into (…): of those that agree in sign, of those that are there, or of all."""
    agrees = values != 0
    if elect:
        agrees &= (values > 0) == (values.sum(0) >= 0)
    total = torch.zeros_like(values[0])
    for value, there, w in zip(values, agrees, weights, strict=True):
        total += value * there * w
    return total / (agrees.sum(0).clamp(min=1) if disjoint else len(values))
