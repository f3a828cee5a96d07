"""Typical texts: those nearest to the centres of the clusters that a model's last layer sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints.sources import Model
from cuvee.statistics.collecting import collect_hidden
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cluster_centres", "typical_texts"]

_MOST_TURNS = 100


def typical_texts(model: Model, texts: Sequence[str], count: int = 20, **options: Any) -> list[str]:
    """Return up to `count` of the texts, in their order: of each cluster of last hidden states the one nearest to its centre.

    Args:
        model: the newest of those to be merged.
        count: of clusters (k-means).
        options: those of `collect_hidden`.

    Raises:
        CuveeError: as `collect_hidden`.
    """
    hidden = collect_hidden(model, texts, **options)
    *_, last = hidden.tensors.values()
    states = last.double()
    centres = cluster_centres(states, min(count, len(texts)))
    nearest = torch.cdist(centres, states).argmin(1)
    return [texts[index] for index in sorted(set(nearest.tolist()))]


def cluster_centres(points: Tensor, count: int) -> Tensor:
    """Return the centres of k-means, (count, width), from the same start always: the point nearest to the mean, then far ones.

    Args:
        points: (n, width), n ≥ count.
    """
    chosen = [int((points - points.mean(0)).square().sum(1).argmin())]
    while len(chosen) < count:  # each next one is the farthest from those chosen
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    centres = points[chosen].clone()
    for _ in range(_MOST_TURNS):
        owner = torch.cdist(points, centres).argmin(1)
        moved = torch.stack(
            [points[owner == k].mean(0) if bool((owner == k).any()) else centres[k] for k in range(count)]
        )
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
