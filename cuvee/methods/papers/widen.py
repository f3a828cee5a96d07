"""WIDEN: weigh the columns of every model by how much their lengths and directions have changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from cuvee.methods.calls import current
from cuvee.methods.combination import Stored, beside, by_model, plain
from cuvee.methods.folding import Again, Done, Fold
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.reductions import Gram, Sums
from cuvee.methods.registry import Bound, Paper, merge_method
from cuvee.tensors import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class RowWeights:
    """The weights of every row of a tensor, (K, rows), from the Gram matrix of the K task vectors and the base in it.

    Attributes:
        length: of a row.
        ratio, calibration: as of `_weights`.
    """

    length: int
    ratio: float
    calibration: float

    stacked: ClassVar[bool] = True

    def fold(self, state: Any) -> Fold:
        return "concat"

    def of_stored(self, given: Sequence[Stored], leaf: int, state: Any) -> NDArray[np.float64]:
        return np.stack([self._by_leaf(kernels.product_sums(v.rows, self.length), leaf) for v in given], axis=1)

    def _by_leaf(self, grams: NDArray[np.float64], leaf: int) -> NDArray[np.float64]:
        """(rows, K, K) into (leaves, K, K, rows of a leaf), NaN where the last one has fewer."""
        full, count = leaf // self.length, grams.shape[1]
        missing = np.full((-len(grams) % full, count, count), np.nan)
        return np.moveaxis(np.concatenate([grams, missing]).reshape(-1, full, count, count), 1, -1)

    def measure(self, values: Tensor, axis: int, state: Any) -> NDArray[np.float64]:
        """Return (K, K, rows of a leaf, …), NaN where a leaf has fewer rows than the others."""
        full = current().place.layout.leaf // self.length
        rows = values.reshape(*values.shape[:-1], -1, self.length)
        grams = np.moveaxis(Gram().measure(rows, -1, state), -1, 2)
        missing = np.full((*grams.shape[:2], full - grams.shape[2], *grams.shape[3:]), np.nan)
        return np.concatenate([grams, missing], axis=2)

    def next(self, folded: Sequence[tuple[str, NDArray[np.float64]]], state: Any, numel: int) -> Done | Again:
        ((_, leaves),) = folded
        grams = np.concatenate(list(leaves), axis=2)[:, :, : numel // self.length]
        return Done(_weights(grams, self.ratio, self.calibration))


@merge_method(
    paper=Paper("Extend Model Merging from Fine-Tuned to Pre-Trained LLMs (WIDEN)", arxiv="2408.03092", year=2024),
    models=(2, None),
    arrays=True,
    cost="a few visits of each tensor",
    formula="r = ranks of the columns by change of length and of direction, in [0, 1);  w_i = softmax over models of r_i, "
    "but calibration where r_i > above_average_ratio · mean r_i;  out = θ_0 + scaling · Σ ½(w_i^length + w_i^direction) τ_i",
    differs="As the official code: a column is an input of a linear layer, a token of an embedding; vectors are weighed entry "
    "by entry by |τ|. There an empty column gives NaN, a kernel of a convolution an error; here a column that is empty has not "
    "turned, and a kernel has a column for each place in it.",
)
def widen(
    deltas: Tensor,
    *,
    base: Tensor,
    above_average_ratio: Annotated[float, Bound(0)] = 1.0,
    calibration: float = 1.0,
) -> Tensor:
    """Add task vectors, column by column in proportion to how much a model has changed that column.

    Takes fine-tuned models together with ones that were trained on. Weights do not sum to 1: equal models overshoot.

    Args:
        deltas: (K, …), K ≥ 2.
        base: (…), the base's own weights.
        above_average_ratio: columns that rank higher than this times the mean rank are important.
        calibration: the weight of an important column.
    """
    place = current(by_model(deltas)[0]).place
    if len(place.layout.shape) < 2:
        return _merge_entries(deltas, above_average_ratio, calibration)
    together = beside(deltas, base)
    is_embedding = place.role == "embedding" and len(place.layout.shape) == 2
    if is_embedding:
        width = place.layout.shape[1]
        weights = measured(RowWeights(width, above_average_ratio, calibration), together)
        return linear_combination(deltas, weights[:, place.start // width : place.stop // width], "row")
    grams = measured(Gram(), together, over="column")
    return linear_combination(deltas, _weights(grams, above_average_ratio, calibration), "column")


def _weights(grams: NDArray[np.float64], ratio: float, calibration: float) -> NDArray[np.float64]:
    """Return the weight of each column of each model, (K, columns), from ⟨·,·⟩ of all τ_i and the base's in it."""
    length, turned = _changes(grams)
    return (_scores(length, ratio, calibration) + _scores(turned, ratio, calibration)) / 2


def _changes(grams: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return |‖w_i‖ − ‖w_0‖| and 1 − cos(w_i, w_0) of each column, (K, columns), from ⟨·,·⟩ of all τ_i and w_0."""
    own, with_base = np.einsum("ii...->i...", grams)[:-1], grams[-1, :-1]
    start = np.maximum(grams[-1, -1], 0.0)
    square = np.maximum(start + 2 * with_base + own, 0.0)
    lengths = np.sqrt(start * square)
    turned = np.where(lengths > 0, 1 - (start + with_base) / np.where(lengths > 0, lengths, 1.0), 0.0)
    return np.abs(np.sqrt(square) - np.sqrt(start)), turned


def _scores(change: NDArray[np.float64], ratio: float, calibration: float) -> NDArray[np.float64]:
    """Return the weight of each column of each model by its rank, (K, columns)."""
    count = change.shape[1]
    ranks = np.empty(change.shape)
    np.put_along_axis(ranks, change.argsort(axis=1, kind="stable"), np.arange(count) / max(1, count), axis=1)
    return np.where(ranks > ratio * ranks.mean(1, keepdims=True), calibration, _softmax(ranks))


def _softmax(values: Any) -> Any:
    powers = np.exp(values - values.max(0))
    return powers / powers.sum(0)


def _merge_entries(deltas: Tensor, ratio: float, calibration: float) -> Tensor:
    """Weigh the entries of a vector by the softmax over models of |τ|."""
    means = measured(Sums("abs"), by_model(deltas)) / max(1, math.prod(current().place.layout.shape))
    values: Any = plain(deltas)
    sizes = np.abs(values if isinstance(values, np.ndarray) else values.cpu().numpy())
    important = sizes > (ratio * means.reshape(-1, *[1] * (sizes.ndim - 1))).astype(sizes.dtype)
    weights = np.where(important, calibration, _softmax(sizes.astype(np.float64)))
    return linear_combination(deltas, weights, "element")
