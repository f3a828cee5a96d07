"""The generated pages in docs/."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from cuvee.cli.method_pages import edit_object, method_object
from cuvee.methods.registry import Method, edits, methods
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


@pytest.mark.parametrize("known", [*methods().values(), *edits().values()], ids=lambda known: known.name)
def test_a_page_says_what_is_computed_what_it_costs_and_what_every_parameter_means(known):
    made = method_object(known) if isinstance(known, Method) else edit_object(known)
    assert made["formula"] and made["cost"]
    silent = [one["name"] for one in made["parameters"] if not one["meaning"].strip()]
    assert not silent, f"give these an entry under Args: of {known.name}, their own or one with others"
    assert known.status != "reconstruction" or made["differs"]


def test_the_page_of_an_edit_has_all_that_one_of_a_method_has(writer):
    made = {path.name: text for path, text in writer.pages().items()}
    page = made["star.md"]
    assert "```text\nτ_i = Σ_j s_j u_j v_jᵀ" in page and "| cost | K decompositions |" in page
    assert "## Beside the paper and mergekit\n\nThe official code averages" in page
    (row,) = (line for line in made["README.md"].split("\n") if line.startswith("| [lwptv]"))
    assert row.endswith("| reconstruction |")


def test_a_page_says_whether_memory_grows_with_the_models():
    said = {name: method_object(methods()[name])["memory"] for name in ("drm", "tsv_m", "ties")}
    assert re.fullmatch(r"5 K \+ \d+ times a square matrix in float32", said["drm"])
    assert re.fullmatch(r"\d+ times a square matrix in float32", said["tsv_m"])
    assert not said["ties"]
