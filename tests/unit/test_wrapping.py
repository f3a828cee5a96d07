"""Edits around a method: LiNeS after it, edits named as the merge method with what they wrap as `inner`."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import CuveeError
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
