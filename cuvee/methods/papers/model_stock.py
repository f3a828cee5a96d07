"""Model Stock: how far to go from the base towards the average, from the angle between task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cuvee.methods.calls import current, noted
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import Paper, merge_method

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor


@merge_method(
    paper=Paper("Model Stock: All we need is just a few fine-tuned models", arxiv="2403.19522", year=2024),
    models=(2, None),
    cost="two visits of each tensor",
    arrays=True,
    formula="c = mean cosine of the pairs of τ;  t = K·c / (1 + (K−1)·c);  out = θ_0 + scaling · t · mean τ_i",
    differs="mergekit lets t leave [0, 1] when task vectors point apart, and takes norms of at least 1e-3 into its cosines "
    "(compat: mergekit keeps both); here t is clamped, which the report says, and cosines are exact.",
)
def model_stock(deltas: Tensor, *, filter_wise: bool = False) -> Tensor:
    """Go from the base towards the average of the models, the further the more their task vectors agree.

    Args:
        deltas: (K, …), K ≥ 2 fine-tunes by the same recipe.
        filter_wise: one angle for each row instead of each tensor.

    Returns:
        (…); equal models give that model, orthogonal task vectors the base.
    """
    over = "row" if filter_wise else "all"
    gram = measured(Gram(), deltas, over=over)  # type: ignore[arg-type]
    t = _interpolation(gram, mergekit=current().compat == "mergekit")
    if t.ndim == 0 and t == 0 and np.triu(gram, 1).sum() < 0:
        noted(fallback="the base: task vectors point apart")
    return linear_combination(deltas, np.stack([t / len(deltas)] * len(deltas)), "row" if t.ndim else "all")


def _interpolation(gram: NDArray[Any], *, mergekit: bool) -> NDArray[Any]:
    count = len(gram)
    norms = np.sqrt(np.maximum(np.einsum("ii...->i...", gram), 0.0))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    floor = 1e-6 if mergekit else np.finfo(np.float64).tiny
    with np.errstate(invalid="ignore"):  # infinite weights that were let through: their interpolation is NaN
        cosines = [gram[i, j] / np.maximum(norms[i] * norms[j], floor) for i, j in pairs]
    c = np.mean(np.clip(cosines, -1.0, 1.0), axis=0)
    denominator = 1 + (count - 1) * c
    t = np.asarray(count * c / np.where(np.abs(denominator) < 1e-12, 1.0, denominator))
    return t if mergekit else np.clip(t, 0.0, 1.0)
