"""PCB-Merging: balance the competition of parameters, within and between tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from cuvee.methods.combination import Stored, spread
from cuvee.methods.folding import Again, Done, Fold
from cuvee.methods.measuring import measured, measured_each
from cuvee.methods.pieces.vote import sum_models
from cuvee.methods.reductions import Ranks
from cuvee.methods.registry import Bound, Fraction, Paper, PerModel, merge_method
from cuvee.tensors import kernels
from cuvee.tensors.elementary import exp, tanh
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.order import digits_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Inter: TypeAlias = Literal["raw_sum", "normalized_sum"]
Ends: TypeAlias = tuple[tuple[float, float], ...]


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
        return n - max(0, min(int(n * (1 - self.ratio)), n - 1)), min(1, n)


@merge_method(
    paper=Paper("Parameter Competition Balancing for Model Merging", arxiv="2410.02396", year=2024),
    arrays=True,
    cost="five rounds over the model; mostly four where models are bf16",
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
    clamp_ratio: Annotated[float, Bound(0, 0.5, open_high=True)] = 1e-4,
    inter: Inter = "raw_sum",
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
    clamps = tuple((low.value, high.value) for low, high in limits)
    ends = measured(EndsOfScores(clamps, inter, ratio, digits), deltas, scope="model")
    return balanced(deltas, clamps, inter, ends, weight)


@dataclass(frozen=True)
class EndsOfScores:
    """The floor and the largest of the scores of each of K task vectors: ranks of what is made anew when it is counted.

    Args:
        clamps, inter: of `scores_of`.
        ratio: share of the scores above the floor.
        digits: as of `Ranks`.
    """

    clamps: Ends
    inter: Inter
    ratio: float
    digits: int

    stacked: ClassVar[bool] = True

    @property
    def ranks(self) -> Ranks:
        """What is measured of the scores of one model."""
        return Ranks(FloorAndTop(self.ratio), magnitude=False, resolve_ties=False, digits=self.digits)

    def fold(self, state: Any) -> Fold:
        return "count"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.int64]:
        scores = zip(scores_of(values, self.clamps, self.inter), self._stages(state), strict=True)
        found = [self.ranks.measure(score, axis, stage) for score, stage in scores]
        return np.concatenate(found if state else [counts[:1] for counts in found])

    def of_stored(self, given: Sequence[Stored], leaf: int, state: Any) -> NDArray[np.int64]:
        prefixes = None if state is None else [stage.prefixes for stage in state]
        found = [kernels.pcb_count(d.rows, self.clamps, prefixes, raw=self.inter == "raw_sum") for d in given]
        return np.stack(found)[None]

    def next(self, folded: Any, state: Any, numel: int) -> Done | Again:
        stages = self._stages(state)
        tables = np.split(folded, np.cumsum([1 if stage is None else len(stage.prefixes) for stage in stages])[:-1])
        if state is None:  # without a count of short keys each takes as many stages as there are digits
            tables = [np.concatenate([table, np.zeros_like(table)]) for table in tables]
        found: list[Any] = [self.ranks.next(t, stage, numel) for t, stage in zip(tables, stages, strict=True)]
        if isinstance(found[0], Done):
            return Done(tuple((floor.value, top.value) for floor, top in (one.value for one in found)))
        return Again(tuple(one.state for one in found))

    def _stages(self, state: Any) -> Sequence[Any]:
        return [None] * len(self.clamps) if state is None else state


def scores_of(deltas: Tensor, clamps: Ends, inter: Inter) -> Tensor:
    """Return β ∘ γ of each model, (K, …).

    Args:
        deltas: (K, …).
        clamps: the K least and largest magnitudes.
    """
    normal = torch.stack([_normalized(d.abs().clamp(*ends), *ends) for d, ends in zip(deltas, clamps, strict=True)])
    others = sum_models(deltas if inter == "raw_sum" else torch.sign(deltas) * normal)
    return exp(normal * normal * len(deltas)) * tanh(deltas * others)


def balanced(deltas: Tensor, clamps: Ends, inter: Inter, ends: Ends, weight: PerModel[float]) -> Tensor:
    """Return Σ weight s τ / Σ s, with s the scores above the floor, mapped to [0, 1]; (…).

    Args:
        deltas: (K, …).
        clamps, inter: as above.
        ends: the K floors and largest scores.
    """
    weights = spread(weight, len(deltas))
    if isinstance(deltas, Stored):
        return kernels.pcb_balance(deltas.rows, clamps, ends, weights, raw=inter == "raw_sum")
    sizes = [delta.abs().clamp(*limits) for delta, limits in zip(deltas, clamps, strict=True)]
    scores = zip(scores_of(deltas, clamps, inter), ends, strict=True)
    shares = [_normalized(score.clamp(min=low), low, top) for score, (low, top) in scores]
    parts = zip(weights, torch.sign(deltas), sizes, shares, strict=True)
    merged = sum_models([sign * size * share * w for w, sign, size, share in parts])
    return merged / sum_models(shares).clamp(min=1e-12)


def _normalized(values: Tensor, low: float, high: float) -> Tensor:
    """Map [low, high] to [0, 1]; all to 0 where the two are one."""
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
