"""All that is known of a merge method or an edit: its page on the screen and in docs/, and its JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cuvee.cli.docstrings import read_docstring
from cuvee.methods.needs import COLLECTED

if TYPE_CHECKING:
    from cuvee.methods.registry import Edit, Method, Parameter, Workspace

__all__ = ["edit_object", "example_recipe", "facts_of", "formula_lines", "meanings", "method_object", "span"]

_ENGINE_PARAMETERS = {
    "not_matrix": "matrices that are treated as vectors are; embeddings: embeddings, tables of positions and heads, whatever "
    "they are called.",
    "conv": "kernels of convolutions: as all others, or flattened to (out, in · height · width).",
    "others": "what becomes of the task vectors of vectors, norms and all that is no matrix.",
    "scaling": "coefficient of the merged task vector, applied last (`lambda` in mergekit's YAML).",
    "embed_mismatch": "embeddings and heads of different sizes: an error, or cropped to the rows that all have.",
}
_SIDE = 4096
_SHOWN_IN_EXAMPLES = ("weight", "density", "select_topk")


def method_object(method: Method) -> dict[str, Any]:
    """Return all that is known of a method, for --json and pages."""
    return _object(method) | {
        "works_on": method.on.value,
        "base": method.base.value,
        "models": list(method.models),
        "statistics": _statistics(method.needs, method.uses),
        "example": example_recipe(method),
    }


def edit_object(step: Edit) -> dict[str, Any]:
    """Return all that is known of an edit."""
    of_models = "the task vectors of all models together" if step.joint else "each task vector by itself"
    return _object(step) | {
        "goes": step.role.value,
        "changes": of_models if step.role.name == "FILTER" else "the merged task vector",
        "alone": dict(step.alone),
        "statistics": _statistics((), step.uses),
        "example": _example_of_edit(step),
    }


def _object(one: Method | Edit) -> dict[str, Any]:
    page = read_docstring(one.function)
    said = meanings(one)
    return {
        "name": one.name,
        "summary": page.summary,
        "about": page.body,
        "paper": vars(one.paper),
        "status": one.status,
        "cost": one.cost,
        "unit": one.unit.value,
        "memory": _memory(one.workspace),
        "formula": one.formula,
        "differs": one.differs,
        "returns": page.returns,
        "parameters": [
            {
                "name": parameter.name,
                "accepts": parameter.accepts,
                "per_model": parameter.per_model,
                "required": parameter.required,
                "default": None if parameter.required else parameter.default,
                "meaning": said.get(parameter.name, ""),
            }
            for parameter in one.parameters.values()
        ],
    }


def meanings(one: Method | Edit) -> dict[str, str]:
    """Return what each parameter means, by name: in the words of the docstring, or of the engine."""
    return {**_ENGINE_PARAMETERS, **read_docstring(one.function).arguments}


def formula_lines(one: Mapping[str, Any]) -> list[str]:
    """Return the lines of the formula of a method's or an edit's object; none where there is no formula."""
    return [line.strip() for line in one["formula"].split(";  ") if line]


def facts_of(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return label and text of what a page says in short of a method's or an edit's object."""
    if "goes" in one:
        place = f"`{one['goes']}:` of any method on task vectors; or as the merge method, with what it wraps as `inner`"
        alone = ", ".join(f"{name}: {str(value).lower()}" for name, value in one["alone"].items())
        own = [
            ("goes", place + (f" (without one: task_arithmetic with {alone})" if alone else "")),
            ("changes", one["changes"]),
        ]
    else:
        own = [
            ("works on", one["works_on"] + (" (model − base)" if one["works_on"] == "task vectors" else "")),
            ("base model", one["base"]),
            ("models", span(one["models"])),
        ]
    facts = [
        *own,
        ("statistics", one["statistics"]),
        ("cost", one["cost"]),
        ("sees at once", f"a {one['unit']}" if one["unit"] != "element" else "any block of elements"),
        ("memory", one["memory"]),
        ("returns", one["returns"]),
    ]
    return [(label, text) for label, text in facts if text]


def _memory(workspace: Workspace | None) -> str:
    """Return in words what a method on matrices holds at once."""
    if workspace is None:
        return ""
    two, three = (workspace(_SIDE, _SIDE, models, {}) / (4 * _SIDE**2) for models in (2, 3))
    by_model = round(three - two)
    share = f"{by_model} K + " if by_model > 1 else "K + " if by_model else ""
    return f"{share}{round(two - 2 * by_model)} times a square matrix in float32"


def span(models: tuple[int, int | None] | list[int | None]) -> str:
    """Return how many models a method takes, in words."""
    low, high = models
    return f"{low} or more" if high is None else f"{low}" if low == high else f"{low} to {high}"


def _statistics(needs: tuple[str, ...], uses: tuple[str, ...]) -> str:
    """Return which statistics of each model are needed, or may be given, and what collects them."""
    kinds = [("needs", kind) for kind in needs] + [("takes", kind) for kind in uses]
    said = [f"{verb} {kind}" + (f" (cuvee collect {kind})" if kind in COLLECTED else "") for verb, kind in kinds]
    return ", ".join(said)


def example_recipe(method: Method) -> str:
    """Return a recipe for a method, in YAML, with names to fill in."""
    low, high = method.models
    names = ["math", "code"][: high or 2]
    if low > 2:  # as many as outvote a bad one, whatever the method
        names = [f"replica{number}" for number in range(1, 6)]
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
