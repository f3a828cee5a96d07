"""PMA: the average of the checkpoints of one pre-training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import NONE, WEIGHTS, Bound, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Model Merging in Pre-training of Large Language Models (PMA)", arxiv="2505.12082", year=2025),
    on=WEIGHTS,
    base=NONE,
    arrays=True,
    sequence={"scheme": ("wma", "ema")},
    formula="out = Σ w_i θ_i;  sma: w_i = 1/N;  wma: w_i ∝ i;  ema: M ← (1−alpha)·M + alpha·θ_i from M = θ_1",
    differs="The paper compares sma, wma and ema with alpha 0.1 and 0.2, and recommends sma of about 10 checkpoints.",
)
def pma(
    weights: Tensor,
    *,
    scheme: Literal["sma", "wma", "ema"] = "sma",
    alpha: Annotated[float, Bound(0, 1)] = 0.2,
) -> Tensor:
    """Average checkpoints of one run, as a learning rate that falls would: for 10 or so at even distances.

    Args:
        weights: (N, …), the oldest first.
        scheme: all alike (sma), the later the more in equal steps (wma) or by a factor (ema).
        alpha: share of each new checkpoint in ema.
    """
    count = len(weights)
    if scheme == "ema":
        share = [(1 - alpha) ** (count - 1), *(alpha * (1 - alpha) ** (count - i) for i in range(2, count + 1))]
        return weighted_sum(weights, share)
    return weighted_sum(weights, [1.0 if scheme == "sma" else float(i + 1) for i in range(count)], normalize=True)
