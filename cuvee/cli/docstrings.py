"""Docstrings in Google's form, taken apart: what `cuvee methods NAME` prints."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DocPage", "read_docstring"]

_SECTIONS = ("Args", "Returns", "Raises", "Source")
_HEAD = re.compile(rf"^({'|'.join(_SECTIONS)}):(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \w+)*): +(.*)$")


@dataclass
class DocPage:
    """A docstring by its parts.

    Attributes:
        summary: the first paragraph.
        body: the paragraphs after it.
        arguments: what is said of each argument.
        returns, source: as one paragraph each.
    """

    summary: str = ""
    body: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    returns: str = ""
    source: str = ""


def read_docstring(function: Callable[..., Any]) -> DocPage:
    """Take the docstring of a function apart."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in (inspect.getdoc(function) or "").split("\n"):
        if head := _HEAD.match(line):
            current = head[1]
            sections[current] = [head[2].strip()]
        else:
            sections[current].append(line)
    summary, _, body = "\n".join(sections[""]).strip().partition("\n\n")
    return DocPage(
        _joined(summary.split("\n")),
        "\n\n".join(_joined(part.split("\n")) for part in body.split("\n\n")).strip(),
        _arguments(sections.get("Args", [])),
        _joined(sections.get("Returns", [])),
        _joined(sections.get("Source", [])),
    )


def _arguments(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    for line in filter(str.strip, lines):
        # An entry begins at the section's own indent; what stands further in goes on with it.
        entry = _ENTRY.match(line[4:]) if line.startswith("    ") and not line.startswith("     ") else None
        if entry:
            names = entry[1].split(", ")
        for name in names:
            found[name] = entry[2] if entry else f"{found[name]} {line.strip()}"
    return found


def _joined(lines: list[str]) -> str:
    return " ".join(filter(None, map(str.strip, lines)))
