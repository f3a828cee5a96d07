"""The rows of a run of a suite: one a model, with all that tables, files and pages say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cuvee.evaluation.measures import Interval, interval
from cuvee.evaluation.results import Bench, Summary
from cuvee.evaluation.suites.suite import Score

__all__ = ["Kind", "Row", "bench_rows", "shifted_by"]

Kind = Literal["base", "expert", "merge"]


@dataclass(frozen=True)
class Row:
    """A model's measures.

    Attributes:
        kind: the base, one of the experts, or a merge.
        label: its name; of a merge, the method and its settings.
        failure: why there is nothing else in this row, or "".
        summary: measures at the tuned coefficient; of the base and the experts as they are.
        default: normalised score at the default coefficient; None where there is no coefficient.
        coefficient: "scaling" or "t"; None where there is none.
        chosen: its value by seed.
        tasks: score on the test split, by task, mean over seeds.
        seconds, peak_bytes: of one merge, mean over seeds; None where unknown.
    """

    kind: Kind
    label: str
    failure: str = ""
    summary: Summary | None = None
    default: Interval | None = None
    coefficient: str | None = None
    chosen: Sequence[float] = ()
    tasks: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    peak_bytes: float | None = None

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"expert {self.label}" if self.kind == "expert" else self.label

    @property
    def normalised(self) -> float:
        """The mean of the normalised score; NaN where the method has failed."""
        return self.summary.normalised.mean if self.summary else math.nan


def shifted_by(severity: int) -> str:
    """Return how tables call the score on data that are shifted so far."""
    return f"shifted {severity}"


def bench_rows(bench: Bench) -> list[Row]:
    """Return the base, the experts, and the merges, best first."""
    experts = list(bench.seeds[0].experts)
    base = Row("base", "base", summary=bench.base_summary(), tasks=_means([seed.base for seed in bench.seeds]))
    return [
        base,
        *(
            Row(
                "expert", name, summary=bench.expert_summary(name), tasks=_means([s.experts[name] for s in bench.seeds])
            )
            for name in experts
        ),
        *(_merge_row(bench, label) for label in bench.variants),
    ]


def _merge_row(bench: Bench, label: str) -> Row:
    summary = bench.summary(label)
    outcomes = bench.outcomes(label)
    seconds = bench.over_seeds(label, lambda one: one.cost.seconds if one.cost else None)
    peak = bench.over_seeds(label, lambda one: one.cost.peak_bytes if one.cost else None)
    if summary is None:
        return Row("merge", label, failure=bench.failure(label))
    tuned = [one.tuned for one in outcomes if one.tuned]
    coefficient = outcomes[0].variant.coefficient
    default = bench.summary(label, tuned=False) if coefficient else None
    return Row(
        "merge",
        label,
        summary=summary,
        default=default.normalised if default else None,
        coefficient=coefficient,
        chosen=[one.best for one in tuned if one.best is not None],
        tasks=_means([one.scores for one in tuned]),
        seconds=seconds.mean if seconds else None,
        peak_bytes=peak.mean if peak else None,
    )


def _means(models: Sequence[Mapping[str, Score]]) -> dict[str, float]:
    return {task: interval([one[task].value for one in models]).mean for task in models[0]}
