"""Reading YAML: places are kept, nothing is constructed, hostile text is refused quickly."""

from __future__ import annotations

import math
import time

import pytest

from cuvee.errors import CuveeError, Problems, RecipeError
from cuvee.recipes.yaml_tree import Entries, Items, Scalar, read_trees


def problems(text: str) -> list[CuveeError]:
    try:
        return list(read_trees(text, "r.yml")[1])
    except Problems as several:
        return list(several.errors)
    except RecipeError as error:
        return [error]


def value(text: str) -> object:
    (root,), found = read_trees(f"key: {text}", "r.yml")
    assert isinstance(root, Entries) and not found
    node = root.entries["key"][1]
    assert isinstance(node, Scalar)
    return node.value


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1", 1),
        ("-3", -3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("true", True),
        ("yes", True),
        ("off", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("word", "word"),
        ("010", "010"),  # eight to some readers and ten to others: neither
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
    ],
)
def test_values_mean_what_they_mean_in_files_for_mergekit(text: str, meant: object) -> None:
    assert value(text) == meant
    assert type(value(text)) is type(meant)


def test_nan_is_a_number_that_is_none() -> None:
    assert math.isnan(value(".nan"))  # type: ignore[arg-type]


def test_numbers_too_long_for_integers_are_read_without_effort() -> None:
    assert value("9" * 100_000) == math.inf


def test_nodes_know_their_line_and_column() -> None:
    (root,), _ = read_trees("models:\n  - model: a\n  - b\n", "r.yml")
    assert isinstance(root, Entries)
    key, models = root.entries["models"]
    assert (key.line, key.column) == (1, 1)
    assert isinstance(models, Items)
    assert [(item.line, item.column) for item in models.items] == [(2, 5), (3, 5)]


def test_aliases_and_merge_keys_stand_for_what_they_name() -> None:
    (root,), found = read_trees("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: {<<: [*a, {x: 9, z: 4}]}", "r.yml")
    assert isinstance(root, Entries) and not found

    def plain(key: str) -> dict[str, object]:
        node = root.entries[key][1]
        assert isinstance(node, Entries)
        return {name: one.value for name, (_, one) in node.entries.items() if isinstance(one, Scalar)}

    assert plain("b") == {"y": 3, "x": 1}
    assert plain("c") == {"x": 1, "y": 2}
    assert plain("d") == {"x": 1, "y": 2, "z": 4}


@pytest.mark.parametrize(
    ("text", "found", "where"),
    [
        ("a:\n\tb: 1", "a tab where YAML wants spaces", "r.yml:2:1"),
        ("a: 1\n  b: 2", "not YAML: mapping values are not allowed here", "r.yml:2:4"),
        ("a: [1, 2\nb: 3", "not YAML: expected ',' or ']', but got ':' while parsing a flow sequence", "r.yml:2:2"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice, first in line 1", "r.yml:3:1 (a)"),
        ("m:\n  - x: 1\n    x: 2", "the key 'x' stands twice, first in line 2", "r.yml:3:5 (m.0.x)"),
        ("1: x", "the key 1 is not a word", "r.yml:1:1 (1)"),
        ("on: x", "the key on is not a word", "r.yml:1:1 (on)"),
        ("? [a]\n: 1", "a list or a mapping stands as a key", "r.yml:1:3"),
        (
            "a: !!python/object/apply:os.system [x]",
            "the tag !!python/object/apply:os.system is not allowed",
            "r.yml:1:4 (a)",
        ),
        ("a: !mine 1", "the tag !mine is not allowed", "r.yml:1:4 (a)"),
        ("a: *gone", "*gone names no anchor above it", "r.yml:1:4 (a)"),
        ("a: &a [*a]", "*a stands inside what it names", "r.yml:1:8 (a.0)"),
        ("a: {<<: 3}", "<< takes a mapping, or a list of them", "r.yml:1:9 (a.<<)"),
        ("a: 1\nb: \x07", "an unprintable character, '\\x07'", "r.yml:2:4"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, found: str, where: str) -> None:
    (problem,) = problems(text)
    assert (problem.found, problem.where) == (found, where)
    assert problem.right


def test_all_that_is_wrong_is_said_together() -> None:
    assert len(problems("a: 1\na: 2\n3: !x y\n? [b]\n: 1")) == 4


def bomb(levels: int, width: int) -> str:
    """Return a "billion laughs": each level repeats the one before."""
    lines = ["a0: &a0 [" + ", ".join("x" * width) + "]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * width) + "]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (bomb(9, 10), "values, aliases written out"),
        ("- a\n" * 30_000, "values, aliases written out"),
        ("[" * 100_000, "nested more than 32 deep"),
        ("{a: " * 100_000, "nested more than 32 deep"),
        ("- " * 100_000, "nested more than 32 deep"),
        ("#" * (4 * 2**20 + 1), "more than 4194304"),
    ],
    ids=["aliases", "items", "brackets", "braces", "dashes", "length"],
)
def test_bombs_are_refused_quickly(text: str, found: str) -> None:
    start = time.process_time()
    (problem,) = problems(text)
    assert found in problem.found
    assert time.process_time() - start < 8  # a few seconds at worst; without limits these run for hours


def test_a_document_marker_before_the_only_document_is_fine() -> None:
    (root,), found = read_trees("# a comment\n---\na: 1\n...\n", "r.yml")
    assert isinstance(root, Entries) and not found


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment"])
def test_without_a_document_there_is_no_root(text: str) -> None:
    assert read_trees(text, "r.yml") == ([], [])
