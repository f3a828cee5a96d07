"""The coordinate-wise median: for models that nobody vouches for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cuvee.methods.pieces.sort import median
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Byzantine-Robust Distributed Learning (Yin et al.)", arxiv="1803.01498", year=2018),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(3, None),
    arrays=True,
    formula="out = [base +] median(x_1, …, x_K) by element,  x = θ, or τ with a base",
    differs="Of an even number the lower middle is taken, as torch.median does; even: mean is the mean of both. Without a "
    "base every element of an odd number of models is one of theirs, to the bit.",
)
def coordinate_median(values: Tensor, *, even: Literal["lower", "mean"] = "lower") -> Tensor:
    """Take the median of every element: fewer than half of the models cannot pull it beyond the others.

    Args:
        values: (K, …), K ≥ 3: weights, or task vectors with a base.
        even: of an even number of models, the lower middle or the mean of both.
    """
    return median(values, lower=even == "lower")
