"""`cuvee methods`: the list of merge methods, and the page of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.cli.docstrings import read_docstring
from cuvee.cli.method_pages import edit_object, facts_of, formula_lines, method_object
from cuvee.cli.options import AsJson
from cuvee.cli.screen import heading, indented, print_json, prose, rows, screen, show, styled, table
from cuvee.cli.yaml_values import in_yaml

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from cuvee.methods.registry import Edit, Method, Paper

__all__ = ["methods"]

_WIDE = 110
_SHORT_BASE = {
    "REQUIRED": "required",
    "OPTIONAL": "optional",
    "MEMBER": "a model",
    "ENDPOINT": "a model",
    "NONE": "–",
}


def methods(name: str | None = None, /, *, json: AsJson = False) -> None:
    """List the merge methods, or show the page of one.

    Args:
        name: a merge method, or an edit that goes before or after any of them.
    """
    from cuvee.methods.registry import edits, unknown_method
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
    elif name in known or name in steps:
        found = method_object(known[name]) if name in known else edit_object(steps[name])
        print_json(found) if json else _print_page(found)
    else:
        raise unknown_method(name, where=f"cuvee methods {name}")


def _print_list(known: Mapping[str, Method], steps: Mapping[str, Edit]) -> None:
    console = screen()
    is_wide = console.width >= _WIDE
    made = table("method", *(("works on", "base", "models") if is_wide else ()), "what it does", "paper")
    made.columns[0].min_width = max(map(len, known))
    for method in known.values():
        facts = (*(_facts(method) if is_wide else ()), _summary(method), _short_source(method.paper))
        made.add_row(styled(method.name, "bold cyan"), *map(styled, facts))
    edit_table = table("edit", "goes", "what it does", "paper")
    for step in steps.values():
        facts = (f"{step.role.value}:", _summary(step), _short_source(step.paper))
        edit_table.add_row(styled(step.name, "bold cyan"), *map(styled, facts))
    show(console, heading(f"{len(known)} merge methods"), "", indented(made), "")
    show(console, heading(f"{len(steps)} edits, before or after any of them"), "", indented(edit_table), "")
    more = "" if is_wide else "; a wider window shows what each works on"
    show(console, styled(f"cuvee methods NAME: formula, parameters, cost, paper, a recipe{more}", "dim"))


def _facts(method: Method) -> tuple[str, str, str]:
    low, high = method.models
    models = f"{low}" if high == low else f"{low}+" if high is None else f"{low}–{high}"
    works_on = {"WEIGHTS": "weights", "DELTAS": "deltas", "ADAPTERS": "adapters"}[method.on.name]
    return works_on, _SHORT_BASE[method.base.name], models


def _summary(one: Method | Edit) -> str:
    return read_docstring(one.function).summary + (f" ({mark})" if (mark := _mark(one.status)) else "")


def _mark(status: str) -> str:
    return "" if status == "published" else status


def _short_source(paper: Paper) -> str:
    return paper.arxiv or str(paper.year or "")


def _marked(source: str, status: str) -> str:
    return ", ".join(filter(None, (source, _mark(status))))


def _print_page(one: Mapping[str, Any]) -> None:
    """Print what `method_object` or `edit_object` has found."""
    from cuvee.methods.registry import Paper

    console = screen()
    source = _marked(str(Paper(**one["paper"])), one["status"])
    show(console, _title(one["name"], one["summary"]), indented(styled(source, "dim")), "")
    if lines := formula_lines(one):
        show(console, *(prose(line, "bold") for line in lines), "")
    show(console, rows((label, text.replace("`", "")) for label, text in facts_of(one)), "")
    if one["about"]:
        show(console, prose(one["about"]), "")
    _print_parameters(console, one["parameters"])
    if one["differs"]:
        show(console, heading("Beside the paper and mergekit"), prose(one["differs"]), "")
    show(console, heading("A recipe to start from"), prose(one["example"].rstrip()))


def _title(name: str, summary: str) -> Text:
    from rich.text import Text

    return Text.assemble((name, "bold cyan"), "  ", summary)


def _print_parameters(console: Console, parameters: Sequence[Mapping[str, Any]]) -> None:
    show(console, heading("Parameters"))
    if not parameters:
        show(console, prose("none"))
    elif console.width >= _WIDE:
        made = table("name", "accepts", "default", "meaning")
        for one in parameters:
            made.add_row(styled(one["name"], "cyan"), *map(styled, (_accepts(one), _default(one), one["meaning"])))
        show(console, indented(made))
    else:
        show(console, _parameter_list(parameters))
    show(console, "")


def _parameter_list(parameters: Sequence[Mapping[str, Any]]) -> Any:
    """Return the parameters as a list of names and paragraphs, which suits a narrow window."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    for one in parameters:
        limits = f"{_accepts(one)}; {'must be given' if one['required'] else f'default {_default(one)}'}"
        grid.add_row(one["name"], Text.assemble(one["meaning"], "\n" if one["meaning"] else "", (limits, "dim")))
    return indented(grid)


def _accepts(parameter: Mapping[str, Any]) -> str:
    return str(parameter["accepts"]).replace("'", "") + (", one for each model" if parameter["per_model"] else "")


def _default(parameter: Mapping[str, Any]) -> str:
    return "must be given" if parameter["required"] else in_yaml(parameter["default"])
