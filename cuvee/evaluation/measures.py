"""Measures of a merge, as papers report them: absolute, normalised, forgetting, generalisation, and intervals over seeds.

All take scores by task, of models on the same items; shares are 1 where a merge is as good as the experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cuvee.evaluation.suites.suite import Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "NORMAL_95",
    "Interval",
    "Valued",
    "absolute",
    "change",
    "interval",
    "nested_subsets",
    "normalised",
    "paired_interval",
    "standard_error",
]

# Two-sided 95 % quantiles of Student's t with 1, 2, … degrees of freedom; beyond, that of the normal distribution is near.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)  # fmt: skip
NORMAL_95 = 1.96


class Valued(Protocol):
    """A score, whoever found it."""

    @property
    def value(self) -> float: ...  # noqa: D102
    @property
    def higher_is_better(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval around it.

    Attributes:
        mean: of the values.
        half: half the interval's width; NaN for one value, from which nothing follows.
        n: number of values.
    """

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def standard_error(items: Sequence[float] | NDArray[np.floating[Any]] | None) -> float:
    """Return the standard error of a mean over items; NaN where there are none, or one."""
    if items is None or len(items) < 2:
        return math.nan
    return float(np.std(items, ddof=1, dtype=np.float64) / math.sqrt(len(items)))


def absolute(scores: Mapping[str, Valued]) -> float:
    """Return the mean of scores over tasks, which must share a metric to mean something."""
    return math.fsum(score.value for score in scores.values()) / len(scores)


def normalised(merged: Mapping[str, Valued], experts: Mapping[str, Valued]) -> float:
    """Return the mean over the experts' tasks of merged / own expert (arXiv 2212.04089).

    Where less is better it is expert / merged. More than 1 is better than the experts. A task at which the expert scores 0
    says nothing and is left out; NaN where that is all of them.

    Args:
        merged: the candidate's scores by task.
        experts: of each of these tasks, the score of its own expert.
    """
    shares = [_ratio(merged[task], expert) for task, expert in experts.items() if expert.value]
    return math.fsum(shares) / len(shares) if shares else math.nan


def _ratio(one: Valued, other: Valued) -> float:
    above, below = (one.value, other.value) if other.higher_is_better else (other.value, one.value)
    return above / below if below else math.nan


def change(candidate: Mapping[str, Valued], base: Mapping[str, Valued]) -> float:
    """Return the mean over tasks of how much better than the base a candidate is, in the unit of the scores.

    On the base's own tasks a negative change is forgetting; on unseen tasks a positive one is generalisation.
    """
    gains = [
        (candidate[task].value - score.value) * (1 if score.higher_is_better else -1) for task, score in base.items()
    ]
    return math.fsum(gains) / len(gains)


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of one value a seed, and its 95 % interval by Student's t."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    quantile = _T_95[n - 2] if n - 2 < len(_T_95) else NORMAL_95
    return Interval(mean, quantile * deviation / math.sqrt(n), n)


def paired_interval(one: Score, other: Score) -> Interval:
    """Return how much better `one` is than `other` on the same items, and the 95 % interval of that mean.

    Raises:
        ValueError: they were not scored on the same number of items.
    """
    if one.n != other.n:
        raise ValueError(f"{one.n} items against {other.n}")
    sign = 1 if one.higher_is_better else -1
    return interval((sign * (one.items - other.items)).tolist())


def nested_subsets(names: Sequence[str]) -> list[list[str]]:
    """Return the first 2, 3, … of the experts: each set holds the one before, so that only their number differs."""
    return [list(names[:k]) for k in range(2, len(names) + 1)]
