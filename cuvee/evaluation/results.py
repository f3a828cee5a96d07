"""What `cuvee bench run` finds, as data: scores of the base, the experts and the merges, by seed, and their measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cuvee.evaluation.measures import NORMAL_95, Interval, change, interval, normalised, standard_error
from cuvee.evaluation.suites.suite import BASE, Score, Task

if TYPE_CHECKING:
    from cuvee.engine.comparing import Comparison
    from cuvee.evaluation.variants import Variant

__all__ = ["Bench", "Choice", "Cost", "Outcome", "SeedResult", "Summary", "recovered_share", "spread"]

Scores = Mapping[str, Score]
Shifted = Mapping[int, Mapping[str, Scores]]


@dataclass(frozen=True)
class Cost:
    """What one merge takes.

    Attributes:
        seconds: of processor time, one thread, nothing kept from an earlier merge.
        peak_bytes: of memory, beyond what was held before; None where the system does not tell.
    """

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Choice:
    """A coefficient chosen on validation data.

    Attributes:
        curve: (coefficient, normalised score on the validation split) of each that was tried, in order; empty where the method
            has none.
        best: the coefficient of the highest of them; None where there is none.
        scores: of the merge with it, on the test split, by task.
    """

    curve: Sequence[tuple[float, float]]
    best: float | None
    scores: Scores


@dataclass(frozen=True)
class Outcome:
    """What one variant reaches with the models of one seed.

    Attributes:
        variant: the method and its settings.
        failure: why there is no merge of all experts; "" where there is one.
        default: scores at the default coefficient, test split, all tasks.
        tuned: at the coefficient chosen on the validation split.
        shifted: of the tuned merge on the experts' tasks, by severity, corruption and task.
        by_size: number of experts -> normalised test score of their merge on the tasks of the fewest that are merged, so that
            only the number differs, the coefficient chosen anew for each; 2 up to all.
        by_share: share of the experts' training -> the same on all their tasks, for experts that were trained so far.
        cost: of one merge of all experts.
    """

    variant: Variant
    failure: str = ""
    default: Scores = field(default_factory=dict)
    tuned: Choice | None = None
    shifted: Shifted = field(default_factory=dict)
    by_size: Mapping[int, float] = field(default_factory=dict)
    by_share: Mapping[float, float] = field(default_factory=dict)
    cost: Cost | None = None


@dataclass(frozen=True)
class SeedResult:
    """All that one seed's models give.

    Attributes:
        seed: of the suite.
        key: of the suite's models.
        tasks: by name.
        base: the base's scores on all tasks.
        experts: each expert's scores on all tasks.
        shifted: the base's, as `BASE`, and each expert's on shifted data of the experts' tasks, by severity, corruption and
            task; empty where nothing can be shifted.
        outcomes: by the variant's label.
        comparison: of the experts' task vectors.
    """

    seed: int
    key: str
    tasks: Mapping[str, Task]
    base: Scores
    experts: Mapping[str, Scores]
    shifted: Mapping[str, Shifted]
    outcomes: Mapping[str, Outcome]
    comparison: Comparison | None = field(default=None, repr=False)

    @property
    def own(self) -> dict[str, Score]:
        """The score of each expert's task by its own expert."""
        return {task.name: self.experts[task.expert][task.name] for task in self.tasks.values() if task.expert}

    def own_shifted(self, severity: int) -> dict[str, dict[str, Score]]:
        """The scores of each expert's task by its own expert on data that are shifted so far, by corruption."""
        experts = {task.name: self.shifted[task.expert][severity] for task in self.tasks.values() if task.expert}
        corruptions = self.shifted[BASE][severity]
        return {one: {task: own[one][task] for task, own in experts.items()} for one in corruptions}

    def names(self, kind: str) -> list[str]:
        """Return the names of the tasks of a kind."""
        return [task.name for task in self.tasks.values() if task.kind == kind]


@dataclass(frozen=True)
class Summary:
    """A model's measures over seeds; None where the suite has no task for it, or the method has failed.

    Attributes:
        normalised: mean of merged / expert over the experts' tasks.
        recovered: mean share of each expert's gain over the base.
        absolute: metric -> mean over the experts' tasks.
        forgetting: how much better (negative: worse) than the base on the base's tasks.
        unseen: how much better than the base on nobody's tasks.
        shifted: normalised score on data that are shifted so far, by severity.
    """

    normalised: Interval
    recovered: Interval
    absolute: Mapping[str, Interval]
    forgetting: Interval | None = None
    unseen: Interval | None = None
    shifted: Mapping[int, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A run of a suite.

    Attributes:
        suite: its name.
        title: in a few words.
        quick: whether in its quick form.
        limit: the most items of a task; None: all.
        severities: of the shifts, each 1 to 5.
        command: what was typed.
        seeds: what each seed gives; the variants are the same.
    """

    suite: str
    title: str
    quick: bool
    limit: int | None
    severities: Sequence[int]
    command: str
    seeds: Sequence[SeedResult]

    @property
    def variants(self) -> list[str]:
        """Labels, best first by the tuned normalised score; those that have failed last."""
        labels = list(self.seeds[0].outcomes)
        found = {label: self.summary(label) for label in labels}
        known = {one: s.normalised.mean for one, s in found.items() if s and not math.isnan(s.normalised.mean)}
        return sorted(labels, key=lambda one: -known.get(one, -math.inf))

    @property
    def shifts(self) -> list[int]:
        """The severities that there are scores of: none for a suite without corruptions."""
        return [one for one in self.severities if all(one in seed.shifted.get(BASE, {}) for seed in self.seeds)]

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name."""
        return self.seeds[0].tasks

    def outcomes(self, label: str) -> list[Outcome]:
        """Return what a variant reaches, seed by seed."""
        return [one.outcomes[label] for one in self.seeds]

    def failure(self, label: str) -> str:
        """Return why a variant has failed, or ""."""
        return next((one.failure for one in self.outcomes(label) if one.failure), "")

    def summary(self, label: str, *, tuned: bool = True) -> Summary | None:
        """Return the measures of a variant; None where it has failed."""
        outcomes = self.outcomes(label)
        if any(one.failure or one.tuned is None for one in outcomes):
            return None
        scores = [one.tuned.scores if tuned and one.tuned else one.default for one in outcomes]
        return self._summary(scores, [one.shifted if tuned else {} for one in outcomes])

    def base_summary(self) -> Summary:
        """Return the measures of the base."""
        return self._summary([seed.base for seed in self.seeds], self._shifted(BASE))

    def expert_summary(self, name: str) -> Summary:
        """Return the measures of one expert, as if it were a merge."""
        return self._summary([seed.experts[name] for seed in self.seeds], self._shifted(name))

    def _shifted(self, model: str) -> list[Shifted]:
        return [seed.shifted.get(model, {}) for seed in self.seeds]

    def over_seeds(self, label: str, value: Callable[[Outcome], float | None]) -> Interval | None:
        """Return the interval of something that each seed's outcome has."""
        found = [value(one) for one in self.outcomes(label)]
        known = [one for one in found if one is not None]
        return interval(known) if known and len(known) == len(found) else None

    def _summary(self, models: Sequence[Scores], shifted: Sequence[Shifted]) -> Summary:
        pairs = list(zip(self.seeds, models, strict=True))
        both = list(zip(shifted, self.seeds, strict=True))
        metrics = dict.fromkeys(self.tasks[task].metric for task in self.seeds[0].own)
        return Summary(
            spread([(normalised(scores, seed.own), _noise(scores, seed.own)) for seed, scores in pairs]),
            interval([recovered_share(scores, seed.own, seed.base) for seed, scores in pairs]),
            {metric: interval([_mean(scores, seed, metric) for seed, scores in pairs]) for metric in metrics},
            self._change(pairs, "base"),
            self._change(pairs, "unseen"),
            {
                severity: interval([_normalised(one[severity], seed.own_shifted(severity)) for one, seed in both])
                for severity in (self.shifts if all(shifted) else ())
            },
        )

    def _change(self, pairs: Sequence[tuple[SeedResult, Scores]], kind: str) -> Interval | None:
        if not self.seeds[0].names(kind):
            return None
        return interval(
            [change(scores, {task: seed.base[task] for task in seed.names(kind)}) for seed, scores in pairs]
        )


def recovered_share(scores: Scores, own: Scores, base: Scores) -> float:
    """Return the mean over the experts' tasks of (model − base) / (expert − base): 0 is the base, 1 the experts.

    A task on which the expert is no better than the base says nothing and is left out.
    """
    shares = []
    for task, expert in own.items():
        sign = 1 if expert.higher_is_better else -1
        gain = sign * (expert.value - base[task].value)
        if gain > 0:
            shares.append(sign * (scores[task].value - base[task].value) / gain)
    return math.fsum(shares) / len(shares) if shares else math.nan


def spread(values: Sequence[tuple[float, float]]) -> Interval:
    """Return the interval over seeds of (value, 95 % half width over items); of one seed, that over its items."""
    if len(values) == 1:
        return Interval(*values[0], 1)
    return interval([value for value, _ in values])


def _noise(scores: Scores, own: Scores) -> float:
    """Return the half width that the choice of items gives a normalised score: model and expert see the same items."""
    variance = 0.0
    known = {task: expert for task, expert in own.items() if expert.value and scores[task].value}
    for task, expert in known.items():
        above, below = (scores[task], expert) if expert.higher_is_better else (expert, scores[task])
        # d(a/b) = (da − a/b · db) / b, item by item
        moves = (above.items - above.value / below.value * below.items) / below.value
        variance += standard_error(moves) ** 2
    return NORMAL_95 * math.sqrt(variance) / len(known) if known else math.nan


def _mean(scores: Scores, seed: SeedResult, metric: str) -> float:
    values = [scores[task].value for task in seed.own if seed.tasks[task].metric == metric]
    return math.fsum(values) / len(values)


def _normalised(shifted: Mapping[str, Scores], experts: Mapping[str, Scores]) -> float:
    return math.fsum(normalised(one, experts[name]) for name, one in shifted.items()) / len(shifted)
