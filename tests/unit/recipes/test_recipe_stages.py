"""Files of several documents: stages, and the recipe that is published."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cuvee.errors import CuveeError
from cuvee.recipes import Recipe, everywhere, parse_recipe, prepare

Told = Callable[..., list[CuveeError]]

FIRST = "name: first\nmerge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"
LAST = "merge_method: slerp\nmodels: [first, c]\nbase_model: first\nparameters: {t: 0.5}\n"


def test_a_name_stands_for_what_its_stage_makes() -> None:
    recipe = parse_recipe(f"{LAST}---\n{FIRST}")
    stage = recipe.base_model
    assert isinstance(stage, Recipe)
    assert (recipe.merge_method, stage.merge_method, stage.name) == ("slerp", "linear", "first")
    assert recipe.models[0].model is stage
    assert [one.model for one in stage.models] == ["a", "b"]
    assert recipe.models[1].model == "c"


def test_stages_are_found_in_slices_too() -> None:
    sliced = "merge_method: passthrough\nslices: [{sources: [{model: first, layer_range: [0, 2]}]}]\n"
    assert isinstance(parse_recipe(f"{FIRST}---\n{sliced}").slices[0].sources[0].model, Recipe)


def test_without_a_nameless_recipe_the_last_of_the_chain_is_published() -> None:
    assert parse_recipe(f"{FIRST}---\nname: second\n{LAST}").name == "second"


@pytest.mark.parametrize(
    ("documents", "found"),
    [
        ([FIRST, FIRST, LAST], "two stages are called 'first'"),
        ([LAST, LAST, FIRST], "two recipes have no name"),
        ([FIRST, LAST.replace("first", "d")], "the stage 'first' is used by no other"),
        ([FIRST, FIRST.replace("first", "second")], "is published is not said"),
        (["name: x\n" + LAST.replace("first", "y"), "name: y\n" + LAST.replace("first", "x")], "none is published"),
        ([FIRST.replace("[a, b]", "[first, b]"), LAST], "need each other"),
        ([FIRST.replace("first", "../first"), LAST.replace("first", "../first")], "a stage is called '../first'"),
        (
            [FIRST, LAST.replace("[first, c]", "[first+adapter, first]")],
            "'first+adapter' applies an adapter to a stage",
        ),
    ],
)
def test_chains_that_cannot_be_are_refused(documents: list[str], found: str, told: Told) -> None:
    assert any(found in error.found for error in told(parse_recipe, "---\n".join(documents)))


def test_what_is_wrong_in_all_documents_is_said_together_with_its_lines(told: Told) -> None:
    errors = told(parse_recipe, f"{FIRST}wieght: 1\n---\n{LAST}tt: 1\n")
    assert [error.where for error in errors] == ["<recipe>:5:1 (wieght)", "<recipe>:11:1 (tt)"]


def test_what_is_wrong_with_the_values_of_a_stage_is_said_when_the_recipe_is_prepared(told: Told) -> None:
    recipe = parse_recipe(f"{FIRST.replace('weight: 1', 'weight: heavy')}---\n{LAST.replace('0.5', '2')}")
    assert [error.found for error in told(prepare, recipe)] == ["weight is 'heavy'", "t is 2"]


def test_what_the_command_line_says_holds_in_all_stages() -> None:
    recipe = everywhere(parse_recipe(f"{FIRST}---\n{LAST}"), seed=7)
    assert (recipe.seed, recipe.base_model.seed) == (7, 7)
    assert recipe.base_model is recipe.models[0].model


def test_an_anchor_ends_with_its_document(told: Told) -> None:
    assert "names no anchor" in told(parse_recipe, f"x: &x 1\n{FIRST}---\ny: *x\n{LAST}")[-1].found
