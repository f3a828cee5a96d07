"""Phocas: of each element, the values that lie closest to its trimmed mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.pieces.sort import check_trim, middle
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Bound, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Phocas: dimensional Byzantine-resilient SGD (Xie et al.)", arxiv="1805.09682", year=2018),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(3, None),
    arrays=True,
    formula="out = [base +] mean of the K − f values of x_1, …, x_K closest to their trimmed mean, by element",
    differs="Of two values as far away the smaller is taken, where the code of the Flag Aggregator leaves it open.",
)
def phocas(values: Tensor, *, f: Annotated[int, Bound(0)] = 1) -> Tensor:
    """Average, for every element, the K − f values that are closest to its trimmed mean.

    Args:
        values: (K, …): weights, or task vectors with a base; K ≥ 2f + 1.
        f: how many models may be arbitrarily bad.

    Raises:
        MethodError: K < 2f + 1.
    """
    check_trim(f, len(values), 2 * f + 1)
    return middle(values, f, len(values) - f, nearest=len(values) - f)
