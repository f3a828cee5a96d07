"""The report on tokens: how many each model has, what the output adds, and where missing rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.cli.amounts import plural
from cuvee.cli.screen import heading, indented, rows, safe, show, styled, table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_tokens"]

_MOST = 8


def print_tokens(console: Console, tokens: Mapping[str, Any]) -> None:
    """Print what was done to the vocabulary; nothing where nothing was."""
    if not tokens:
        return
    show(console, "", heading("Tokens"), rows(_summary(tokens)))
    models = tokens.get("models", ())
    if models:
        made = table("model", "tokens", "rows", "rows it was given", numbers=(1, 2), fold=(0, 3))
        for one in models:
            made.add_row(*map(styled, (one["model"], one["tokens"], one["rows"], _given(one["filled"]))))
        show(console, "", indented(made))


def _summary(tokens: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("tokenizer", f"{safe(tokens['owner'])}'s" + (", extended" if tokens.get("appended") else ""))]
    if "rows" in tokens:
        lines.append(("vocabulary", f"{plural(tokens['tokens'], 'token')} in {plural(tokens['rows'], 'row')}"))
    if matched := tokens.get("matched"):
        lines.append(("matched", ", ".join(f"{count} by the {how}" for how, count in matched.items())))
    if appended := list(tokens.get("appended", ())):
        lines.append(("added", f"{len(appended)}: {_some(appended)}"))
    for what, names in tokens.get("files", {}).items():
        if names:
            lines.append((what, ", ".join(map(safe, names))))
    return lines


def _given(filled: Mapping[str, Mapping[str, int]]) -> str:
    """Return how many rows were given and how, once where all tensors are alike."""
    said = {name: "; ".join(f"{count} {how}" for how, count in by.items()) or "none" for name, by in filled.items()}
    if len(set(said.values())) <= 1:
        return next(iter(said.values()), "none")
    return "; ".join(f"{name}: {words}" for name, words in said.items())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(map(safe, names[:_MOST])) + more
