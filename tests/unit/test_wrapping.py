"""Edits around a method: LiNeS after it, edits named as the merge method with what they wrap as `inner`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import write_model

import cuvee
from cuvee.errors import CuveeError, RecipeError
from cuvee.methods import registry
from cuvee.methods.registry import edits
from cuvee.recipes import load_recipe, prepare, validate
from cuvee.recipes.meaning import explain

NAMES = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)] + ["model.norm.weight", "lm_head.weight"]
BASE = {name: torch.zeros(1, 1) if "norm" not in name else torch.zeros(1) for name in NAMES}


def model(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in BASE.items()}


def merged(method: str, *models, **settings) -> list[float]:
    found = cuvee.merge_tensors(method, models, BASE, **settings)
    return [round(found[name].item(), 6) for name in NAMES]


def test_lines_scales_the_merged_task_vector_by_depth():
    after = [{"lines": {"alpha": 0.2}}]
    assert merged("task_arithmetic", model(1.0), after=after) == [0.2, 0.6, 1.0, 0.2, 0.2]
    assert merged("task_arithmetic", model(1.0), after=after, scaling=2.0) == [0.4, 1.2, 2.0, 0.4, 0.4]
    deep = [{"lines": {"alpha": 0.2, "beta": 0.4, "head": "deep"}}]
    assert merged("task_arithmetic", model(1.0), after=deep) == [0.2, 0.4, 0.6, 0.2, 0.6]


def test_alpha_is_one_over_k_for_a_sum_and_more_for_what_trimming_left():
    assert merged("lines", model(1.0), model(3.0)) == [2, 3, 4, 2, 2]
    # ties at the mean of those that agree: Σ = 4, merged 2, so alpha = 4 / 2 / 2 = 1, and nothing is left for beta
    assert merged("lines", model(1.0), model(3.0), inner="ties", beta=0.5) == [2, 2.5, 3, 2, 2]


def test_a_single_layer_is_the_last():
    base, expert = ({"model.layers.0.w.weight": torch.full((1, 1), x)} for x in (0.0, 1.0))
    found = cuvee.merge_tensors("lines", [expert], base, alpha=0.25, beta=0.5)
    assert found["model.layers.0.w.weight"].item() == 0.75


def test_an_edit_as_the_method_is_the_edit_around_the_method():
    models = [{name: torch.randn(6, 4) for name in NAMES} for _ in range(2)]
    base = {name: torch.randn(6, 4) for name in NAMES}
    for edit, own, side in (("lines", {"alpha": 0.3}, "after"), ("dare", {"density": 0.5}, "before")):
        one = cuvee.merge_tensors(edit, models, base, inner="ties", normalize=False, **own)
        other = cuvee.merge_tensors("ties", models, base, normalize=False, **{side: [{edit: own}]})
        assert all(torch.equal(one[name], other[name]) for name in NAMES)


def test_an_edit_without_parameters_is_its_name_from_yaml_and_from_python(workplace):
    for name in ("base", "a", "b"):
        write_model(workplace / name, {name: torch.randn(6, 4) for name in NAMES})
    (workplace / "r.yml").write_text(
        "merge_method: ties\nbase_model: base\nmodels: [a, b]\nbefore: [star]\nafter: [lines]"
    )
    plain = cuvee.Recipe("ties", models=["a", "b"], base_model="base", before=["star"], after=["lines"])
    full = cuvee.Recipe("ties", models=["a", "b"], base_model="base", before=[{"star": {}}], after=[{"lines": {}}])
    digests = {cuvee.merge(one, f"out{n}").digest for n, one in enumerate(("r.yml", plain, full))}
    assert len(digests) == 1


@pytest.mark.parametrize("models", ["math", {"w": torch.ones(3)}, torch.nn.Linear(2, 2), torch.nn.Sequential(), 3])
def test_one_model_where_a_list_belongs_is_said(models):
    with pytest.raises(RecipeError, match="and not a list"):
        cuvee.merge_tensors("linear", models)
    with pytest.raises(RecipeError, match="and not a list"):
        cuvee.Recipe("linear", models=models)


def test_what_is_wrong_with_a_wrapped_recipe_is_said_where_it_stands(workplace):
    text = "merge_method: lines\nbase_model: base\nmodels: [a, b]\nparameters:\n  inner: {inner}\n  alpha: {alpha}\n"
    path = workplace / "r.yml"
    path.write_text(text.format(inner="tise", alpha="0.2"))
    (error,) = validate(load_recipe(path))
    assert (
        "unknown merge method 'tise'" in error.found
        and "r.yml:5" in error.where
        and error.right == "did you mean 'ties'?"
    )
    path.write_text(text.format(inner="ties", alpha="much"))
    (error,) = validate(load_recipe(path))
    assert "alpha is 'much'" in error.found and "r.yml:6" in error.where
    path.write_text(text.format(inner="linear", alpha="0.2"))
    errors = validate(load_recipe(path))
    assert any("after edits task vectors, and linear merges weights" in error.found for error in errors)


def test_a_plan_says_what_is_around_the_method_and_what_is_a_reconstruction():
    recipe = cuvee.Recipe("lines", models=["a", "b"], base_model="base", parameters={"inner": "ties_sv", "beta": 0.4})
    said = "\n".join(explain(recipe, prepare(recipe)))
    assert "after, on the merged task vector: lines(alpha=auto, beta=0.4, head=shallow)" in said
    assert "ties_sv (a reconstruction of the paper): τ̂_i" in said
    assert "lines differs: The official code finds layers" in said
    recipe = cuvee.Recipe("ties", models=["a", "b"], base_model="base", before=["lwptv"])
    said = "\n".join(explain(recipe, prepare(recipe)))
    assert (
        "before, on each task vector: lwptv(prune_ratio=0.3, saliency=distinct) (a reconstruction of the paper): s_il"
        in said
    )


def test_a_filter_that_needs_whole_rows_gets_them_before_any_method():
    given = {"w": torch.randn(200_000, generator=torch.Generator().manual_seed(0))}
    base = {"w": torch.zeros(200_000)}
    before = [{"magprune": {"density": 0.5}}]
    whole, blocks = (
        cuvee.merge_tensors("task_arithmetic", [given], base, before=before, block_elements=size)["w"]
        for size in (None, 1 << 16)
    )
    assert torch.equal(whole, blocks)


def test_an_edit_on_the_wrong_side_is_refused_with_the_right_one():
    with pytest.raises(
        CuveeError, match="'lines' cannot stand before the merge: it changes the merged task v"
    ) as caught:
        merged("ties", model(1.0), before=[{"lines": {}}])
    assert caught.value.right == "after: [lines]"
    with pytest.raises(
        CuveeError, match="'dare' cannot stand after the merge: it changes the task vectors of"
    ) as caught:
        merged("ties", model(1.0), after=[{"dare": {"density": 0.5}}])
    assert caught.value.right == "before: [dare: {density: …}]"


def test_an_edit_as_what_is_wrapped_is_refused_with_where_it_goes(workplace):
    (workplace / "r.yml").write_text(
        "merge_method: lines\nbase_model: base\nmodels: [a, b]\nparameters:\n  inner: star\n"
    )
    (error,) = validate(load_recipe(workplace / "r.yml"))
    assert error.found == "'star' is an edit, which goes before a merge method and is none" and "r.yml:5" in error.where
    assert error.right == "before: [star], beside the merge method"
    both = cuvee.Recipe("lines", models=["a", "b"], base_model="base", before=["star"])
    assert validate(both) == []


def test_a_misspelt_edit_in_the_place_of_the_method_is_known():
    (error,) = validate(cuvee.Recipe("lwtpv", models=["a"], base_model="base"))
    assert error.right == "did you mean 'lwptv'?"


def _twice(method="ties", **changes):
    return validate(cuvee.Recipe(method, models=["a", "b"], base_model="base", **changes))


@pytest.mark.parametrize("name", [name for name, step in edits().items() if step.once])
def test_an_edit_that_would_do_nothing_or_nonsense_the_second_time_is_refused_with_the_reason(name):
    step = edits()[name]
    entry = {name: {one.name: 0.5 for one in step.parameters.values() if one.required}}
    (error,) = _twice(**{step.role.value: [entry, entry]})
    assert error.found == f"{name} stands twice {step.role.value} the merge: {step.once}"
    assert error.where == f"{step.role.value}.1.{name}" and error.right == f"one {name}"
    (error,) = _twice(name, parameters=entry[name], **{step.role.value: [entry]})
    assert "stands twice" in error.found
    assert _twice(**{step.role.value: [entry]}) == []


def test_only_scale_may_stand_as_often_as_it_likes():
    assert [name for name, step in edits().items() if not step.once] == ["scale"]
    assert _twice(after=[{"scale": {"factor": 0.5}}, "singular_value_calibration", {"scale": {"factor": 2.0}}]) == []


def test_filters_with_another_between_them_or_of_another_scope_are_two_steps():
    trim = {"trim": {"density": 0.5}}
    assert _twice(before=[trim, {"dare": {"density": 0.5}}]) == []
    assert _twice(before=[trim, "star", trim]) == []
    assert _twice(before=[trim, {"trim": {"density": 0.2, "scope": "model"}}]) == []
    # What a refiner does to the merged task vector it does once, whatever else is done to it.
    (error,) = _twice(after=["lines", {"scale": {"factor": 2.0}}, "lines"])
    assert error.where == "after.2.lines"


@pytest.mark.parametrize(("densities", "one"), [((0.5, 0.3), 0.3), ((0.3, 0.5), 0.3), ((0.5, 0.5), 0.5)])
def test_a_second_trim_is_the_one_with_the_smaller_density_as_it_is_told(monkeypatch, densities, one):
    monkeypatch.setitem(registry._EDITS, "trim", replace(edits()["trim"], once=""))
    given, base = {"w": torch.randn(40, 30)}, {"w": torch.zeros(40, 30)}
    both = [{"trim": {"density": density}} for density in densities]
    twice = cuvee.merge_tensors("task_arithmetic", [given], base, before=both)["w"]
    once = cuvee.merge_tensors("task_arithmetic", [given], base, before=[{"trim": {"density": one}}])["w"]
    assert torch.equal(twice, once)


def test_what_stands_beside_a_wrapping_filter_is_found_in_the_text(workplace):
    text = "merge_method: star\nbase_model: base\nmodels: [a, b]\nbefore:\n  - dare: {density: 0.5}\n  - trim: {density: 2}\n"
    (workplace / "r.yml").write_text(text)
    (error,) = validate(load_recipe(workplace / "r.yml"))
    assert "density is 2" in error.found and "r.yml:6" in error.where
    (workplace / "r.yml").write_text(
        text.replace("density: 2", "density: 0.5").replace("  - dare", "  - star: {}\n  - trim")
    )
    first, second = validate(load_recipe(workplace / "r.yml"))
    assert "star stands twice" in first.found and "r.yml:5" in first.where
    assert "trim stands twice" in second.found and "r.yml:7" in second.where
    (workplace / "r.yml").write_text("merge_method: dare\nbase_model: base\nmodels: [a, b]\n")
    (error,) = validate(load_recipe(workplace / "r.yml"))
    assert error.found == "dare needs density" and "r.yml:1" in error.where


@pytest.mark.parametrize("written", ["trim", {"trim": {}}, None, 3])
@pytest.mark.parametrize(("method", "side"), [("star", "before"), ("lines", "after")])
def test_a_side_that_is_no_list_is_told_once(method, side, written):
    (error,) = _twice(method, **{side: written})
    assert error.found == f"{side} is not a list"
