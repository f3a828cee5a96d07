"""`cuvee evaluate`: a model's scores on the tasks of suites, and of lm-evaluation-harness."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cuvee.cli.evaluate_lines import Asked, Line, harness_lines, suite_lines
from cuvee.cli.options import (
    AsJson,
    ChatTemplate,
    Device,
    EvaluationBatch,
    EvaluationTasks,
    FewShot,
    IncludePath,
    Limit,
    Offline,
    OtherBase,
    OtherExperts,
    Quick,
    Token,
    UnsafeCode,
)
from cuvee.cli.screen import heading, indented, print_json, prose, screen, show, styled, table
from cuvee.errors import ResourceError
from cuvee.tensors.devices import need_device

__all__ = ["evaluate"]


def evaluate(
    model: str,
    /,
    *,
    tasks: EvaluationTasks,
    quick: Quick = False,
    limit: Limit = None,
    num_fewshot: FewShot = None,
    include_path: IncludePath = None,
    base: OtherBase = None,
    expert: OtherExperts = (),
    apply_chat_template: ChatTemplate = False,
    confirm_run_unsafe_code: UnsafeCode = False,
    batch_size: EvaluationBatch = 4,
    device: Device = "cpu",
    offline: Offline = False,
    token: Token = None,
    json: AsJson = False,
) -> None:
    """Score a model on the tasks of suites of experts, or of lm-evaluation-harness.

    For a suite's tasks the model has the shape of the suite's base: one of its experts, or a merge of them; the base and the
    task's own expert are scored beside it. Tasks of lm-evaluation-harness score any language model that transformers knows.
    A recipe is merged in memory. All models see the same items in the same order; what was scored before is not scored again.

    Args:
        model: a folder, a file, a hub id, or a recipe.
    """
    from cuvee.evaluation.in_memory import shapes_in
    from cuvee.evaluation.suites import suite as find

    suites, names = _asked(tasks, quick=quick)
    if suites and not names and (base or expert):
        raise ResourceError("--base and --expert are for tasks of lm-evaluation-harness; a suite has its own")
    need_device(device)
    # before hours are spent on a suite, or on the first
    shapes = shapes_in(model, offline=offline, token=token)
    for suite in suites:
        find(suite).need_fit(shapes, quick=quick, where=model)
    for reference in filter(None, (base, *expert)):
        shapes_in(reference, offline=offline, token=token)
    asked_of_harness: list[Line] = []
    notes: list[str] = []
    if names:
        asked = Asked(names, limit, num_fewshot, include_path, apply_chat_template, confirm_run_unsafe_code)
        # before the suites, which may have to be made first: the harness knows its tasks only now
        asked_of_harness, notes = harness_lines(
            [model, base, *expert], asked, batch_size=batch_size, device=device, offline=offline, token=token
        )
    lines = [
        line
        for suite, own in suites.items()
        for line in suite_lines(model, suite, own, quick=quick, limit=limit, device=device)
    ]
    lines += asked_of_harness
    if json:
        said = {"model": model, "base": base, "experts": list(expert), "quick": quick, "limit": limit}
        print_json({**said, "tasks": [line.as_object() for line in lines], "notes": notes})
        return
    _print(model, lines, notes)


def _asked(tasks: Sequence[str], *, quick: bool) -> tuple[dict[str, list[str]], list[str]]:
    """Return the tasks by suite (none: all of the suite's), and those of the harness; wrong names are told here, first."""
    from cuvee.evaluation.suites import SUITES
    from cuvee.evaluation.suites import suite as find

    suites: dict[str, list[str]] = {}
    whole: set[str] = set()
    names: list[str] = []
    for one in (name.strip() for joined in tasks for name in joined.split(",")):
        suite, slash, task = one.partition("/")
        if slash or suite in SUITES:
            find(suite).need_tasks([task] if task else [], quick=quick)
            own = suites.setdefault(suite, [])
            if not task:
                whole.add(suite)
            elif task not in own:
                own.append(task)
        elif one and one not in names:
            names.append(one)
    if not suites and not names:
        raise ResourceError("--tasks names no task", right="--tasks lm/python, or --tasks arc_easy,hellaswag")
    return {suite: [] if suite in whole else own for suite, own in suites.items()}, names


def _print(model: str, lines: Sequence[Line], notes: Sequence[str]) -> None:
    made = table("task", "metric", "model", "base", "expert", "normalised", "items", numbers=range(2, 7), fold=(0,))
    for line in lines:
        numbers = [f"{one.value:.3f}" if one else "–" for one in (line.model, line.base, line.expert)]
        if math.isfinite(line.standard_error):
            numbers[0] += f" ± {line.standard_error:.3f}"
        share = "–" if line.normalised is None else f"{100 * line.normalised:.0f} %"
        made.add_row(styled(line.name, "cyan"), *map(styled, (line.metric, *numbers, share, line.n)))
    show(screen(), heading(f"Scores of {model}"), indented(made))
    if any(math.isfinite(line.standard_error) for line in lines):
        show(screen(), prose("±: standard error of the mean over the items", "dim"))
    if notes:
        show(screen(), "", *(prose(note, "yellow") for note in notes))
