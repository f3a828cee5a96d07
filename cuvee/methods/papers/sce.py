"""SCE (FuseChat): select by variance, calculate weights, erase minority signs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataclasses import dataclass
from typing import Literal

from cuvee.methods.measuring import current, measured
from cuvee.methods.pieces.trim import among_largest
from cuvee.methods.pieces.vote import sum_models
from cuvee.methods.reductions import Ranks, Sums
from cuvee.methods.registry import Fraction, Paper, merge_method
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.order import digits_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Count:
    """A number of entries, whatever n is."""

    k: int

    def __call__(self, n: int) -> tuple[int, ...]:
        return (self.k,)


@merge_method(
    paper=Paper("FuseChat: Knowledge Fusion of Chat Models", arxiv="2408.07990", year=2024),
    cost="a few visits of each tensor",
    formula="S = the `select_topk` share with the largest variance over models;  w_i ∝ mean((S ⊙ τ_i)²);  "
    "out = θ_0 + scaling · Σ_{sgn τ_i = s} w_i τ_i / Σ_{sgn τ_i = s} w_i,  s = sgn Σ τ_i",
    differs="As mergekit, which merges the selected positions only; the authors' code (variant: fuseai) uses the selection "
    "for the weights and merges all. mergekit falls back to equal weights when Σ mean(τ²) < 1e-6, which the deltas of "
    "language models usually are (compat: mergekit keeps that); here only when it is zero.",
)
def sce(
    deltas: Tensor, *, select_topk: Fraction = 1.0, variant: Literal["mergekit", "fuseai"] = "mergekit"
) -> Tensor:
    """Weigh models by the energy of their most varied entries, and merge the entries that agree in sign.

    Args:
        deltas: (K, …).
        select_topk: share of the positions selected, of those where models differ.
        variant: "mergekit" merges the selected positions, "fuseai" all.

    Returns:
        (…); identical models give that model.
    """
    selected = _select(deltas, select_topk)
    energies = measured(Sums("square"), list(selected)) / max(1, current(deltas[0]).place.layout.numel)
    floor = 1e-6 if variant == "mergekit" and current().compat == "mergekit" else 0.0
    total = float(energies.sum())
    uniform = total < floor or total == 0.0
    weights = [1.0 / len(deltas) if uniform else float(e) / total for e in energies]
    return _erase(deltas if variant == "fuseai" else selected, weights, clamp=variant == "mergekit")


def _select(deltas: Tensor, share: float) -> Tensor:
    if share >= 1:
        return deltas
    center = sum_models(deltas) / len(deltas)
    variance = sum_models((deltas - center) ** 2) / len(deltas)
    varied = int(measured(Sums("nonzero"), variance))
    (ranked,) = measured(Ranks(Count(int(share * varied)), digits=digits_of(deltas.dtype)), variance)
    return torch.where(among_largest(variance, ranked, current(variance).place), deltas, 0)


def _erase(deltas: Tensor, weights: list[float], *, clamp: bool) -> Tensor:
    signs = torch.where(sum_models(deltas) >= 0, 1.0, -1.0).to(deltas.dtype)
    merged, divisor = torch.zeros_like(signs), torch.zeros_like(signs)
    for delta, w in zip(deltas, weights, strict=True):
        agrees = delta * signs > 0
        merged.add_(torch.where(agrees, delta * w, 0))
        divisor.add_(torch.where(agrees, w, 0.0).to(deltas.dtype))
    return merged / (divisor.clamp(min=1e-6) if clamp else torch.where(divisor == 0, 1.0, divisor))
