"""`cuvee methods`: the list of merge methods, and the page of one."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cuvee.cli.docstrings import read_docstring
from cuvee.cli.options import AsJson
from cuvee.cli.screen import heading, indented, print_json, prose, rows, screen, show, styled, table
from cuvee.cli.yaml_values import in_yaml
from cuvee.errors import MethodError, nearest
from cuvee.methods.needs import COLLECTED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from cuvee.methods.registry import Edit, Method, Parameter

__all__ = ["edit_object", "example_recipe", "method_object", "methods"]

_WIDE = 110
_ENGINE_PARAMETERS = {
    "not_matrix": "matrices that are treated as vectors are; embeddings: embeddings and heads, whatever they are called.",
    "conv": "kernels of convolutions: as all others, or flattened to (out, in · height · width).",
    "others": "what becomes of the task vectors of vectors, norms and all that is no matrix.",
    "scaling": "coefficient of the merged task vector, applied last (`lambda` in mergekit's YAML).",
    "embed_mismatch": "embeddings and heads of different sizes: an error, or cropped to the rows that all have.",
}
_SHORT_BASE = {
    "REQUIRED": "required",
    "OPTIONAL": "optional",
    "MEMBER": "a model",
    "ENDPOINT": "a model",
    "NONE": "–",
}
_SHOWN_IN_EXAMPLES = ("weight", "density", "select_topk")


def methods(name: str | None = None, /, *, json: AsJson = False) -> None:
    """List the merge methods, or show the page of one.

    Args:
        name: a merge method, or an edit that goes before or after any of them.
    """
    from cuvee.methods.registry import edits
    from cuvee.methods.registry import methods as registered

    known, steps = registered(), edits()
    if name is None:
        if json:
            print_json(
                {
                    "methods": [method_object(m) for m in known.values()],
                    "edits": [edit_object(e) for e in steps.values()],
                }
            )
        else:
            _print_list(known, steps)
    elif name in known:
        print_json(method_object(known[name])) if json else _print_method(known[name])
    elif name in steps:
        print_json(edit_object(steps[name])) if json else _print_edit(steps[name])
    else:
        right = nearest(name, [*known, *steps])
        raise MethodError(f"unknown merge method {name!r}", where=f"cuvee methods {name}", right=right)


def _print_list(known: Mapping[str, Method], steps: Mapping[str, Edit]) -> None:
    console = screen()
    is_wide = console.width >= _WIDE
    more = ("cost", "paper") if is_wide else ("arXiv",)
    made = table("method", "works on", "base", "models", *more)
    for method in known.values():
        known_by = (_cost(method), _source(method, with_url=False)) if is_wide else (_short_source(method),)
        made.add_row(styled(method.name, "bold cyan"), *map(styled, (*_facts(method), *known_by)))
    edit_table = table("edit", "goes", "what it does")
    for step in steps.values():
        summary = read_docstring(step.function).summary
        edit_table.add_row(styled(step.name, "bold cyan"), styled(f"{step.role.value}:"), styled(summary))
    show(console, heading(f"{len(known)} merge methods"), "", indented(made), "")
    show(console, heading(f"{len(steps)} edits, before or after any of them"), "", indented(edit_table), "")
    papers = "" if is_wide else "; a wider window shows costs and papers"
    show(console, styled(f"cuvee methods NAME: formula, parameters, a recipe{papers}", "dim"))


def _facts(method: Method) -> tuple[str, str, str]:
    low, high = method.models
    models = f"{low}" if high == low else f"{low}+" if high is None else f"{low}–{high}"
    works_on = {"WEIGHTS": "weights", "DELTAS": "deltas", "ADAPTERS": "adapters"}[method.on.name]
    return works_on, _SHORT_BASE[method.base.name], models


def _cost(method: Method) -> str:
    return method.cost.partition(";")[0].removesuffix(" of each tensor").removesuffix(" over the model")


def _source(method: Method | Edit, *, with_url: bool = True) -> str:
    paper = method.paper if with_url or method.paper.arxiv else dataclasses.replace(method.paper, url="")
    return f"{paper}{'' if method.status == 'published' else f', {method.status}'}"


def _short_source(method: Method) -> str:
    return method.paper.arxiv or (method.status if method.status != "published" else str(method.paper.year))


def _print_method(method: Method) -> None:
    console = screen()
    page = read_docstring(method.function)
    low, high = method.models
    several = f"{low} or more" if high is None else f"exactly {low}" if high == low else f"{low} to {high}"
    facts = (
        ("works on", method.on.value + (" (model − base)" if method.on.name == "DELTAS" else "")),
        ("base model", method.base.value),
        ("models", several),
        ("statistics", statistics_of(method)),
        ("cost", method.cost),
        ("returns", page.returns),
    )
    show(console, _title(method.name, page.summary), indented(styled(_source(method), "dim")), "")
    if method.formula:
        show(console, *(prose(line, "bold") for line in method.formula.split(";  ")), "")
    show(console, rows(facts), "")
    if page.body:
        show(console, prose(page.body), "")
    _print_parameters(console, method.parameters, {**_ENGINE_PARAMETERS, **page.arguments})
    if method.differs:
        show(console, heading("Beside the paper and mergekit"), prose(method.differs), "")
    show(console, heading("A recipe to start from"), prose(example_recipe(method).rstrip()))


def _print_edit(step: Edit) -> None:
    console = screen()
    page = read_docstring(step.function)
    what = {"FILTER": "each task vector before the merge", "REFINER": "the merged task vector"}[step.role.name]
    goes = f"under {step.role.value}: of any merge method on task vectors; it changes {what}"
    wraps = f"merge_method: {step.name}, with the method that it wraps as inner, means the same"
    show(console, _title(step.name, page.summary), indented(styled(_source(step), "dim")), "")
    show(console, rows((("goes", goes), ("or", wraps), ("returns", page.returns))), "")
    if page.body:
        show(console, prose(page.body), "")
    _print_parameters(console, step.parameters, {**_ENGINE_PARAMETERS, **page.arguments})
    show(console, heading("A recipe to start from"), prose(_example_of_edit(step).rstrip()))


def statistics_of(method: Method) -> str:
    """Return which statistics of each model a method needs, or may be given, and what collects them."""
    kinds = [("needs", kind) for kind in method.needs] + [("takes", kind) for kind in method.uses]
    said = [f"{verb} {kind}" + (f" (cuvee collect {kind})" if kind in COLLECTED else "") for verb, kind in kinds]
    return ", ".join(said)


def _title(name: str, summary: str) -> Text:
    from rich.text import Text

    return Text.assemble((name, "bold cyan"), "  ", summary)


def _print_parameters(console: Console, parameters: Mapping[str, Parameter], said: Mapping[str, str]) -> None:
    show(console, heading("Parameters"))
    if not parameters:
        show(console, prose("none"))
    elif console.width >= _WIDE:
        made = table("name", "accepts", "default", "meaning")
        for one in parameters.values():
            cells = (_accepts(one), _default(one), said.get(one.name, ""))
            made.add_row(styled(one.name, "cyan"), *map(styled, cells))
        show(console, indented(made))
    else:
        show(console, _parameter_list(parameters, said))
    show(console, "")


def _parameter_list(parameters: Mapping[str, Parameter], said: Mapping[str, str]) -> Any:
    """Return the parameters as a list of names and paragraphs, which suits a narrow window."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    for one in parameters.values():
        meaning = said.get(one.name, "")
        limits = f"{_accepts(one)}; {'must be given' if one.required else f'default {_default(one)}'}"
        grid.add_row(one.name, Text.assemble(meaning, "\n" if meaning else "", (limits, "dim")))
    return indented(grid)


def _accepts(parameter: Parameter) -> str:
    return parameter.accepts.replace("'", "") + (", one for each model" if parameter.per_model else "")


def _default(parameter: Parameter) -> str:
    return "must be given" if parameter.required else in_yaml(parameter.default)


def example_recipe(method: Method) -> str:
    """Return a recipe for a method, in YAML, with names to fill in."""
    low, high = method.models
    names = ["math", "code", "chat"][: min(high or max(low, 2), 3)]
    has_base = method.base.name in ("REQUIRED", "ENDPOINT")
    if method.base.name == "ENDPOINT":
        names = ["base", *names][:low]
    shown = {p.name: _example(p) for p in method.parameters.values() if p.required or p.name in _SHOWN_IN_EXAMPLES}
    own = {name: value for name, value in shown.items() if method.parameters[name].per_model}
    lines = [f"merge_method: {method.name}", *(["base_model: base"] if has_base else []), "models:"]
    for name in names:
        lines += [f"  - model: {name}", *([f"    parameters: {_inline(own)}"] if own else [])]
        lines += [f"    statistics: {name}.safetensors"] if method.needs else []
    if common := {name: value for name, value in shown.items() if name not in own}:
        lines.append(f"parameters: {_inline(common)}")
    return "\n".join(lines) + "\n"


def _example(parameter: Parameter) -> str:
    if parameter.bound.low == 0 and parameter.bound.high == float("inf"):
        return "0.0001"  # a step in the size of a weight: nearswap's t
    return "0.5"


def _inline(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"


def _example_of_edit(step: Edit) -> str:
    settings = _inline({p.name: _example(p) for p in step.parameters.values() if p.required})
    return textwrap.dedent(
        f"""\
        merge_method: task_arithmetic
        base_model: base
        models:
          - model: math
            parameters: {{weight: 0.5}}
          - model: code
            parameters: {{weight: 0.5}}
        {step.role.value}:
          - {step.name}: {settings}
        """
    )


def method_object(method: Method) -> dict[str, Any]:
    """Return all that is known of a method, for --json and the pages in docs/."""
    page = read_docstring(method.function)
    return {
        "name": method.name,
        "summary": page.summary,
        "about": page.body,
        "paper": vars(method.paper),
        "status": method.status,
        "works_on": method.on.value,
        "base": method.base.value,
        "models": list(method.models),
        "statistics": statistics_of(method),
        "cost": method.cost,
        "unit": method.unit.value,
        "formula": method.formula,
        "differs": method.differs,
        "returns": page.returns,
        "parameters": _parameters(method.parameters, {**_ENGINE_PARAMETERS, **page.arguments}),
        "example": example_recipe(method),
    }


def edit_object(step: Edit) -> dict[str, Any]:
    """Return all that is known of an edit."""
    page = read_docstring(step.function)
    return {
        "name": step.name,
        "summary": page.summary,
        "about": page.body,
        "paper": vars(step.paper),
        "status": step.status,
        "goes": step.role.value,
        "returns": page.returns,
        "parameters": _parameters(step.parameters, {**_ENGINE_PARAMETERS, **page.arguments}),
        "example": _example_of_edit(step),
    }


def _parameters(parameters: Mapping[str, Parameter], said: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "accepts": one.accepts,
            "per_model": one.per_model,
            "required": one.required,
            "default": None if one.required else one.default,
            "meaning": said.get(one.name, ""),
        }
        for one in parameters.values()
    ]
