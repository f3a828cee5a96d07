"""The trimmed mean: without the smallest and the largest of each element."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.pieces.sort import check_trim, trimmed
from cuvee.methods.registry import OPTIONAL, WEIGHTS, Bound, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Byzantine-Robust Distributed Learning (Yin et al.)", arxiv="1803.01498", year=2018),
    on=WEIGHTS,
    base=OPTIONAL,
    models=(3, None),
    arrays=True,
    formula="out = [base +] mean of x_1, …, x_K without the f smallest and the f largest, by element",
    differs="f: 0 is the mean (the code of the Flag Aggregator, which has this baseline, returns nothing there).",
)
def trimmed_mean(
    values: Tensor,
    *,
    f: Annotated[int, Bound(0)] = 1,
    beta: Annotated[float, Bound(0, 0.5, open_high=True)] | None = None,
) -> Tensor:
    """Average every element without its f smallest and f largest values.

    Args:
        values: (K, …): weights, or task vectors with a base; K ≥ 2f + 1.
        f: how many models may be arbitrarily bad.
        beta: the same as a share of the models, f = ⌊beta · K⌋; replaces f.

    Raises:
        MethodError: K < 2f + 1.
    """
    f = f if beta is None else int(beta * len(values))
    check_trim(f, len(values), 2 * f + 1)
    return trimmed(values, f)
