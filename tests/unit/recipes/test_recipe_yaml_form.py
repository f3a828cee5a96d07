"""Recipes in YAML: mergekit's form and Cuvée's keys; what is wrong is said together, with its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.errors import CuveeError, RecipeError
from cuvee.recipes import Recipe, RecipeModel, load_recipe, parse_recipe, prepare
from cuvee.tokenizers.request import RowOf, TokenizerRequest, TokenRule, ZeroRow

Told = Callable[..., list[CuveeError]]

TIES = """\
merge_method: ties
base_model: base
models:
  - model: math
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - model: code
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
  - chat
parameters:
  normalize: true
  int8_mask: true
  lambda: 0.8
dtype: bfloat16
"""


def said(errors: list[CuveeError]) -> list[tuple[str, str]]:
    return [(error.found, error.where) for error in errors]


def test_a_recipe_in_mergekits_form_is_read() -> None:
    recipe = parse_recipe(TIES, name="ties.yml")
    assert recipe == Recipe(
        "ties",
        models=[
            RecipeModel("math", {"density": [1, 0.7, 0.1], "weight": 1.0}),
            RecipeModel("code", {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}]}),
            RecipeModel("chat"),
        ],
        base_model="base",
        parameters={"normalize": True, "int8_mask": True, "scaling": 0.8},
        dtype="bfloat16",
        from_yaml=True,
        text=TIES,
        places=recipe.places,
    )


def test_our_own_keys_are_read() -> None:
    recipe = parse_recipe(
        """
merge_method: task_arithmetic
models: [a]
base_model: b
seed: 7
exclude: "*.norm.weight"
only: ["*.mlp.*", lm_head*]
compat: mergekit
compute_dtype: float64
out_dtype: float16
before: [trim: {density: 0.5}, other]
after: [lines: {alpha: 0.2}]
"""
    )
    assert recipe.seed == 7
    assert recipe.exclude == ["*.norm.weight"]
    assert recipe.only == ["*.mlp.*", "lm_head*"]
    assert (recipe.compat, recipe.compute_dtype, recipe.out_dtype) == ("mergekit", "float64", "float16")
    assert recipe.before == [{"trim": {"density": 0.5}}, "other"]
    assert recipe.after == [{"lines": {"alpha": 0.2}}]


def test_keys_without_a_value_count_as_not_given() -> None:
    recipe = parse_recipe(
        "merge_method: linear\nmodels:\n - model: a\n   parameters:\nbase_model:\nparameters:\ndtype: ~"
    )
    assert (recipe.base_model, recipe.parameters, recipe.dtype) == (None, {}, None)


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ("org/model", "org/model"),
        ("org/model@main", "org/model@main"),
        ("folder+adapter", "folder+adapter"),
        ("123e45", "123e45"),  # a folder or commit that looks like a number is still a name
        ("{path: org/model, revision: 1e10}", "org/model@1e10"),
        ("{path: org/model}", "org/model"),
        ("{model: folder}", "folder"),
        ("{model: {path: folder, revision: main}, lora: adapter}", "folder@main+adapter"),
        ("{model: folder, lora: {path: adapter, revision: '2'}}", "folder+adapter@2"),
        ("{model: folder, lora: }", "folder"),
    ],
)
def test_every_form_of_a_model_becomes_one_text(written: str, reference: str) -> None:
    recipe = parse_recipe(f"merge_method: linear\nmodels:\n  - model: {written}\nbase_model: {written}")
    assert recipe.models[0].model == reference
    assert recipe.base_model == reference


def test_places_are_those_of_keys_and_items() -> None:
    recipe = parse_recipe(TIES, name="ties.yml")
    assert recipe.place("models", 1, "parameters", "weight", 1) == "ties.yml:13:11 (models.1.parameters.weight.1)"
    assert recipe.place("parameters", "scaling") == "ties.yml:18:3 (parameters.scaling)"
    assert recipe.place("parameters", "unsaid") == "ties.yml:15:1 (parameters.unsaid)"
    assert recipe.place() == "ties.yml:1:1"


def test_all_that_is_wrong_is_said_together_in_the_order_of_the_text(told: Told) -> None:
    errors = told(
        parse_recipe,
        """\
merge_method: ties
models:
  - model: math
    weight: 0.5
    parameters: {densty: 0.5}
  - modle: code
  - {}
base_modle: base
parameters:
  normalize: maybe
  scaling: 1
  lambda: 1
dtype: bfloat15
merge_method: linear
""",
        name="r.yml",
    )
    assert said(errors) == [
        ("unknown key 'weight'", "r.yml:4:5 (models.0.weight)"),
        ("ties has no parameter 'densty'", "r.yml:5:18 (models.0.parameters.densty)"),
        ("unknown key 'modle'", "r.yml:6:5 (models.1.modle)"),
        ("the entry names no model", "r.yml:7:5 (models.2)"),
        ("unknown key 'base_modle'", "r.yml:8:1 (base_modle)"),
        ("normalize is 'maybe'", "r.yml:10:3 (parameters.normalize)"),
        ("lambda is mergekit's word for scaling, and both are given", "r.yml:12:3 (parameters.lambda)"),
        ("unknown dtype 'bfloat15'", "r.yml:13:1 (dtype)"),
        ("the key 'merge_method' stands twice, first in line 1", "r.yml:14:1 (merge_method)"),
    ]
    rights = [error.right for error in errors]
    assert rights[0] == "under parameters, if it is one: parameters: {weight: …}"
    assert rights[1] == "did you mean 'density'?"
    assert rights[2] == "did you mean 'model'?"
    assert rights[4] == "did you mean 'base_model'?"
    assert rights[7] == "did you mean 'bfloat16'?"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("slices: []", "slices is empty"),
        ("modules: {}", "modules is empty"),
        ("space: core", "space is not supported yet"),
        ("statistics: a.safetensors", "statistics belong to one model"),
    ],
)
def test_what_comes_later_is_refused_by_name(key: str, found: str, told: Told) -> None:
    (error,) = told(parse_recipe, f"merge_method: linear\nmodels: [a]\n{key}")
    assert error.found == found
    assert error.right


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("{model: a, statistics: [s]}", "statistics is a list"),
    ],
)
def test_what_comes_later_is_refused_in_models_too(entry: str, found: str, told: Told) -> None:
    (error,) = told(parse_recipe, f"merge_method: linear\nmodels: [{entry}]")
    assert (error.found, error.where) == (found, f"<recipe>:2:21 (models.0.{entry[11:].split(':')[0]})")


def test_a_file_of_slices_needs_no_models() -> None:
    recipe = parse_recipe("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]")
    assert recipe.slices[0].sources[0].layer_range == (0, 1)


def test_harmless_keys_of_mergekit_are_pointed_out_and_accepted() -> None:
    recipe = parse_recipe("merge_method: linear\nmodels: [a]\nname: my-merge\nrandom_seed: 3")
    assert [note.split(":", 3)[3] for note in prepare(recipe).warnings] == [
        " random_seed has no effect: seed: is the key for it",
    ]


def test_int8_mask_is_accepted_by_every_method() -> None:
    assert prepare(parse_recipe("merge_method: linear\nmodels: [a]\nparameters: {int8_mask: true}")).warnings == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "the recipe is empty"),
        ("~", "the recipe is empty"),
        ("- merge_method: linear", "the recipe is a list, not a mapping of keys to values"),
        ("linear", "the recipe is 'linear', not a mapping of keys to values"),
        ("models: [a]", "there is no merge_method"),
        ("merge_method: linear", "there are no models"),
        ("merge_method: [linear]\nmodels: [a]", "merge_method is a list"),
        ("merge_method: linear\nmodels: a", "models is 'a'"),
        ("merge_method: linear\nmodel: a", "unknown key 'model'"),
        ("merge_method: linear\nmodels: [a, ~]", "the model is empty"),
        ("merge_method: linear\nmodels: [model: ]", "the model is empty"),
        ("merge_method: linear\nmodels: [model: [a]]", "the model is a list"),
        ("merge_method: linear\nmodels: [model: {revision: a}]", "the mapping names no model"),
        ("merge_method: linear\nmodels: [model: {path: a, branch: b}]", "unknown key 'branch'"),
        ("merge_method: linear\nmodels: [a]\nparameters: 5", "parameters is '5'"),
        ("merge_method: linear\nmodels: [a]\nbefore: trim", "before is 'trim'"),
        ("merge_method: linear\nmodels: [a]\nlayer_count: 5", "unknown key 'layer_count'"),
    ],
)
def test_text_of_the_wrong_form_is_told_once(text: str, found: str, told: Told) -> None:
    (error,) = told(parse_recipe, text)
    assert error.found == found
    assert error.where.startswith("<recipe>:")
    assert error.right


def test_control_characters_of_a_hostile_recipe_do_not_reach_the_terminal(told: Told) -> None:
    (error,) = told(parse_recipe, 'merge_method: linear\nmodels: [a]\n"\\x1b[2Jkey": 1')
    assert "\x1b" not in str(error)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_bytes(b"\xef\xbb\xbf" + TIES.replace("\n", "\r\n").encode())
    recipe = load_recipe(path)
    assert recipe.models == parse_recipe(TIES).models
    assert recipe.place("dtype") == f"{path}:19:1 (dtype)"


def test_bytes_that_are_not_utf8_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_bytes(b"merge_method: linear\n# caf\xe9\n")
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert (raised.value.found, raised.value.where) == ("byte 0xe9 is not UTF-8", f"{path}:2:6")


def test_files_that_are_missing_folders_or_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "gone.yml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    large = tmp_path / "large.yml"
    large.write_bytes(b"#" * (4 * 2**20 + 1))
    with pytest.raises(RecipeError, match="more than 4194304 bytes"):
        load_recipe(large)


def test_importing_and_using_recipes_does_not_import_torch() -> None:
    code = """
import sys
from cuvee.recipes import parse_recipe, prepare
prepare(parse_recipe("{merge_method: ties, models: [a], base_model: b}"))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


KEYS = ["merge_method", "models", "model", "base_model", "parameters", "dtype", "seed", "exclude", "before", "after"]
WORDS = [
    "weight",
    "density",
    "t",
    "linear",
    "ties",
    "slerp",
    "filter",
    "value",
    "trim",
    "scaling",
    "lambda",
    "normalize",
]
words = st.sampled_from([*KEYS, *WORDS, "*", "a", "true", "0.5", "nan", "~"])
trees = st.recursive(
    st.one_of(words, st.integers(-3, 3), st.floats(), st.booleans(), st.none(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)


def flow(tree: Any) -> str:
    """Write a tree as YAML in one line."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f'"{key}": {flow(value)}' for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(flow, tree)) + "]"
    if isinstance(tree, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in tree if not 0xD800 <= ord(c) < 0xE000) + '"'
    return "~" if tree is None else str(tree).lower()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(words, trees, max_size=5), st.booleans())
def test_whatever_the_text_says_the_answer_is_a_recipe_or_an_error_of_ours(tree: dict[str, Any], sound: bool) -> None:
    if sound:
        tree = {"merge_method": "ties", "models": ["a", "b"], "base_model": "c", **tree}
    try:
        prepare(parse_recipe(flow(tree)))
    except CuveeError as error:
        assert str(error)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,? \n\t0.~<", max_size=60))
def test_any_text_at_all_is_read_or_refused(text: str) -> None:
    try:
        parse_recipe(text)
    except CuveeError as error:
        assert str(error)


def test_a_tokenizer_is_read_with_its_rules() -> None:
    text = """
merge_method: linear
models: [a, b]
tokenizer:
  source: b
  pad_to_multiple_of: 64
  tokens:
    "<x>": {source: a, force: true}
    "<y>": {source: {kind: model_token, model: {path: b}, token_id: 3}}
    "<z>": {source: {kind: zero}}
    "<w>":
chat_template: chatml
"""
    recipe = parse_recipe(text)
    assert recipe.chat_template == "chatml"
    rules = {
        "<x>": TokenRule(RowOf("a"), force=True),
        "<y>": TokenRule(RowOf("b", token_id=3)),
        "<z>": TokenRule(ZeroRow()),
        "<w>": TokenRule(),
    }
    assert recipe.tokenizer == TokenizerRequest("b", rules, 64)


def test_mergekits_older_word_means_the_same() -> None:
    recipe = parse_recipe("merge_method: linear\nmodels: [a, b]\ntokenizer_source: union")
    assert recipe.tokenizer == TokenizerRequest("union")
    assert Recipe("linear", models=["a"], tokenizer="union").tokenizer == TokenizerRequest("union")
