"""Slices: what the text says becomes parts, each with its models, its base and its settings."""

from __future__ import annotations

from typing import Any

import pytest

from cuvee.recipes import Prepared, Recipe, RecipeModel, Region, Slice, explain, parse_recipe, prepare, validate

STACKED = """\
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4], parameters: {scale: 0.5}}]
"""


def experts(prepared: Prepared) -> list[Any]:
    return [[(one.model, one.layer_range) for one in part.experts] for part in prepared.parts]


def two(method: str, *sources: Any, base: Any = None, **parameters: Any) -> Recipe:
    return Recipe(method, slices=[Slice(sources)], base_model=base, parameters=parameters)


def test_a_slice_is_a_part_and_the_ends_are_made_as_first_and_last_say() -> None:
    prepared = prepare(parse_recipe(STACKED))
    assert [part.part.region for part in prepared.parts] == [
        Region.BEFORE,
        Region.LAYERS,
        Region.LAYERS,
        Region.AFTER,
    ]
    assert experts(prepared) == [[("a", (0, 3))], [("a", (0, 3))], [("b", (1, 4))], [("b", (1, 4))]]
    assert [(part.part.first, part.part.count) for part in prepared.parts[1:3]] == [(0, 3), (3, 3)]
    assert prepared.models == ("a", "b")


def test_settings_are_asked_at_the_source_the_slice_and_the_top_in_this_order() -> None:
    only_mlp = [{"filter": "mlp", "value": 0.25}]
    sources = (RecipeModel("a", {"weight": only_mlp}, (0, 2)), RecipeModel("b", {}, (0, 2)))
    recipe = Recipe(
        "linear",
        slices=[Slice(sources, {"weight": [{"filter": "norm", "value": 3}]})],
        parameters={"weight": 7},
    )
    resolver = prepare(recipe).parts[1].resolver
    assert resolver.for_tensor("mlp", 0.0)["weight"] == [0.25, 7.0]
    assert resolver.for_tensor("norm", 0.0)["weight"] == [3.0, 3.0]
    assert resolver.for_tensor("x", 0.0)["weight"] == [7.0, 7.0]


def test_filters_of_a_model_look_at_its_own_name_and_those_of_all_at_the_outputs() -> None:
    sources = (RecipeModel("a", {}, (0, 2)), RecipeModel("b", {}, (2, 4)))
    recipe = Recipe(
        "linear",
        slices=[Slice(sources)],
        parameters={
            "weight": [[{"filter": ".2.", "value": 5}, {"value": 1}]] * 2,
            "normalize": [{"filter": ".0.", "value": False}, {"value": True}],
        },
    )
    arguments = prepare(recipe).parts[1].resolver.for_tensor("layers.0.w", 0.0, names=["layers.0.w", "layers.2.w"])
    assert arguments["weight"] == [1.0, 5.0]
    assert arguments["normalize"] is False


def test_the_same_model_twice_in_a_slice_counts_twice_and_once_under_compat() -> None:
    sources = (RecipeModel("a", {"weight": 0.25}, (0, 2)), RecipeModel("a", {"weight": 0.75}, (2, 4)))
    recipe = two("linear", *sources)
    assert experts(prepare(recipe))[1] == [("a", (0, 2)), ("a", (2, 4))]
    as_mergekit = prepare(Recipe("linear", slices=recipe.slices, compat="mergekit"))
    assert experts(as_mergekit)[1] == [("a", (2, 4))]
    assert as_mergekit.parts[1].resolver.for_tensor("x", 0.0)["weight"] == [0.25]
    assert any("mergekit takes a model once" in warning for warning in as_mergekit.warnings)


def test_the_tensors_after_the_layers_have_all_models_of_the_last_slice_and_under_compat_as_many_as_the_first() -> None:
    slices = [
        Slice([RecipeModel("a", {"weight": 1}, (0, 2))]),
        Slice([RecipeModel("a", {"weight": 1}, (2, 4)), RecipeModel("b", {"weight": 1}, (2, 4))]),
    ]
    assert [one[0] for one in experts(prepare(Recipe("linear", slices=slices)))[-1]] == ["a", "b"]
    assert [one[0] for one in experts(prepare(Recipe("linear", slices=slices, compat="mergekit")))[-1]] == ["a"]


def test_a_base_that_is_not_listed_takes_part_with_the_layers_of_the_others() -> None:
    (_, layers, _) = prepare(two("ties", RecipeModel("a", {}, (2, 4)), base="base")).parts
    assert layers.base == RecipeModel("base", {}, (2, 4))
    apart = two("ties", RecipeModel("a", {}, (2, 4)), RecipeModel("b", {}, (0, 2)), base="base")
    (error,) = validate(apart)
    assert "which the base model 'base' takes part with is not said" in error.found


def test_a_listed_base_takes_part_with_its_own_layers() -> None:
    (_, layers, _) = prepare(two("ties", RecipeModel("a", {}, (2, 4)), RecipeModel("c", {}, (0, 2)), base="c")).parts
    assert layers.base == RecipeModel("c", {}, (0, 2))
    assert [one.model for one in layers.experts] == ["a"]


def test_the_base_of_a_slice_comes_before_the_recipes() -> None:
    slices = [
        Slice([RecipeModel("a", {}, (0, 2))], base_model="c"),
        Slice([RecipeModel("a", {}, (2, 4))]),
    ]
    prepared = prepare(Recipe("ties", slices=slices, base_model="b"))
    assert [part.base.model for part in prepared.parts if part.base] == ["c", "c", "b", "b"]
    assert [prepared.base_number(part) for part in prepared.parts] == [0, 0, -1, -1]
    assert prepared.models == ("c", "a")


def test_an_end_without_layers_gives_embeddings_or_head_alone() -> None:
    slices = [Slice([RecipeModel("a", {}, (0, 0))]), Slice([RecipeModel("b", {}, (0, 4))])]
    assert experts(prepare(Recipe("passthrough", slices=slices))) == [
        [("a", (0, 0))],
        [("b", (0, 4))],
        [("b", (0, 4))],
    ]


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ([(4, 4)], "the slices have no layers"),
        ([(5, 4)], "layer_range [5, 4] is empty: its end is not included"),
        ([(0, 2), (0, 3)], "the sources of a slice have 2, 3 layers"),
        ([(0, 2, 3)], "layer_range is [0, 2, 3]"),
        ([(-1, 2)], "layer_range is [-1, 2]"),
        ([None], "the source has no layer_range"),
        ([(0.0, 2)], "layer_range is [0.0, 2]"),
        ([(True, 2)], "layer_range is [True, 2]"),
        ([], "the slice has no sources"),
    ],
)
def test_ranges_that_make_no_layers_are_refused(sources: list[Any], found: str) -> None:
    models = [RecipeModel(name, {"weight": 1}, layers) for name, layers in zip("ab", sources, strict=False)]
    assert found in [error.found for error in validate(two("linear", *models))]


def test_an_empty_slice_between_others_is_refused() -> None:
    slices = [Slice([RecipeModel("a", {}, layers)]) for layers in ((0, 2), (2, 2), (2, 4))]
    (error,) = validate(Recipe("passthrough", slices=slices))
    assert error.found == "layer_range [2, 2] is empty: its end is not included"
    assert error.right == "layer_range: [2, 3]"


def test_a_method_with_too_few_or_many_models_says_so_of_the_slice_with_its_place() -> None:
    text = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]"
    (error,) = validate(parse_recipe(text, name="r.yml"))
    assert error.found == "passthrough takes exactly 1 model, and the slice has 2"
    assert error.where == "r.yml:3:3 (slices.0.sources)"


def test_models_and_slices_exclude_each_other() -> None:
    text = STACKED + "models: [a]\n"
    assert "models and slices are both given" in [error.found for error in validate(parse_recipe(text))]


def test_an_unknown_key_of_a_slice_is_named_with_its_place() -> None:
    text = "merge_method: passthrough\nslices:\n- {source: [{model: a, layer_range: [0, 2]}]}"
    with pytest.raises(Exception, match=r"unknown key 'source'[^\n]*\n  where: <recipe>:3:4 \(slices.0.source\)"):
        parse_recipe(text)


def test_what_slices_mean_is_said_slice_by_slice() -> None:
    recipe = parse_recipe(STACKED)
    lines = explain(recipe, prepare(recipe))
    assert "layers 0 to 2: models 'a' 0 to 2" in lines
    assert "layers 3 to 5: models 'b' 1 to 3; scale: 'b' 0.5" in lines
    assert "before the layers: models 'a'" in lines


def test_an_unknown_parameter_has_no_effect_under_compat_and_is_an_error_without() -> None:
    text = "merge_method: passthrough\nmodels: [a]\nparameters: {wieght: 1}\n"
    assert [error.found for error in validate(parse_recipe(text))] == ["passthrough has no parameter 'wieght'"]
    said = prepare(parse_recipe(text + "compat: mergekit\n")).warnings
    assert any("no effect, as in mergekit" in warning for warning in said)


def test_modules_are_parts_with_settings_of_their_own() -> None:
    text = """\
merge_method: linear
modules:
  encoder: {models: [a, b], parameters: {weight: 1}}
  decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 2], parameters: {weight: 3}}]
parameters: {weight: 5}
"""
    prepared = prepare(parse_recipe(text))
    assert [(part.part.module, part.part.region) for part in prepared.parts] == [
        ("encoder", Region.WHOLE),
        ("decoder", Region.BEFORE),
        ("decoder", Region.LAYERS),
        ("decoder", Region.AFTER),
    ]
    assert [part.resolver.constant("weight") for part in prepared.parts] == [[1.0, 1.0], [3.0], [3.0], [3.0]]
    assert prepared.models == ("a", "b")


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("{}", "has neither models nor slices"),
        ("{models: [a], slices: [{sources: [a]}]}", "has both models and slices"),
    ],
)
def test_a_module_has_models_or_slices(module: str, found: str) -> None:
    errors = validate(parse_recipe(f"merge_method: linear\nmodules: {{encoder: {module}}}"))
    assert any(found in error.found for error in errors)
