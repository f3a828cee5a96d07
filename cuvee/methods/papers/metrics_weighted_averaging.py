"""Metrics-weighted averaging: checkpoints of one run, weighted by a number that each has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.combination import spread
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import NONE, WEIGHTS, Bound, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Parameter-Efficient Checkpoint Merging via Metrics-Weighted Averaging", arxiv="2504.18580", year=2025),
    on=WEIGHTS,
    base=NONE,
    arrays=True,
    status="reconstruction",
    formula="out = Σ w_i θ_i / Σ w_i;  loss: w_i = metric_i^(−penalty);  step, score: w_i = metric_i^penalty",
    differs="A reconstruction: the paper's formula was not seen, only that weights follow training loss or step with one "
    "penalty factor.",
)
def metrics_weighted_averaging(
    weights: Tensor,
    *,
    metric: PerModel[Annotated[float, Bound(0, open_low=True)]],
    kind: Literal["loss", "step", "score"] = "loss",
    penalty: Annotated[float, Bound(0)] = 1.0,
) -> Tensor:
    """Average checkpoints of one run, the better ones counting more.

    Args:
        weights: (K, …); adapters of one run may be averaged factor by factor.
        metric: one positive number for each checkpoint: its loss, its step, or a score.
        kind: what the number is; a small loss is good, a late step or a high score is.
        penalty: 0 is the plain mean; a large one takes the best checkpoint alone.
    """
    values = np.array([float(x) for x in spread(metric, len(weights))])
    logs = np.log(values) * (-penalty if kind == "loss" else penalty)
    share = np.exp(logs - logs.max())  # the largest is 1: no power overflows
    if not np.isfinite(share).all():
        raise MethodError(f"the metrics {values.tolist()} cannot be weighed", right="positive finite numbers")
    return weighted_sum(weights, [float(w) for w in share], normalize=True)
