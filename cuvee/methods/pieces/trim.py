"""Trim: keep the entries of a task vector that are large, or large but not too large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cuvee.methods.calls import Place, Scope, current, room
from cuvee.methods.combination import plain
from cuvee.methods.measuring import measured
from cuvee.methods.reductions import Ranked, Ranks
from cuvee.methods.registry import Fraction, Paper, Role, edit
from cuvee.tensors import kernels
from cuvee.tensors.either import as_tensor, number_of
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.masking import keep_where
from cuvee.tensors.order import digits_of
from cuvee.tensors.rows import Act, Row

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["among_largest", "keep_above", "keep_among", "keep_band", "keep_largest", "keep_largest_of_rows", "trim"]


@dataclass(frozen=True)
class KeepShare:
    """How many of n entries a density keeps.

    `exact` is int(density·n). The two others are thresholds, which keep every entry equal to it: `official` that of
    the TIES repository (int(density·n) + 1 entries and their equals), `removed` that of MergeLM, which rounds the share
    removed.
    """

    density: float
    rule: Literal["exact", "official", "removed"]

    def __call__(self, n: int) -> tuple[int, ...]:
        if self.rule == "exact":
            return (int(self.density * n),)
        if self.rule == "official":
            return (min(n, int(self.density * n) + 1),)
        removed = int(n * (1 - self.density))
        return (n - removed + 1 if removed else n,)


@dataclass(frozen=True)
class KeepBand:
    """The counts of breadcrumbs: with the largest `gamma` left out, `density` of n are kept."""

    density: float
    gamma: float

    def __call__(self, n: int) -> tuple[int, ...]:
        kept, largest = int(self.density * n), int(self.gamma * n)
        if n - kept - largest < 0:
            largest = n - kept
        return (kept + largest, largest)


def among_largest(values: Tensor, ranked: Ranked, place: Place) -> Tensor:
    """Return which of `values` are among the k largest that `ranked` describes.

    Args:
        values: the block, non-negative where magnitudes were ranked.

    Returns:
        bool, of the same shape.
    """
    all_before, few_until, few = _tie_ranges(ranked, place, number_of(values))
    flat = values.reshape(-1)
    mask = flat > ranked.value
    mask[:all_before] |= flat[:all_before] == ranked.value
    equal = (flat[all_before:few_until] == ranked.value).nonzero()
    equal = (equal[0] if isinstance(equal, tuple) else equal.reshape(-1))[:few]
    mask[all_before + equal] = True
    return mask.reshape(values.shape)


def keep_among(values: Tensor, ranked: Ranked, place: Place) -> Tensor:
    """Zero all of `values` whose magnitudes are not among the k largest that `ranked` describes."""
    if isinstance(values, Row):
        return values.then(Act.KEEP_LARGEST, ranked.value, ties=_tie_ranges(ranked, place, number_of(values)))
    if not kernels.serve(values):
        return keep_where(among_largest(abs(values), ranked, place), values)
    return kernels.threshold(values, ranked.value, *_tie_ranges(ranked, place, number_of(values)), out=room(values))


def keep_above(values: Tensor, limit: float) -> Tensor:
    """Zero all of `values` whose magnitudes are not above a limit."""
    if isinstance(values, Row):
        return values.then(Act.KEEP_LARGEST, limit)
    return keep_where(abs(values) > limit, values)


def _tie_ranges(ranked: Ranked, place: Place, size: int) -> tuple[int, int, int]:
    """Return (a, b, count): of the values equal to the threshold, those before a are in, and `count` of [a, b)."""
    if ranked.tie is None:
        return size, size, 0
    tensor, leaf, count = ranked.tie
    if place.tensor != tensor:
        earlier = place.tensor.encode() < tensor.encode()
        return (size, size, 0) if earlier else (0, 0, 0)
    first = leaf * place.layout.leaf - place.start
    start, stop = (min(max(at, 0), size) for at in (first, first + place.layout.leaf))
    return start, stop, count if first >= 0 else 0


def keep_largest(delta: Tensor, density: float, *, scope: Scope = "tensor", inclusive: bool = False) -> Tensor:
    """Zero all but the largest entries by magnitude.

    Args:
        delta: (…), a block of one task vector.
        density: the share kept; 1 keeps all.
        scope: over which the share is taken.
        inclusive: keep every entry that reaches the threshold, as the official codes do; otherwise exactly
            int(density·n), the lower index first among equals.

    Source: TIES-Merging, arXiv 2306.01708, step 1.
    """
    if density >= 1:
        return delta
    rule: Literal["exact", "official", "removed"] = "exact"
    if inclusive:
        rule = "removed" if scope == "tensor" else "official"
    ranks = Ranks(KeepShare(density, rule), resolve_ties=not inclusive, digits=digits_of(delta.dtype))
    (ranked,) = measured(ranks, delta, scope=scope)
    return keep_among(delta, ranked, current(delta).place)


def keep_band(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Zero the largest `gamma` share by magnitude and the smallest, so that `density` is kept; over the tensor.

    Under `compat: mergekit` a tensor with int(gamma·n) = 0 is zeroed altogether, as there.

    Source: Model Breadcrumbs, arXiv 2312.06795; counts as in mergekit.
    """
    if density >= 1:
        return delta
    call = current(delta)
    counts = KeepBand(density, gamma)
    if call.compat == "mergekit" and counts(call.place.layout.numel)[1] == 0:
        return torch.zeros_like(as_tensor(plain(delta)))
    wide, largest = measured(Ranks(counts, digits=digits_of(delta.dtype)), delta)
    if isinstance(delta, Row):
        ties = _tie_ranges(largest, call.place, number_of(delta))
        return keep_among(delta, wide, call.place).then(Act.DROP_LARGEST, largest.value, ties=ties)
    magnitude = abs(delta)
    kept = among_largest(magnitude, wide, call.place) & ~among_largest(magnitude, largest, call.place)
    return keep_where(kept, delta)


def keep_largest_of_rows(
    delta: Tensor, keep_top: float, remove_top: float = 0.0, *, remove_first: bool = True
) -> Tensor:
    """In each row of length c, zero the int(c·remove_top) largest, then keep the int(c·keep_top) largest of the rest.

    A row lies along the last dimension; the order among equal magnitudes is by index. A 0-d tensor is left as it is.

    Args:
        remove_first: without it the int(c·keep_top) largest are kept, and then their int(c·remove_top) largest zeroed.

    Source: Model Breadcrumbs, arXiv 2312.06795, official code (`TaskVectorMiddleKeep`).
    """
    if not current(delta).place.layout.shape:
        return delta
    delta = as_tensor(plain(delta))
    rows = delta.reshape(-1, delta.shape[-1])
    order = torch.argsort(rows.abs(), dim=-1, descending=True, stable=True)
    first = int(rows.shape[-1] * remove_top)
    chosen = order[:, first : first * remove_first + int(rows.shape[-1] * keep_top)]
    result = torch.zeros_like(rows)
    return result.scatter_(-1, chosen, rows.gather(-1, chosen)).reshape(delta.shape)


@edit(
    role=Role.FILTER,
    arrays=True,
    paper=Paper("TIES-Merging", arxiv="2306.01708", year=2023),
    cost="a few visits of each tensor; with scope: layer or model a few rounds over the model",
    formula="m_i = [|τ_i| is among the ⌊density · n⌋ largest of the n elements in scope];  τ_i ← m_i ⊙ τ_i",
    differs="Step 1 of TIES. Exactly ⌊density · n⌋ elements are kept, of equal ones those that come first; the official code "
    "trims over the whole model and keeps all that reach its threshold, one more and its equals (ties with trim_scope: model).",
    once="a second trim keeps of what the first has kept what one with the smaller density keeps",
)
def trim(delta: Tensor, *, density: Fraction, scope: Scope = "tensor") -> Tensor:
    """Keep the largest `density` share of each task vector.

    Args:
        density: share kept.
        scope: where the share is taken: in each tensor, layer, or the whole model.
    """
    return keep_largest(delta, density, scope=scope)
