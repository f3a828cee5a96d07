"""PCB-Merging: balance the competition of parameters, within and between tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cuvee.methods.measuring import measured_each, spread
from cuvee.methods.pieces.vote import sum_models
from cuvee.methods.reductions import Ranks
from cuvee.methods.registry import Fraction, Paper, PerModel, merge_method
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.order import digits_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Clamps:
    """The ranks, from the largest, of sorted(x)[int(c·n)] and sorted(x)[int(n·(1 − c) − 1)]."""

    share: float

    def __call__(self, n: int) -> tuple[int, ...]:
        low, high = int(n * self.share), max(0, int(n * (1 - self.share) - 1))
        return n - min(low, high), n - high


@dataclass(frozen=True)
class FloorAndTop:
    """The ranks, from the largest, of sorted(x)[int(n·(1 − r))] and of the largest."""

    ratio: float

    def __call__(self, n: int) -> tuple[int, ...]:
        return n - min(int(n * (1 - self.ratio)), n - 1), 1


@merge_method(
    paper=Paper("Parameter Competition Balancing for Model Merging", arxiv="2410.02396", year=2024),
    cost="a few rounds over the model",
    formula="β_i = exp(K·N_i²), N_i = |τ_i| clamped and normalised;  γ_i = tanh(τ_i · Σ_j τ_j);  "
    "s_i = the `ratio` largest of β_i γ_i, normalised;  out = θ_0 + scaling · Σ weight_i s_i τ_i / Σ s_i",
    differs="As the official scripts, which disagree with each other: the one for language models takes Σ τ_j as it is (inter: "
    "raw_sum), the one for vision the sum of sgn(τ_j)·N_j (inter: normalized_sum, with ratio 0.05 and clamp_ratio 0.01). Where "
    "a task vector has one magnitude only, or all scores are equal, 0/0 there counts as 0.",
)
def pcb_merging(
    deltas: Tensor,
    *,
    weight: PerModel[float] = 1.0,
    ratio: Fraction = 0.1,
    clamp_ratio: Fraction = 1e-4,
    inter: Literal["raw_sum", "normalized_sum"] = "raw_sum",
) -> Tensor:
    """Weigh every entry by how large it is in its task and how well it agrees with the others; drop the rest.

    Args:
        deltas: (K, …).
        weight: coefficient of each model (the paper's λ_i, about 1).
        ratio: share of the entries of each model that is kept, by their score.
        clamp_ratio: share of the smallest and of the largest magnitudes that are clamped.
        inter: what an entry is compared with.
    """
    digits = digits_of(deltas.dtype)
    limits = measured_each(Ranks(Clamps(clamp_ratio), resolve_ties=False, digits=digits), deltas, scope="model")
    sizes = [delta.abs().clamp(low.value, high.value) for delta, (low, high) in zip(deltas, limits, strict=True)]
    normal = [_normalized(size, low.value, high.value) for size, (low, high) in zip(sizes, limits, strict=True)]
    signs = torch.sign(deltas)
    others = sum_models(deltas if inter == "raw_sum" else signs * torch.stack(normal))
    scores = [(n * n * len(deltas)).exp() * torch.tanh(d * others) for d, n in zip(deltas, normal, strict=True)]
    ends = Ranks(FloorAndTop(ratio), magnitude=False, resolve_ties=False, digits=digits)
    shares = [
        _normalized(score.clamp(min=floor.value), floor.value, top.value)
        for score, (floor, top) in zip(scores, measured_each(ends, scores, scope="model"), strict=True)
    ]
    parts = zip(spread(weight, len(deltas)), signs, sizes, shares, strict=True)
    merged = sum_models([sign * size * share * w for w, sign, size, share in parts])
    return merged / sum_models(shares).clamp(min=1e-12)


def _normalized(values: Tensor, low: float, high: float) -> Tensor:
    """Map [low, high] to [0, 1]; all to 0 where the two are one."""
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
