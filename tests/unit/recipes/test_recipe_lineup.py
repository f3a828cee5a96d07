"""Which models a method is given, and what the base model is among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cuvee.errors import CuveeError
from cuvee.recipes import Recipe, RecipeModel, prepare

pytestmark = pytest.mark.usefixtures("fakes")
Told = Callable[..., list[CuveeError]]


def recipe(method: str, models: str, base: str | None = None) -> Recipe:
    parameters = {"fake_ends": {"t": 0.5}, "fake_optional": {"weight": 1.0}}.get(method, {})
    return Recipe(method, models=models.split(), base_model=base, parameters=parameters)


@pytest.mark.parametrize(
    ("method", "models", "base", "experts"),
    [
        ("fake_deltas", "a b", "base", "a b"),
        ("fake_deltas", "a base b", "base", "a b"),  # mergekit's users list it: it has no task vector
        ("fake_weights", "a b", None, "a b"),
        ("fake_weights", "a base", "base", "a base"),  # one of the models, with a weight of its own
        ("fake_members", "a b", None, "a b"),
        ("fake_members", "a b", "base", "a b base"),
        ("fake_members", "base b", "base", "base b"),
        ("fake_ends", "a b", None, "a b"),
        ("fake_ends", "a b", "a", "a b"),
        ("fake_ends", "a b", "b", "b a"),
        ("fake_ends", "b", "a", "a b"),
        ("fake_ends", "a a", "a", "a a"),
        ("fake_optional", "a b", None, "a b"),
        ("fake_optional", "a b", "base", "a b"),
        ("fake_optional", "base a b", "base", "a b"),
    ],
)
def test_the_method_is_given_its_models_in_order(method: str, models: str, base: str | None, experts: str) -> None:
    prepared = prepare(recipe(method, models, base))
    assert [expert.model for expert in prepared.parts[0].experts] == experts.split()
    assert prepared.base == base


@pytest.mark.parametrize(
    ("method", "models", "base", "found"),
    [
        ("fake_deltas", "a b", None, "fake_deltas needs a base model, and the recipe names none"),
        (
            "fake_deltas",
            "base",
            "base",
            "fake_deltas takes 1 or more models, and the recipe has 0 besides the base model",
        ),
        ("fake_weights", "a b", "base", "fake_weights takes no base model, and 'base' is not one of its models"),
        ("fake_weights", "", None, "fake_weights takes 1 or more models, and the recipe has 0"),
        ("fake_members", "a", None, "fake_members takes 2 or more models, and the recipe has 1"),
        ("fake_ends", "a b c", None, "fake_ends takes exactly 2 models, and the recipe has 3"),
        ("fake_ends", "a b", "base", "fake_ends takes exactly 2 models, and the recipe has 3 with the base model"),
        ("fake_ends", "a", None, "fake_ends takes exactly 2 models, and the recipe has 1"),
        (
            "fake_optional",
            "a b",
            "a",
            "fake_optional takes exactly 2 models, and the recipe has 1 besides the base model",
        ),
    ],
)
def test_models_that_do_not_suit_the_method_are_told(
    method: str, models: str, base: str | None, found: str, told: Told
) -> None:
    (error,) = told(prepare, recipe(method, models, base))
    assert error.found == found
    assert error.right


def test_one_folder_may_be_written_in_several_ways() -> None:
    prepared = prepare(Recipe("fake_deltas", models=["./a", Path("base")], base_model="base/"))
    assert [expert.model for expert in prepared.parts[0].experts] == ["./a"]


def test_a_model_listed_twice_counts_twice_and_is_pointed_out() -> None:
    prepared = prepare(recipe("fake_deltas", "a b a", "base"))
    assert len(prepared.parts[0].experts) == 3
    assert prepared.warnings == ("models.2: 'a' is listed more than once, and counts each time",)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("run/checkpoint-1000 run/checkpoint-200", "1000, 200"),
        ("r7/step1000/hf r7/step200/hf r7/step400/hf", "1000, 200, 400"),
        ("run/checkpoint-200 run/checkpoint-1000", ""),
        ("run2/checkpoint-1000 run1/checkpoint-200", ""),  # two numbers differ: which is the step?
        ("last first-200", ""),
        ("one", ""),
    ],
)
def test_checkpoints_out_of_their_order_are_pointed_out_where_it_counts(models: str, said: str) -> None:
    for scheme in ("ema", "wma"):
        prepared = prepare(Recipe("pma", models=models.split(), parameters={"scheme": scheme}))
        expected = f"models.0: pma takes the first model for the oldest, and their numbers are {said}"
        assert prepared.warnings == ((expected,) if said else ())
    assert not prepare(Recipe("pma", models=models.split())).warnings


def test_parameters_of_a_listed_base_are_pointed_out() -> None:
    models = [RecipeModel("base", {"weight": 0.5}), RecipeModel("a")]
    prepared = prepare(Recipe("fake_deltas", models=models, base_model="base"))
    assert prepared.warnings == (
        "models.0.parameters: the parameters of the base model have no effect: its task vector is zero",
    )


def test_values_for_each_model_do_not_count_the_base() -> None:
    prepared = prepare(
        Recipe("fake_deltas", models=["base", "a", "b"], base_model="base", parameters={"weight": [2, 3]})
    )
    assert prepared.parts[0].resolver.for_tensor("x", None)["weight"] == [2.0, 3.0]
