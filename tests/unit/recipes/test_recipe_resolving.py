"""The arguments of a method for one tensor: the model's own settings, then those for all, then the default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cuvee.errors import CuveeError, MethodError
from cuvee.recipes import Recipe, RecipeModel, parse_recipe, prepare

pytestmark = pytest.mark.usefixtures("fakes")
Told = Callable[..., list[CuveeError]]


def arguments(recipe: Recipe, name: str = "x", position: float | None = None) -> dict[str, Any]:
    (whole,) = prepare(recipe).parts
    return whole.resolver.for_tensor(name, position, names=[name] * len(whole.experts))


def deltas(*models: Any, **parameters: Any) -> Recipe:
    return Recipe("fake_deltas", models=models or ("a", "b"), base_model="base", parameters=parameters)


def test_what_the_recipe_does_not_say_has_its_default() -> None:
    assert arguments(deltas()) == {
        "weight": [1.0, 1.0],
        "density": [1.0, 1.0],
        "normalize": True,
        "steps": 3,
        "tie_sign": "plus",
        "scaling": 1.0,
        "embed_mismatch": "error",
    }


def test_the_models_own_setting_comes_before_that_for_all() -> None:
    own = RecipeModel("a", {"weight": [{"filter": "mlp", "value": 0.25}]})
    recipe = deltas(own, "b", weight=[{"filter": "norm", "value": 0.5}], density=0.75)
    assert arguments(recipe, "mlp.up")["weight"] == [0.25, 1.0]
    assert arguments(recipe, "norm")["weight"] == [0.5, 0.5]
    assert arguments(recipe, "lm_head")["weight"] == [1.0, 1.0]
    assert arguments(recipe)["density"] == [0.75, 0.75]


def test_in_python_a_list_for_all_has_one_entry_for_each_model() -> None:
    entries = [0.5, [{"filter": "mlp", "value": [0, 1]}, {"value": 0.25}]]
    recipe = deltas(weight=entries)
    assert arguments(recipe, "mlp", 1.0)["weight"] == [0.5, 1.0]
    assert arguments(recipe, "norm")["weight"] == [0.5, 0.25]
    assert arguments(deltas(weight=[[0, 1], 2]), "x", 0.5)["weight"] == [0.5, 2.0]


def test_in_python_filter_entries_for_all_hold_for_every_model() -> None:
    assert arguments(deltas(weight=[{"filter": "x", "value": 3}, {"value": 4}]))["weight"] == [3.0, 3.0]


def test_in_python_a_list_inside_a_model_is_a_gradient() -> None:
    recipe = deltas(RecipeModel("a", {"density": [1, 0]}), "b")
    assert arguments(recipe, "x", 0.75)["density"] == [0.25, 1.0]


def test_in_yaml_a_list_is_always_a_gradient() -> None:
    recipe = parse_recipe("merge_method: fake_deltas\nmodels: [a, b]\nbase_model: c\nparameters: {density: [0, 1]}")
    assert arguments(recipe, "x", 0.25)["density"] == [0.25, 0.25]


def test_a_list_of_another_length_than_the_models_is_refused(told: Told) -> None:
    (error,) = told(prepare, deltas(weight=[0.1, 0.2, 0.3]))
    assert error.found == "weight has 3 values for 2 models"
    assert "gradient" in error.right


def test_for_one_value_of_all_models_a_list_is_a_gradient_in_python_too() -> None:
    assert arguments(deltas(scaling=[0, 1]), "x", 0.25)["scaling"] == 0.25
    assert arguments(deltas(normalize=[True, False]), "x", 0.5)["normalize"] is True
    assert arguments(deltas(normalize=[True, False]), "x", 1.0)["normalize"] is False
    assert arguments(deltas(steps=[1, 4]), "x", 0.5)["steps"] == 3
    assert arguments(deltas(tie_sign=["plus", "majority"]), "x", 0.5)["tie_sign"] == "plus"


def test_none_in_python_is_not_given() -> None:
    assert arguments(deltas(weight=None, scaling=None))["weight"] == [1.0, 1.0]


def test_a_required_parameter_that_says_nothing_of_a_tensor_is_named_with_the_tensor() -> None:
    recipe = Recipe("fake_ends", models=["a", "b"], parameters={"t": [{"filter": "mlp", "value": 0.5}]})
    assert arguments(recipe, "mlp")["t"] == 0.5
    with pytest.raises(MethodError, match="no entry of t is about tensor 'norm'"):
        arguments(recipe, "norm")


def test_a_required_parameter_of_one_model_is_named_with_model_and_place() -> None:
    text = """\
merge_method: fake_optional
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: [{filter: mlp, value: 1}]}}
"""
    with pytest.raises(MethodError, match="no entry of weight of 'b' is about tensor 'norm'") as raised:
        arguments(parse_recipe(text, name="r.yml"), "norm")
    assert raised.value.where == "r.yml:4:5 (models.1)"


def test_another_number_of_models_than_the_recipes_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="3 models, and the recipe has 2"):
        prepare(deltas()).parts[0].resolver.for_tensor("x", None, names=["x"] * 3)


def test_models_may_be_tensors() -> None:
    class Unequal:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("tensors do not compare as one")

        __hash__ = None  # type: ignore[assignment]

    one, other, base = {"x": Unequal()}, {"x": Unequal()}, {"x": Unequal()}
    prepared = prepare(Recipe("fake_deltas", models=[one, other, base], base_model=base))
    assert [expert.model is model for expert, model in zip(prepared.parts[0].experts, (one, other), strict=True)] == [
        True
    ] * 2
    assert prepared.base is base


GOLDEN = Path(__file__).parents[4] / "shared/golden/mergekit_yaml/ties_density_weight_gradients/case.json"


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden cases are not here")
def test_the_golden_yaml_gives_mergekits_values() -> None:
    recipe = parse_recipe(json.loads(GOLDEN.read_text())["params"]["yaml"])
    mlp = arguments(recipe, "model.layers.1.mlp.up_proj.weight", 1 / 3)
    assert mlp["weight"] == pytest.approx([1.0, 0.3, 0.5])
    assert mlp["density"] == pytest.approx([1 - 0.3 * 2 / 3, 0.5, 0.33])
    assert arguments(recipe, "model.embed_tokens.weight", None)["weight"] == [1.0, 0.0, 0.0]
    assert mlp["normalize"] is True
