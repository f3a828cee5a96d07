"""What `cuvee evaluate` tells: a line for each task and metric, of suites and of lm-evaluation-harness alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuvee.cli.amounts import plural
from cuvee.cli.progress import Bar
from cuvee.cli.screen import screen

if TYPE_CHECKING:
    from cuvee.evaluation.harness import HarnessScore
    from cuvee.evaluation.kept_scores import KeptScores
    from cuvee.evaluation.live_model import LiveModel
    from cuvee.evaluation.measures import Valued
    from cuvee.evaluation.suites import Score

__all__ = ["Asked", "Line", "harness_lines", "suite_lines"]


@dataclass(frozen=True)
class Line:
    """A task with the scores of the model, of the base, and of the task's own expert, where there are any.

    Attributes:
        suite: None for a task of lm-evaluation-harness.
        task: its name.
        metric: in words.
        higher_is_better: whether more is better.
        n: number of items.
        model, base, expert: the scores.
        standard_error: of the model's, over the items; NaN where it is not known.
        more: what else `--json` tells.
    """

    suite: str | None
    task: str
    metric: str
    higher_is_better: bool
    n: int
    model: Valued
    base: Valued | None = None
    expert: Valued | None = None
    standard_error: float = math.nan
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.suite}/{self.task}" if self.suite else self.task

    @property
    def normalised(self) -> float | None:
        """Model / expert, the other way round where less is better; None without an expert, or for one that scores 0."""
        from cuvee.evaluation.measures import normalised

        if self.expert is None:
            return None
        share = normalised({self.task: self.model}, {self.task: self.expert})
        return None if math.isnan(share) else share

    def as_object(self) -> dict[str, object]:
        """Return it for JSON."""
        said = {
            "suite": self.suite,
            "task": self.task,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
        }
        scores = {"model": self.model, "base": self.base, "expert": self.expert}
        values = {name: score.value if score else None for name, score in scores.items()}
        found = {"items": self.n, **values, "standard_error": self.standard_error, "normalised": self.normalised}
        return {**said, **found, **self.more}


@dataclass(frozen=True)
class Asked:
    """What is asked of lm-evaluation-harness.

    Attributes:
        tasks: names.
        limit: items of each.
        num_fewshot: solved examples before an item; None: the task's own number.
        include_path: a folder of further tasks.
        chat_template: ask as a chat.
        run_unsafe_code: let tasks run what the model writes.
    """

    tasks: Sequence[str]
    limit: int | None = None
    num_fewshot: int | None = None
    include_path: str | None = None
    chat_template: bool = False
    run_unsafe_code: bool = False


def suite_lines(
    model: str, suite: str, names: Sequence[str], *, quick: bool, limit: int | None, device: str
) -> list[Line]:
    """Score a model, the suite's base and the tasks' experts on tasks of a suite; no names: on all of them."""
    from cuvee.evaluation.bars import training_shown
    from cuvee.evaluation.home import cuvee_home
    from cuvee.evaluation.kept_scores import KeptScores, digest_of, kept_score
    from cuvee.evaluation.measures import standard_error
    from cuvee.evaluation.suites import suite as find

    with training_shown(screen(stderr=True)) as progress:
        built = find(suite).build(quick=quick, progress=progress, device=device)
    kept = KeptScores(cuvee_home() / "scores.sqlite")

    def scores(reference: str, names: Sequence[str]) -> dict[str, Score]:
        tensors = built.tensors(reference)
        digest = digest_of(tensors)
        return {name: kept_score(kept, built, digest, lambda: tensors, name, limit=limit) for name in names}

    tasks = [built.tasks[name] for name in names or built.tasks]
    every = [task.name for task in tasks]
    try:
        own, base = scores(model, every), scores(built.base, every)
        experts: dict[str, Score] = {}
        for expert, reference in built.experts.items():
            experts |= scores(reference, [task.name for task in tasks if task.expert == expert])
    finally:
        kept.close()
    return [
        Line(
            suite,
            task.name,
            task.metric,
            task.higher_is_better,
            own[task.name].n,
            own[task.name],
            base[task.name],
            experts.get(task.name),
            standard_error(own[task.name].items),
            {"kind": task.kind},
        )
        for task in tasks
    ]


def harness_lines(
    models: Sequence[str | None], asked: Asked, *, batch_size: int, device: str, offline: bool, token: str | None
) -> tuple[list[Line], list[str]]:
    """Score a model, a base and experts on tasks of lm-evaluation-harness.

    Args:
        models: the model, the base or None, experts.
        asked: on what.
        batch_size: sequences at once.
        device: "cpu" or "cuda".
        offline: never ask the hub.
        token: for the hub.

    Returns:
        The lines, and what the user should know.
    """
    from cuvee.evaluation.harness_tasks import find_tasks
    from cuvee.evaluation.home import cuvee_home
    from cuvee.evaluation.in_memory import in_memory
    from cuvee.evaluation.kept_scores import KeptScores
    from cuvee.evaluation.live_model import live_model

    with Bar(spoken=lambda count: plural(round(count), "answer")) as bar:
        bar.show(0, 1, "find tasks")
        tasks = find_tasks(asked.tasks, include_path=asked.include_path, num_fewshot=asked.num_fewshot, offline=offline)
        notes = [
            f"{one.name} forbids examples, and is asked without"
            for one in tasks.tasks.values()
            if asked.num_fewshot and not one.num_fewshot
        ]
        kept = KeptScores(cuvee_home() / "scores.sqlite")
        live: LiveModel | None = None
        found: list[list[HarnessScore] | None] = []
        try:
            for name in models:
                if name is None:
                    found.append(None)
                    continue
                bar.show(0, 1, f"read {name}")
                read = in_memory(name, device=device, offline=offline, token=token)
                if live is None:
                    live = live_model(read, device=device, batch_size=batch_size)
                    notes += live.notes
                else:
                    live.fill(read.tensors, read.label)
                found.append(_scores(live, tasks, asked, kept, bar))
        finally:
            kept.close()
    own, base, *experts = found
    assert own is not None
    cut = dict.fromkeys(one.task for one in own if one.is_cut)
    notes += [f"{task}: items longer than the model's context have lost their beginning" for task in cut]
    return _lines(own, base, [one for one in experts if one is not None]), list(dict.fromkeys(notes))


def _scores(live: LiveModel, tasks: Any, asked: Asked, kept: KeptScores, bar: Bar) -> list[HarnessScore]:
    from cuvee.evaluation.harness import score

    return score(
        live,
        tasks,
        limit=asked.limit,
        chat_template=asked.chat_template,
        run_unsafe_code=asked.run_unsafe_code,
        kept=kept,
        progress=lambda task, done, total: bar.show(done, total, f"{live.label} on {task}"),
    )


def _lines(
    own: Sequence[HarnessScore], base: Sequence[HarnessScore] | None, experts: Sequence[Sequence[HarnessScore]]
) -> list[Line]:
    lines = []
    for place, one in enumerate(own):
        sign = 1 if one.higher_is_better else -1
        best = max((found[place] for found in experts), key=lambda score: sign * score.value, default=None)
        more = {"key": one.key, "num_fewshot": one.num_fewshot}
        beside = base[place] if base else None, best, one.standard_error
        lines.append(Line(None, one.task, one.metric, one.higher_is_better, one.n, one, *beside, more))
    return lines
