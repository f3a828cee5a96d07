"""`cuvee evaluate`: a model's scores on the tasks of suites."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.cli.options import AsJson, EvaluationTasks, Limit, Quick
from cuvee.cli.screen import heading, indented, print_json, screen, show, styled, table

if TYPE_CHECKING:
    from cuvee.evaluation.suites import Built, Score, Task

__all__ = ["evaluate"]


@dataclass(frozen=True)
class _Line:
    """A task with the scores of the model, of the suite's base, and of the task's own expert, if it has one."""

    suite: str
    task: Task
    model: Score
    base: Score
    expert: Score | None


def evaluate(
    model: str, /, *, tasks: EvaluationTasks, quick: Quick = False, limit: Limit = None, json: AsJson = False
) -> None:
    """Score a model on the tasks of suites of experts.

    The model has the shape of the suite's base: one of its experts, or a merge of them. Items are those of the test split,
    in the order in which every model sees them; the base and the task's own expert are scored beside it.

    Args:
        model: a folder, a file, a hub id.
    """
    lines = [line for suite, names in _asked(tasks).items() for line in _scored(model, suite, names, quick, limit)]
    if json:
        print_json({"model": model, "quick": quick, "limit": limit, "tasks": [_object(line) for line in lines]})
        return
    made = table("task", "metric", "model", "base", "expert", "items", numbers=range(2, 6))
    for line in lines:
        numbers = [f"{one.value:.3f}" if one else "–" for one in (line.model, line.base, line.expert)]
        name = f"{line.suite}/{line.task.name}"
        made.add_row(styled(name, "cyan"), *map(styled, (line.task.metric, *numbers, line.model.n)))
    show(screen(), heading(f"Scores of {model}"), indented(made))


def _asked(tasks: Sequence[str]) -> dict[str, list[str]]:
    """Return the tasks by suite; none: all of the suite's."""
    from cuvee.evaluation.suites import suite as find

    asked: dict[str, list[str]] = {}
    for one in tasks:
        suite, _, task = one.partition("/")
        find(suite)  # a wrong name is told first
        asked.setdefault(suite, []).extend([task] if task else [])
    return asked


def _scored(model: str, suite: str, names: Sequence[str], quick: bool, limit: int | None) -> list[_Line]:
    from cuvee.errors import ResourceError, nearest
    from cuvee.evaluation.bars import training_bars
    from cuvee.evaluation.suites import suite as find
    from cuvee.evaluation.suites.suite import silently

    console = screen(stderr=True)
    with training_bars(console) if console.is_terminal else nullcontext(silently) as progress:
        built = find(suite).build(quick=quick, progress=progress)
    for name in names:
        if name not in built.tasks:
            raise ResourceError(f"the suite {suite} has no task {name!r}", right=nearest(name, built.tasks))
    tensors, base = built.tensors(model), built.tensors(built.base)
    return [
        _Line(
            suite,
            built.tasks[name],
            built.score(tensors, name, limit=limit),
            built.score(base, name, limit=limit),
            _expert(built, name, limit),
        )
        for name in names or built.tasks
    ]


def _expert(built: Built, name: str, limit: int | None) -> Score | None:
    expert = built.tasks[name].expert
    return None if expert is None else built.score(built.tensors(built.experts[expert]), name, limit=limit)


def _object(line: _Line) -> dict[str, object]:
    return {
        "suite": line.suite,
        "task": line.task.name,
        "kind": line.task.kind,
        "metric": line.task.metric,
        "higher_is_better": line.task.higher_is_better,
        "items": line.model.n,
        "model": line.model.value,
        "base": line.base.value,
        "expert": line.expert.value if line.expert else None,
    }
