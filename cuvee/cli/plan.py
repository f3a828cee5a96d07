"""`cuvee plan`: what a merge will do, with this recipe's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter as Argument

from cuvee.cli import app
from cuvee.cli.amounts import in_bytes, in_seconds, plural
from cuvee.cli.docstrings import read_docstring
from cuvee.cli.merge import print_left_out, print_warnings
from cuvee.cli.options import AsJson, PresetName
from cuvee.cli.planning import PlanOptions, load_engine, make_plan, read_words
from cuvee.cli.screen import heading, indented, print_json, prose, rows, safe, screen, show, styled, table
from cuvee.cli.token_report import print_tokens
from cuvee.cli.yaml_values import in_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.engine.estimating import Estimate
    from cuvee.engine.plan import MergePlan
    from cuvee.engine.tasks import Task
    from cuvee.methods.registry import Parameter

__all__ = ["plan"]

_MOST_GROUPS = 6


def plan(
    recipe: str,
    /,
    *more: Annotated[str, Argument(show=False)],
    preset: PresetName = None,
    json: AsJson = False,
    options: PlanOptions = PlanOptions(),
) -> None:
    """Say what a merge will read, write, need and compute, before it does.

    Opens the models, reads their headers and a sample of a few MB, and names all that is wrong and can be known so far.

    Args:
        recipe: YAML file.
    """
    clock = app.clock
    asked = read_words("cuvee plan", (recipe, *more), preset, options)
    load_engine(options.device, clock, asked)
    planned = make_plan(asked, options, clock)
    with clock.phase("plan"):
        from cuvee.engine.estimating import estimate

        guess = estimate(planned)
    if json:
        print_json(_as_object(planned, guess) | {"seconds": {**clock.phases, "total": clock.total}})
    else:
        _print_plan(screen(), planned, guess)


def _print_plan(console: Console, planned: MergePlan, guess: Estimate) -> None:
    from rich.text import Text

    method = planned.prepared.method
    title = Text.assemble((method.name, "bold cyan"), "  ", read_docstring(method.function).summary)
    show(console, title, indented(styled(method.paper, "dim")), "")
    show(console, *(prose(line, "bold") for line in method.formula.split(";  ") if line), "")
    show(console, *map(prose, _remarks(planned)))
    _print_parameters(console, planned)
    _print_tensors(console, planned)
    show(console, "", heading("What it takes"), rows(_needs(planned, guess)))
    print_tokens(console, planned.tokens)
    print_left_out(console, planned.left_out, planned.dropped)
    print_warnings(console, planned.warnings)


def _remarks(planned: MergePlan) -> list[str]:
    """Return what the recipe means beside formula and parameters: whose task vectors, edits, dtypes."""
    from cuvee.recipes import explain

    method = planned.prepared.method
    lines = list(explain(planned.recipe, planned.prepared))[1:]
    for parameter in method.parameters:
        said = next((line for line in lines if line.startswith(f"{parameter}: ")), None)
        if said is not None:
            lines.remove(said)
    return [line for line in lines if not line.startswith("differs: ")]


def _print_parameters(console: Console, planned: MergePlan) -> None:
    if planned.prepared.is_cut:
        return  # the remarks have said them slice by slice
    (whole,) = planned.prepared.parts
    resolver = whole.resolver
    parameters = planned.prepared.method.parameters.values()
    given = [p for p in parameters if any(resolver.chains[p.name])]
    each = [p for p in given if p.per_model]
    if given:
        show(console, "", heading("Parameters"))
    if each:
        made = table("model", *(p.name for p in each), fold=(0,))
        for k in range(len(whole.experts)):
            values = (styled(_written(resolver.chains[p.name][k], p)) for p in each)
            made.add_row(styled(planned.models[k].label), *values)
        show(console, indented(made))
    common = [(p.name, _written(resolver.chains[p.name][0], p)) for p in given if not p.per_model]
    if common:
        show(console, *([""] if each else []), rows(common))
    if defaults := [f"{p.name} {in_yaml(p.default)}" for p in parameters if p not in given]:
        show(console, "", prose(f"by default: {', '.join(defaults)}", "dim"))


def _written(chain: Sequence[Any], parameter: Parameter) -> str:
    """Return settings as they were written, in the order in which they are asked."""
    words: list[str] = []
    for setting in chain:
        entries = setting if isinstance(setting, list) and setting and isinstance(setting[0], Mapping) else None
        if entries is None:
            return "; ".join([*words, f"else {in_yaml(setting)}" if words else in_yaml(setting)])
        for entry in entries:
            if entry["filter"] in (None, "*"):
                return "; ".join([*words, f"else {in_yaml(entry['value'])}"])
            words.append(f"{entry['filter']}: {in_yaml(entry['value'])}")
    return "; ".join([*words, "else must be given" if parameter.required else f"else {in_yaml(parameter.default)}"])


def _print_tensors(console: Console, planned: MergePlan) -> None:
    """Print some tensors with their values, when these differ between tensors."""
    groups = _groups(planned)
    names = _varying(groups)
    if not names:
        return
    show(console, "", heading("For example"))
    made = table("tensors", "such as", *names, numbers=(0,), fold=(1,))
    for tasks in _picked(groups):
        arguments = tasks[0].arguments or {}
        made.add_row(styled(len(tasks)), styled(tasks[0].name), *(styled(_resolved(arguments[name])) for name in names))
    show(console, indented(made))
    more = len(groups) - len(_picked(groups))
    if more:
        show(console, prose(f"and {more} more sets of values", "dim"))


def _groups(planned: MergePlan) -> list[list[Task]]:
    """Return the merged tensors by equal arguments, from the first layer to the last."""
    groups: dict[str, list[Task]] = {}
    for task in planned.tasks:
        if not task.is_copy:
            groups.setdefault(repr(task.arguments), []).append(task)
    return sorted(groups.values(), key=lambda tasks: -1 if tasks[0].layer is None else tasks[0].layer)


def _picked(groups: list[list[Task]]) -> list[list[Task]]:
    """Return the first groups and the last."""
    return groups if len(groups) <= _MOST_GROUPS else [*groups[: _MOST_GROUPS - 1], groups[-1]]


def _varying(groups: list[list[Task]]) -> list[str]:
    arguments = [tasks[0].arguments or {} for tasks in groups]
    return [name for name in (arguments[0] if arguments else {}) if len({repr(a[name]) for a in arguments}) > 1]


def _resolved(value: Any) -> str:
    return ", ".join(map(in_yaml, value)) if isinstance(value, list | tuple) else in_yaml(value)


def _needs(planned: MergePlan, guess: Estimate) -> list[tuple[str, str]]:
    tally, budget = planned.tally, planned.budget
    merged = sum(not task.is_copy for task in planned.tasks)
    files = ", ".join(safe(shard.file) for shard in planned.shards[:1]) + (", …" if len(planned.shards) > 1 else "")
    reads = f"{in_bytes(planned.bytes_read)} from {plural(len(planned.models), 'model')}"
    if tally.rounds > 1:
        reads += f", {tally.rounds} times"
    return [
        ("tensors", f"{merged} merged{_as_matrices(planned)}, {len(planned.tasks) - merged} copied"),
        ("reads", reads),
        ("stages", "; ".join(f"{safe(name)}, {how}" for name, how in _stages(planned).items())),
        ("statistics", ", ".join(safe(model.label) for _, model in sorted(planned.statistics.items()))),
        ("writes", f"{in_bytes(planned.bytes_written)} in {plural(len(planned.shards), 'file')}: {files}"),
        ("passes", f"{plural(tally.visits, 'visit')} of a tensor, {plural(tally.rounds, 'round')} over the model"),
        ("memory", f"{in_bytes(budget.bytes)} at most"),
        ("threads", f"{budget.threads}, in blocks of {plural(budget.block_elements, 'element')}"),
        (
            "time",
            f"about {in_seconds(max(0.1, guess.seconds))} after start-up: an estimate, from a sample of this machine",
        ),
        ("files", ", ".join(safe(sidecar.name) for sidecar in planned.sidecars)),
    ]


def _stages(planned: MergePlan) -> dict[str, str]:
    """Return the stages of a recipe, and how each is computed."""
    from cuvee.engine.stages import stages_of

    how = {True: "computed as it is read", False: "made before the merge, beside the output"}
    return {stage.name: how[stage.is_streamed] for stage in stages_of(planned.models.values())}


def _as_matrices(planned: MergePlan) -> str:
    from cuvee.methods.registry import MATRIX

    if planned.prepared.method.unit is not MATRIX:
        return ""
    tensors, matrices = _count_matrices(planned)
    return f" ({tensors} as {matrices} matrices)" if matrices > tensors else f" ({tensors} as matrices)"


def _count_matrices(planned: MergePlan) -> tuple[int, int]:
    """Return how many tensors are matrices to the method, or hold those of several experts, and how many matrices."""
    found = [task for task in planned.tasks if planned.formula.on_matrix(task) is not None]
    return len(found), sum(task.experts or 1 for task in found)


def _as_object(planned: MergePlan, guess: Estimate) -> dict[str, Any]:
    from cuvee.recipes import explain

    tasks = planned.tasks
    return {
        "method": planned.prepared.method.name,
        "formula": planned.prepared.method.formula,
        "meaning": explain(planned.recipe, planned.prepared),
        "models": {str(number): label for number, label in sorted(planned.labels.items()) if number >= 0},
        "base": planned.labels.get(-1),
        "statistics": {str(number): model.label for number, model in sorted(planned.statistics.items())},
        "plan": planned.plan_id,
        "tensors": {
            "merged": sum(not t.is_copy for t in tasks),
            "copied": sum(t.is_copy for t in tasks),
            "matrices": _count_matrices(planned)[1],
        },
        "arguments": [
            {"tensors": len(group), "such_as": group[0].name, "values": group[0].arguments}
            for group in _groups(planned)
        ],
        "stages": _stages(planned),
        "bytes_read": planned.bytes_read,
        "bytes_written": planned.bytes_written,
        "visits": planned.tally.visits,
        "rounds": planned.tally.rounds,
        "memory_bytes": planned.budget.bytes,
        "threads": planned.budget.threads,
        "block_elements": planned.budget.block_elements,
        "shards": [{"file": s.file, "bytes": s.layout.size, "tensors": len(s.tensors)} for s in planned.shards],
        "sidecars": [sidecar.name for sidecar in planned.sidecars],
        "estimate": {**vars(guess), "seconds": guess.seconds},
        "left_out": planned.left_out,
        "dropped": planned.dropped,
        "tokens": planned.tokens,
        "warnings": planned.warnings,
    }
