"""The generated pages in docs/."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from cuvee.methods.registry import edits, methods
from cuvee.recipes import parse_recipe, prepare

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """Return the script that writes the pages."""
    spec = importlib.util.spec_from_file_location("write_methods", DOCS / "write_methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_that_the_registry_makes(writer):
    made = writer.pages()
    stale = [path.name for path, text in made.items() if not path.is_file() or path.read_text() != text]
    gone = [path.name for path in (DOCS / "methods").glob("*.md") if path not in made]
    assert not stale + gone, f"run `make docs` (python docs/write_methods.py), which renews {', '.join(stale + gone)}"


def test_every_method_and_edit_has_a_page_with_its_parameters_and_is_in_the_index(writer):
    made = {path.name: text for path, text in writer.pages().items()}
    for name, known in {**edits(), **methods()}.items():
        assert f"[{name}]({name}.md)" in made["README.md"]
        assert all(f"| `{parameter}` |" in made[f"{name}.md"] for parameter in known.parameters)


def test_recipes_on_the_pages_are_recipes(writer):
    for text in writer.pages().values():
        for recipe in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
            assert not prepare(parse_recipe(recipe)).warnings


def test_no_page_has_a_row_of_another_width(writer):
    for path, text in writer.pages().items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.strip().split("\n")}) == 1, path.name
