"""Prune layers: take whole layers out of task vectors, those that say least (LwPTV)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from cuvee.methods.calls import current
from cuvee.methods.combination import Stored, plain
from cuvee.methods.folding import Again, Done, Fold
from cuvee.methods.measuring import measured
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import Fraction, Paper, Role, edit
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["LayerGrams", "lwptv"]

Saliency = Literal["distinct", "norm", "cosine"]
OUTSIDE = -1


@dataclass(frozen=True)
class LayerGrams:
    """The Gram matrix of each layer, over a model: {layer: (K, K)}, what lies outside the layers under `OUTSIDE`."""

    stacked: ClassVar[bool] = True

    def fold(self, state: Any) -> Fold:
        return "concat"

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.float64]:
        """Return the matrix and below it a row with the layer, (K + 1, K, …)."""
        gram = Gram().measure(values, axis, state)
        return np.concatenate([gram, np.full_like(gram[:1], _layer())])

    def of_stored(self, given: Sequence[Stored], leaf: int, state: Any) -> NDArray[np.float64]:
        grams = Gram().of_stored(given, leaf, state)
        return np.concatenate([grams, np.full_like(grams[:, :, :1], _layer())], axis=2)

    def next(self, folded: Sequence[tuple[str, NDArray[np.float64]]], state: Any, numel: int) -> Done | Again:
        grams: dict[int, NDArray[np.float64]] = {}
        for _, leaves in folded:
            for leaf in leaves:
                layer = int(leaf[-1, 0])
                grams[layer] = grams[layer] + leaf[:-1] if layer in grams else leaf[:-1]
        return Done(dict(sorted(grams.items())))


@edit(
    role=Role.FILTER,
    arrays=True,
    paper=Paper("Merging Smarter, Generalizing Better (LwPTV)", arxiv="2506.09093", year=2025),
    cost="two rounds over the model",
    formula="s_il = ‖τ_il − mean_j τ_jl‖ / ‖τ_il‖ in layer l  (norm: ‖τ_il‖, cosine: 1 − cos(τ_il, mean_j τ_jl));  "
    "τ_il ← 0 where s_il is among the ⌊prune_ratio · L⌋ smallest of model i",
    differs="A reconstruction: the paper's score was not seen, only that there is one for each layer of each task vector, and "
    "that a mask takes whole layers out. The scores are ours, and so is what counts as a layer: what lies outside the layers "
    "is one more. A task vector that is zero in a layer has score 0 there.",
    once="the layers that the first has taken out say least, so the second takes out the same",
    status="reconstruction",
)
def lwptv(deltas: Tensor, *, prune_ratio: Fraction = 0.3, saliency: Saliency = "distinct") -> Tensor:
    """Take whole layers out of each task vector, those with the least saliency; there the base stays.

    Args:
        prune_ratio: share of the layers taken out of each model, rounded down; what lies outside them counts as one more.
        saliency: "distinct": ‖τ_i − mean‖ / ‖τ_i‖ of a layer; "norm": ‖τ_i‖; "cosine": 1 − cos(τ_i, mean).
    """
    deltas = deltas if isinstance(deltas, Stored) else plain(deltas)
    grams = measured(LayerGrams(), deltas, scope="model")
    at = list(grams).index(_layer())
    scores = np.array([_saliency(gram, saliency) for gram in grams.values()])  # (layers, K)
    ranks = scores.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    kept = ranks[at] >= int(prune_ratio * len(scores))
    if isinstance(deltas, Stored):
        return Stored([row * float(keeps) for row, keeps in zip(deltas.rows, kept, strict=True)])
    return deltas * torch.as_tensor(kept, device=deltas.device).to(deltas.dtype).reshape(-1, *[1] * (deltas.ndim - 1))


def _layer() -> int:
    """The layer of the block that is being worked on."""
    layer = current().place.layer
    return OUTSIDE if layer is None else layer


def _saliency(gram: NDArray[np.float64], saliency: Saliency) -> NDArray[np.float64]:
    """Return the score of each model, (K,); 0 for a zero task vector."""
    squares = np.maximum(np.diag(gram), 0.0)
    norms = np.sqrt(squares)
    if saliency == "norm":
        return norms
    with_mean, mean_square = gram.mean(1), max(float(gram.mean()), 0.0)
    if saliency == "distinct":
        away = np.sqrt(np.maximum(squares - 2 * with_mean + mean_square, 0.0))
        return np.where(norms > 0, away / np.where(norms > 0, norms, 1.0), 0.0)
    length = norms * np.sqrt(mean_square)
    return np.where(length > 0, 1 - with_mean / np.where(length > 0, length, 1.0), 0.0)
