"""All that can be known of a recipe without opening a model, and what users are told in the places where they stumble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cuvee.errors import CuveeError, MethodError
from cuvee.recipes import Recipe, RecipeModel, check, parse_recipe, prepare, validate

pytestmark = pytest.mark.usefixtures("fakes")
Told = Callable[..., list[CuveeError]]


def deltas(**changes: Any) -> Recipe:
    return Recipe("fake_deltas", **{"models": ["a", "b"], "base_model": "base", **changes})


def found(recipe: Recipe) -> list[tuple[str, str]]:
    return [(error.found, error.right) for error in validate(recipe)]


def test_a_sound_recipe_has_no_errors_and_no_warnings() -> None:
    checked = check(deltas())
    assert (checked.errors, checked.warnings) == ((), ())
    assert checked.prepared is not None and checked.prepared.method.name == "fake_deltas"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"dtype": "bfloat15"}, ("unknown dtype 'bfloat15'", "did you mean 'bfloat16'?")),
        ({"out_dtype": "int8x"}, ("unknown dtype 'int8x'", None)),
        ({"compute_dtype": "float16"}, ("compute_dtype is 'float16'", None)),
        ({"compat": "mergkit"}, ("compat is 'mergkit'", "did you mean 'mergekit'?")),
        ({"seed": 1.5}, ("seed is 1.5", "seed: a whole number")),
        ({"seed": True}, ("seed is True", "seed: a whole number")),
        ({"exclude": ["*.norm", 3]}, ("the pattern 3 is not text", None)),
        ({"exclude": {"a": 1}}, ("exclude is not a list", None)),
        ({"only": []}, ("only names no tensors, so nothing would be merged", None)),
        ({"only": [""]}, ("the pattern '' is not text", None)),
        ({"parameters": {"densty": 1}}, ("fake_deltas has no parameter 'densty'", "did you mean 'density'?")),
        ({"parameters": {"lambda": 1}}, ("fake_deltas has no parameter 'lambda'", "scaling")),
        ({"parameters": {"density": 2}}, ("density is 2", "density: a number in [0, 1]")),
        ({"parameters": {1: 2}}, ("fake_deltas has no parameter 1", None)),
        (
            {"models": [RecipeModel("a", {"wieght": 1})]},
            ("fake_deltas has no parameter 'wieght'", "did you mean 'weight'?"),
        ),
    ],
)
def test_one_wrong_value_is_told_once(changes: dict[str, Any], wrong: tuple[str, str | None]) -> None:
    ((said, right),) = found(deltas(**changes))
    assert said == wrong[0]
    assert right == wrong[1] if wrong[1] is not None else right


def test_one_pattern_may_stand_without_a_list() -> None:
    assert deltas(exclude="*.norm").exclude == ("*.norm",)
    assert validate(deltas(only="*.mlp.*")) == []


def test_a_method_that_does_not_exist_is_answered_with_the_nearest(told: Told) -> None:
    (error,) = told(prepare, Recipe("tiess", models=["a"]))
    assert isinstance(error, MethodError)
    assert (error.found, error.right) == ("unknown merge method 'tiess'", "did you mean 'ties'?")


def test_a_parameter_of_another_method_is_answered_with_those_that_have_it() -> None:
    ((said, right),) = found(Recipe("slerp", models=["a", "b"], parameters={"t": 0.5, "nuslerp_flatten": False}))
    assert said == "slerp has no parameter 'nuslerp_flatten'"
    assert right == "leave it out; nuslerp has it"


def test_scaling_where_nothing_is_scaled_is_told_under_both_names() -> None:
    ((said, _),) = found(parse_recipe("merge_method: linear\nmodels: [a]\nparameters: {lambda: 0.5}"))
    assert said == "linear has no parameter 'scaling (lambda)'"


def test_everything_wrong_is_said_together_in_the_order_of_the_text() -> None:
    recipe = parse_recipe(
        """\
seed: one
merge_method: fake_deltas
models:
  - model: a
    parameters: {density: 3}
parameters:
  tie_sign: minus
before: [fake_filtr: {share: 1}]
compat: merge
""",
        name="r.yml",
    )
    assert [(error.found, error.where) for error in validate(recipe)] == [
        ("seed is 'one'", "r.yml:1:1 (seed)"),
        ("fake_deltas needs a base model, and the recipe names none", "r.yml:1:1"),
        ("density is 3", "r.yml:5:18 (models.0.parameters.density)"),
        ("tie_sign is 'minus'", "r.yml:7:3 (parameters.tie_sign)"),
        ("unknown edit 'fake_filtr'", "r.yml:8:10 (before.0.fake_filtr)"),
        ("compat is 'merge'", "r.yml:9:1 (compat)"),
    ]


def test_a_value_for_all_models_inside_one_models_block_is_pointed_out() -> None:
    models = [RecipeModel("a", {"normalize": False}), RecipeModel("b")]
    prepared = prepare(deltas(models=models))
    assert prepared.warnings == (
        "models.0.parameters.normalize: normalize has no effect here: it is one value for all models, under parameters",
    )
    assert prepared.parts[0].resolver.for_tensor("x", None)["normalize"] is True


def test_a_required_value_in_the_wrong_place_is_missing_and_pointed_out(told: Told) -> None:
    checked = check(Recipe("fake_ends", models=[RecipeModel("a", {"t": 0.5}), RecipeModel("b")]))
    assert [error.found for error in checked.errors] == ["fake_ends needs t"]
    assert "t has no effect here" in checked.warnings[0]


def test_a_required_parameter_of_each_model_is_told_for_each() -> None:
    assert found(Recipe("fake_optional", models=["a", "b"])) == [
        ("fake_optional needs weight for each model, and 'a' has none", "parameters: {weight: …}, a number"),
        ("fake_optional needs weight for each model, and 'b' has none", "parameters: {weight: …}, a number"),
    ]


def test_mergekits_requirement_of_weights_holds_under_compat_only() -> None:
    assert found(deltas()) == []
    assert [said for said, _ in found(deltas(compat="mergekit"))] == [
        "fake_deltas needs weight for each model, and 'a' has none",
        "fake_deltas needs weight for each model, and 'b' has none",
    ]
    assert found(deltas(compat="mergekit", parameters={"weight": 1})) == []


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "della", "breadcrumbs"])
def test_mergekits_methods_with_weights_require_them_under_compat(method: str) -> None:
    base = None if method == "linear" else "base"
    recipe = Recipe(method, models=["a"], base_model=base, compat="mergekit")
    assert [said for said, _ in found(recipe)] == [f"{method} needs weight for each model, and 'a' has none"]


def weighted(method: str, *weights: float, **changes: Any) -> Recipe:
    base = None if method in ("fake_weights", "linear", "multislerp") else "base"
    models = [f"m{k}" for k in range(len(weights))]
    return Recipe(method, models=models, base_model=base, parameters={"weight": list(weights), **changes})


def test_weights_that_sum_to_zero_are_refused_where_weights_are_normalised() -> None:
    assert found(weighted("fake_weights", 1, -1)) == [
        ("the weights 1, -1 sum to 0, and normalize divides by their sum", "other weights, or normalize: false")
    ]
    assert found(weighted("fake_weights", 1, -1, normalize=False)) == []
    assert found(weighted("multislerp", 1, -1))[0][1] == "other weights, or normalize_weights: false"


def test_negative_weights_under_normalize_are_pointed_out() -> None:
    for recipe in (weighted("fake_deltas", 1, -0.5), weighted("fake_deltas", -1), weighted("fake_weights", 0.5, -1)):
        (warning,) = prepare(recipe).warnings
        assert "the sign of a negative weight cancels out" in warning
    assert prepare(weighted("fake_deltas", 1, -0.5, normalize=False)).warnings == ()
    assert prepare(weighted("fake_weights", 1.5, -0.5)).warnings == ()  # they sum to 1: nothing is divided


def test_weights_that_differ_between_tensors_are_not_judged() -> None:
    models = [RecipeModel("a", {"weight": [0, 1]}), RecipeModel("b", {"weight": -1})]
    assert check(Recipe("fake_weights", models=models)).warnings == ()


# What users of mergekit stumbled over, by the number of the thread there.


def test_214_what_normalising_makes_of_weights_is_explained() -> None:
    from cuvee.recipes import explain

    recipe = weighted("linear", 0.1, 1.0)
    lines = explain(recipe, prepare(recipe))
    assert "normalize: where all models count, the weights are divided by their sum, 1.1: 0.09091, 0.9091" in lines


def test_23_the_meaning_of_a_list_of_numbers_is_explained() -> None:
    from cuvee.recipes import explain

    recipe = parse_recipe("merge_method: ties\nmodels: [a]\nbase_model: b\nparameters: {density: [1, 0.5]}")
    line = "density: 'a' 1 → 0.5 from the first layer to the last (1 outside the layers)"
    assert line in explain(recipe, prepare(recipe))


def test_336_the_model_at_each_end_of_t_is_explained() -> None:
    from cuvee.recipes import explain

    recipe = Recipe("slerp", models=["a", "b"], base_model="b", parameters={"t": 0.3})
    assert "t = 0 is 'b', t = 1 is 'a'" in explain(recipe, prepare(recipe))


def test_604_the_dtypes_of_arithmetic_and_output_are_explained() -> None:
    from cuvee.recipes import explain

    recipe = Recipe("linear", models=["a"], dtype="float32", out_dtype="bfloat16", exclude=["lm_head.weight"])
    lines = explain(recipe, prepare(recipe))
    assert "computed in float32, rounded once to bfloat16" in lines
    assert "left as they are: 'lm_head.weight'" in lines  # 308: a head is kept by naming it


def test_474_where_a_method_differs_from_its_paper_is_explained() -> None:
    from cuvee.recipes import explain

    recipe = Recipe("ties", models=["a"], base_model="b")
    assert any(line.startswith("differs: ") for line in explain(recipe, prepare(recipe)))


def test_360_layer_ranges_are_not_passed_over(told: Told) -> None:
    text = "merge_method: linear\nmodels: [{model: a, layer_range: [4, 4]}]"
    assert [error.found for error in validate(parse_recipe(text))] == ["layer_range belongs to slices"]


def test_47_a_tokenizer_option_is_never_passed_over(told: Told) -> None:
    text = "merge_method: linear\nmodels: [a]\nparameters: {weight: 1}\ntokenizer_source: base\nchat_template: auto"
    recipe = parse_recipe(text)
    assert (recipe.tokenizer.source, recipe.chat_template) == ("base", "auto")
    (error,) = told(parse_recipe, text.replace("tokenizer_source", "tokeniser_source"))
    assert error.right == "did you mean 'tokenizer_source'?"


def test_442_an_adapter_is_part_of_the_reference() -> None:
    recipe = parse_recipe("merge_method: linear\nmodels: [org/base+org/adapter]")
    assert prepare(recipe).parts[0].experts[0].model == "org/base+org/adapter"


def test_a_base_that_is_an_end_of_nuslerp_is_told_in_plain_words() -> None:
    recipe = Recipe("nuslerp", models=["a", "b"], base_model="a", parameters={"weight": 1})
    ((said, right),) = found(recipe)
    assert said == "nuslerp takes exactly 2 models, and the recipe has 1 besides the base model"
    assert right == "exactly 2 models, the base model not counted"
