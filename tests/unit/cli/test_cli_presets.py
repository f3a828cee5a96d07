"""`cuvee presets`, and presets in Python."""

from __future__ import annotations

import json

import pytest

import cuvee
from cuvee.errors import RecipeError
from cuvee.recipes import parse_recipe, prepare
from cuvee.recipes.presets import PRESETS
from cuvee.recipes.staging import stages_of


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_fits_the_window_and_names_every_preset(run, columns):
    outcome = run("presets", columns=columns)
    assert outcome.code == 0
    lines = outcome.out.split("\n")
    assert all(len(line) <= columns for line in lines)
    assert set(PRESETS) <= {line.split()[0] for line in lines if line.strip()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_with_models_is_a_recipe_with_its_citation(run, name):
    preset = PRESETS[name]
    given = [f"{role}=some/{role}" for role in preset.roles]
    given += [f"{role}=some/other {role}" for role, repeats in preset.roles.items() if repeats]
    outcome = run("presets", name, *given)
    assert outcome.code == 0
    recipe = parse_recipe(outcome.out)
    prepared = prepare(recipe)
    assert prepared.method.name == preset.method and not prepared.warnings
    named = {str(one.model) for each in (recipe, *stages_of(recipe)) for one in each.models} | {str(recipe.base_model)}
    assert {one.partition("=")[2] for one in given} <= named
    assert str(preset.paper) in outcome.out
    page = run("presets", name)
    assert page.code == 0 and f"cuvee presets {name} " in page.out


def test_a_place_without_a_model_and_a_model_without_a_place_are_named(run):
    missing = run("presets", "safety-restore", "aligned=a")
    assert missing.code == 2 and "needs tuned" in missing.err and "tuned=MODEL" in missing.err
    unknown = run("presets", "safety-restore", "aligned=a", "tunde=b")
    assert unknown.code == 2 and "has no 'tunde'" in unknown.err and "tuned" in unknown.err
    bare = run("presets", "safety-restore", "a")
    assert bare.code == 2 and "aligned=a or tuned=a" in bare.err
    twice = run("presets", "safety-restore", "aligned=a", "aligned=b", "tuned=c")
    assert twice.code == 2 and "2 models are given as aligned" in twice.err
    nearly = run("presets", "safty-restore")
    assert nearly.code == 2 and "safety-restore" in nearly.err


def test_a_preset_is_a_recipe_in_python():
    recipe = cuvee.preset("soup", model=["a", "b", "c"])
    assert [one.model for one in recipe.models] == ["a", "b", "c"] and recipe.merge_method == "linear"
    with pytest.raises(RecipeError, match="needs base, quick, thinking"):
        cuvee.preset("long-to-short")


def test_a_preset_merges_at_once_what_its_recipe_would(run, models, tmp_path):
    given = [f"instruct={models.base}", f"expert={models.math}", f"expert={models.code}"]
    recipe = tmp_path / "clinical.yml"
    recipe.write_text(run("presets", "clinical", *given).out)
    once = run("merge", "--preset", "clinical", *given, tmp_path / "once", "--seed", 3, "--json")
    twice = run("merge", recipe, tmp_path / "twice", "--seed", 3, "--json")
    assert once.code == twice.code == 0, once.err + twice.err
    assert once.json["digest"] == twice.json["digest"]
    manifest = json.loads((tmp_path / "once" / "cuvee.json").read_text())
    assert "2505.10717" in manifest["recipe_text"]
    assert manifest["recipe_text"].endswith("# on the command line: --seed 3\n")
    planned = run("plan", "--preset", "clinical", *given, "--seed", 3, "--json")
    written = run("plan", recipe, "--seed", 3, "--json")
    assert planned.code == 0 and planned.json["plan"] == written.json["plan"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--preset", "soup", "model=a", "model=b"], "OUT is missing"),
        (["--preset", "soup"], "OUT is missing"),
        (["--preset", "soup", "model=", "out"], "no model is given as model"),
        (["--preset", "soup", "model=a", "out", "more"], "'out' does not say whose place in soup it takes"),
        (["--preset", "soop", "model=a", "out"], "unknown preset 'soop'"),
        (["--preset", "soup", "modell=a", "out"], "the preset soup has no 'modell'"),
        (["--preset", "chat-vector", "base=a", "out"], "the preset chat-vector needs instruct, domain"),
    ],
)
def test_what_is_wrong_with_a_preset_on_the_command_line_is_said(run, words, found):
    outcome = run("merge", *words)
    assert outcome.code == 2 and outcome.err.startswith(f"{found}"), outcome.err


def test_a_stage_of_a_preset_never_takes_the_name_of_a_model():
    recipe = cuvee.preset("clinical", instruct="base", expert=["expert2-blended", "other"])
    first, second = (one.model for one in recipe.models)
    assert [one.model for one in first.models] == ["expert2-blended"]
    assert [one.model for one in second.models] == ["other"] and second.name == "expert2-blended-again"
