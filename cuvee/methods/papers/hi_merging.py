"""Hi-Merging: prune and scale each model, then settle, layer by layer, what scores say is a conflict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.calls import current
from cuvee.methods.combination import spread
from cuvee.methods.measuring import each
from cuvee.methods.pieces.trim import keep_largest
from cuvee.methods.pieces.vote import sign_consensus
from cuvee.methods.registry import Fraction, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Hi-Merging: Training-free LLM Merging for Multi-task Learning", arxiv="2506.12379", year=2025),
    models=(2, 2),
    cost="a few rounds over the model",
    arrays=True,
    status="reconstruction",
    formula="δ_i = scale_i · the largest `density_i` of τ_i;  conflict_i = alone_i − merged_i in each layer;  "
    "out = θ_0 + scaling · Σ_{sgn δ_i = s} δ_i after the conflicts are settled,  s = sgn Σ δ_i",
    differs="A reconstruction: no complete code was found. The paper searches density and scale by the score of each model, "
    "scores a layer by taking it out and by putting it in alone, and does so again after each layer that it changes. "
    "Here all scores are given beforehand: one round. That the model with a conflict of its own is the one pruned "
    "again, where only one has, is a reading of ours.",
)
def hi_merging(
    deltas: Tensor,
    *,
    density: PerModel[Fraction] = 0.1,
    scale: PerModel[float] = 0.9,
    alone: PerModel[float] = 0.0,
    merged: PerModel[float] = 0.0,
) -> Tensor:
    """Prune and scale two task vectors, settle their conflicts layer by layer, and add what agrees in sign.

    A layer's contribution to a model's own task is what the score loses without that layer's changes, plus what the base
    gains by them alone. Where it is smaller in the merged model than in the model itself, there is a conflict. Both in
    conflict: only the larger contribution stays. One: it is pruned and scaled again, by half of its values. None: the layer
    stays. The scores need labelled data, and are written as gradients with one number a layer: alone: [0.3, 0.1, …].
    Without them this is TIES over the whole model, with its sum.

    Args:
        deltas: (2, …).
        density: share of each task vector kept, the largest magnitudes of the whole model.
        scale: factor of what is kept.
        alone: contribution of the layer in the model itself.
        merged: contribution of the layer in the merged model, on the same task.
    """
    layer = current(None).place.layer
    pairs = zip(spread(alone, len(deltas)), spread(merged, len(deltas)), strict=True)
    conflicts = [layer is not None and float(own) > float(joint) for own, joint in pairs]
    kept = each(_settled, deltas, density, scale, _verdicts(conflicts, spread(alone, len(deltas))))
    return sign_consensus(kept, 1.0, normalize=False)


def _verdicts(conflicts: list[bool], contributions: list[float]) -> list[str]:
    """Return what becomes of a layer of each model: "keep", "halve" or "drop"."""
    if not all(conflicts):
        return ["halve" if conflict else "keep" for conflict in conflicts]
    best = contributions.index(max(contributions))
    return ["keep" if k == best else "drop" for k in range(len(conflicts))]


def _settled(delta: Tensor, density: float, scale: float, verdict: str) -> Tensor:
    kept = keep_largest(delta, density, scope="model", inclusive=True) * scale
    if verdict == "halve":
        return keep_largest(kept, density / 2, scope="tensor") * (scale / 2)
    return kept if verdict == "keep" else kept * 0.0
