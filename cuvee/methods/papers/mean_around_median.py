"""Mean around the median: of each element, the values that lie closest to its median."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.pieces.sort import check_trim, middle
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Bound, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Generalized Byzantine-tolerant SGD (Xie et al.)", arxiv="1802.10116", year=2018),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(3, None),
    arrays=True,
    formula="out = [base +] mean of the K − f values of x_1, …, x_K closest to their median, by element",
    differs="Of an even number the lower middle is the median, as in the code of the Flag Aggregator; of two values as far "
    "away the smaller is taken, where that code leaves it open.",
)
def mean_around_median(values: Tensor, *, f: Annotated[int, Bound(0)] = 1) -> Tensor:
    """Average, for every element, the K − f values that are closest to its median.

    Args:
        values: (K, …): weights, or task vectors with a base; K ≥ 2f + 1.
        f: how many models may be arbitrarily bad.

    Raises:
        MethodError: K < 2f + 1.
    """
    check_trim(f, len(values), 2 * f + 1)
    lower = (len(values) - 1) // 2
    return middle(values, lower, lower + 1, nearest=len(values) - f)
