"""CABS: sparse task vectors that do not overlap, each with its share in every stretch of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.calls import current
from cuvee.methods.combination import Stored, by_model, in_places, plain
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.reductions import Ranks
from cuvee.methods.registry import Bound, Fraction, Paper, PerModel, merge_method
from cuvee.tensors import kernels
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.masking import keep_where
from cuvee.tensors.order import digits_of
from cuvee.tensors.rows import Row

if TYPE_CHECKING:
    from torch import Tensor


Count = Annotated[int, Bound(1, 1_000_000)]


@dataclass(frozen=True)
class Threshold:
    """The rank, from the largest, of sorted(x)[int(share·n)]; 0 where the share is all."""

    share: float

    def __call__(self, n: int) -> tuple[int, ...]:
        return (n - min(n, int(self.share * n)),)


@merge_method(
    paper=Paper("CABS: Conflict-Aware and Balanced Sparsification", arxiv="2503.01874", year=2025),
    arrays=True,
    cost="a pass with sorting; with sparsifier: magnitude a few visits of each tensor for each model",
    formula="in order: m_i = the n largest of every m elements of τ_i that no earlier model has taken;  "
    "out = θ_0 + scaling · Σ weight_i m_i ⊙ τ_i",
    differs="The official codes take two models, and lose a last stretch shorter than m (all of a small tensor) or fail on it; "
    "here it keeps its share, rounded up, for any number of models. Stretches begin anew at each leaf of a tensor (about "
    "65,000 elements of whole rows).",
)
def cabs(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    order: PerModel[Annotated[int, Bound(0)]] | None = None,
    n: Count = 64,
    m: Count = 256,
    sparsifier: Literal["nm", "n:m", "magnitude"] = "nm",
    sparsity: Fraction = 0.75,
) -> Tensor:
    """Keep the largest entries of each task vector where no earlier model has kept its own, and add.

    Args:
        deltas: (K, …).
        weight: coefficient of each model.
        order: the place of each model among them, 0 first; without it as they are listed.
        n, m: n of every m consecutive elements are kept of each model.
        sparsifier: "nm" as above; "magnitude": what is larger than the `sparsity` share of the tensor.
        sparsity: share dropped, for magnitude.

    Raises:
        MethodError: n > m, or the order names a place twice.
    """
    if n > m:
        raise MethodError(f"n is {n} and m is {m}", right=f"n: {m // 4 or 1}, or m: {4 * n}")
    turns = in_places(order, len(deltas))
    kept = list(by_model(deltas))
    free: Any = np.ones(kept[0].shape, np.bool_)
    if not isinstance(deltas, Stored):
        free = torch.from_numpy(free).to(deltas.device)
    for k in turns:
        if sparsifier == "magnitude":
            mask = _above(keep_where(free, kept[k]), sparsity)
        else:
            mask = largest_of_stretches(kept[k], free, n, m)
        kept[k] = keep_where(mask, kept[k])
        free = free & ~mask
    return weighted_sum(Stored(kept) if isinstance(deltas, Stored) else torch.stack(kept), weight)


def _above(delta: Tensor, sparsity: float) -> Tensor:
    """Return where |x| is strictly above the threshold."""
    ranks = Ranks(Threshold(sparsity), resolve_ties=False, digits=digits_of(delta.dtype))
    (ranked,) = measured(ranks, delta)
    return abs(plain(delta)) > ranked.value


def largest_of_stretches(delta: Tensor, free: Tensor, n: int, m: int) -> Tensor:
    """Return the n largest of every m elements among those that are free, the lower index first among equals; (…) bool.

    Args:
        delta: (…), a block.
        free: bool, of the same shape.
    """
    leaf = current(delta).place.layout.leaf
    if isinstance(delta, Row):
        return kernels.largest_of_stretches(delta, free, n, m, leaf)
    sizes = torch.where(free, delta.abs(), -1.0).reshape(-1)
    mask = torch.zeros(sizes.shape, dtype=torch.bool, device=sizes.device)
    for start in range(0, len(sizes), leaf):
        part, kept = sizes[start : start + leaf], mask[start : start + leaf]
        whole = len(part) // m * m
        _mark(part[:whole].reshape(-1, m), kept[:whole].reshape(-1, m), n)
        rest = len(part) - whole
        _mark(part[whole:].reshape(1, -1), kept[whole:].reshape(1, -1), -(-n * rest // m))
    return (mask & (sizes >= 0)).reshape(delta.shape)


def _mark(rows: Tensor, mask: Tensor, count: int) -> None:
    """Set the mask where the `count` largest of each row are, the lower index first among equals."""
    if not rows.numel():
        return
    least = torch.topk(rows, count, dim=-1).values[:, -1:]
    above, equal = rows > least, rows == least
    left = count - above.sum(-1, keepdim=True)
    mask.copy_(above | (equal & (equal.cumsum(-1) <= left)))
