"""SCE (FuseChat): select by variance, calculate weights, erase minority signs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cuvee.methods.calls import current, room
from cuvee.methods.combination import Stored, by_model
from cuvee.methods.measuring import each, measured, remembered_mask
from cuvee.methods.pieces.trim import among_largest
from cuvee.methods.pieces.vote import sum_models, weigh_consensus
from cuvee.methods.reductions import Ranks, Sums
from cuvee.methods.registry import Fraction, Paper, merge_method
from cuvee.tensors import kernels
from cuvee.tensors.either import as_tensor
from cuvee.tensors.masking import keep_where
from cuvee.tensors.order import digits_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ShareOfNonzero:
    """int(share · n), where n counts the entries that are not zero."""

    share: float

    def __call__(self, n: int) -> tuple[int, ...]:
        return (int(self.share * n),)


@merge_method(
    paper=Paper("FuseChat: Knowledge Fusion of Chat Models", arxiv="2408.07990", year=2024),
    cost="a few visits of each tensor",
    arrays=True,
    formula="S = the `select_topk` share with the largest variance over models;  w_i ∝ mean((S ⊙ τ_i)²);  "
    "out = θ_0 + scaling · Σ_{sgn τ_i = s} w_i τ_i / Σ_{sgn τ_i = s} w_i,  s = sgn Σ τ_i",
    differs="As mergekit, which merges the selected positions only; the authors' code (variant: fuseai) uses the selection "
    "for the weights and merges all. mergekit falls back to equal weights when Σ mean(τ²) < 1e-6, which the deltas of "
    "language models usually are (compat: mergekit keeps that); here only when it is zero. Where no model differs from the "
    "others, mergekit selects nothing with select_topk < 1, and the base is left (compat: mergekit); here that model is.",
)
def sce(deltas: Tensor, *, select_topk: Fraction = 1.0, variant: Literal["mergekit", "fuseai"] = "mergekit") -> Tensor:
    """Weigh models by the energy of their most varied entries, and merge the entries that agree in sign.

    Args:
        deltas: (K, …).
        select_topk: share of the positions selected, of those where models differ; of a tensor in which all are equal, all.
        variant: "mergekit" merges the selected positions, "fuseai" all.

    Returns:
        (…); identical models give that model.
    """
    selected = _select(deltas, select_topk, variant)
    numel = current(by_model(deltas)[0]).place.layout.numel
    energies = measured(Sums("square"), by_model(selected)) / max(1, numel)
    least = 1e-6 if variant == "mergekit" and current().compat == "mergekit" else 0.0
    total = float(energies.sum())
    uniform = total < least or total == 0.0
    weights = [1.0 / len(deltas) if uniform else float(e) / total for e in energies]
    kept = deltas if variant == "fuseai" else selected
    floor = 1e-6 if variant == "mergekit" else 0.0
    return weigh_consensus(kept, [1.0] * len(deltas), weights, normalize=True, floor=floor)


def _select(deltas: Tensor, share: float, variant: str) -> Tensor:
    if share >= 1:
        return deltas
    one, varied = by_model(deltas)[0], functools.cache(lambda: variance(deltas))
    ranks = Ranks(ShareOfNonzero(share), of_nonzero=True, digits=digits_of(deltas.dtype))
    (ranked,) = measured(ranks, varied)
    selects_none = variant == "fuseai" or current(one).compat == "mergekit"
    if math.isnan(ranked.value) and not selects_none and measured(Sums("abs"), varied) == 0:
        return deltas

    def choose() -> Any:
        return among_largest(varied(), ranked, current(one).place)

    chosen = remembered_mask(lambda: choose().reshape(-1), one) if isinstance(deltas, Stored) else choose()
    return each(lambda delta: keep_where(chosen, delta, room(delta)), deltas)


def variance(deltas: Tensor) -> Tensor:
    """Return the population variance over the K models, element by element; exactly 0 where they are equal."""
    if isinstance(deltas, Stored) or kernels.serve(deltas):
        rows = [kernels.row_of(delta) for delta in by_model(deltas)]
        found = kernels.variance(rows, np.empty(tuple(deltas.shape[1:]), np.float32))
        return found if isinstance(deltas, Stored | np.ndarray) else as_tensor(found)
    deltas = as_tensor(deltas)
    center = sum_models(deltas) / len(deltas)
    away = [delta - center for delta in deltas]
    differ = (deltas != deltas[0]).any(0)
    return keep_where(differ, sum_models([one * one for one in away]) / len(deltas))
