"""A plan carried out in memory gives what a run publishes."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from models import assert_equal, read_folder, write_family
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.engine.in_memory import compute
from cuvee.errors import NonFinite
from cuvee.evaluation.in_memory import in_memory

SETTINGS = {
    "linear": "{}",
    "ties": "{density: 0.3}",  # measures every tensor
    "dare_ties": "{density: 0.5}",  # draws
    "tsv_m": "{}",  # on matrices
    "ram": "{}",  # measures the whole model
}
STAGES = """\
name: mean
merge_method: linear
models: [math, code]
parameters: {weight: 1}
---
name: trimmed
merge_method: ties
base_model: base
models: [mean, chat]
parameters: {density: 0.5}
---
merge_method: task_arithmetic
base_model: base
models: [trimmed, code]
parameters: {weight: 0.5}
dtype: bfloat16
"""


@pytest.fixture
def family(workplace):
    write_family(workplace, others={"tokenizer.json": "{}"})
    return workplace


def recipe_of(method):
    base = "" if method == "linear" else "base_model: base\n"
    extra = "" if method != "linear" else "{weight: 1}"
    return (
        f"merge_method: {method}\n{base}models: [math, code, chat]\nparameters: {extra or SETTINGS[method]}\nseed: 3\n"
    )


@pytest.mark.parametrize("method", [*SETTINGS, "stages"])
def test_a_plan_in_memory_gives_the_bytes_of_a_run(family, method):
    (family / "recipe.yml").write_text(STAGES if method == "stages" else recipe_of(method))
    before = sorted(path.name for path in family.iterdir())
    computed = compute(cuvee.plan("recipe.yml"))
    assert sorted(path.name for path in family.iterdir()) == before
    cuvee.merge("recipe.yml", "out")
    assert_equal(computed, read_folder(family / "out"))


def test_a_recipe_is_read_as_the_model_that_it_makes(family):
    (family / "recipe.yml").write_text(STAGES)
    merged = in_memory("recipe.yml")
    cuvee.merge("recipe.yml", "out")
    read = in_memory("out")
    assert_equal(merged.tensors, read.tensors)
    assert merged.config == read.config == json.loads((family / "out" / "config.json").read_text())
    assert {one.name for one in merged.sidecars} == {one.name for one in read.sidecars} == {"tokenizer.json"}
    assert merged.label == "recipe.yml"


@pytest.mark.parametrize("recipe", [recipe_of("linear"), recipe_of("ties"), STAGES])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_are_refused_as_a_run_refuses_them(family, recipe, value):
    (family / "recipe.yml").write_text(recipe)
    file = family / "code" / "model.safetensors"
    tensors = load_file(file)
    spoiled = min(tensors)
    tensors[spoiled].view(-1)[1] = value
    save_file(tensors, file)
    with pytest.raises(NonFinite) as by_run:
        cuvee.merge("recipe.yml", "out")
    with pytest.raises(NonFinite) as in_memory_:
        compute(cuvee.plan("recipe.yml"))
    assert in_memory_.value.found == by_run.value.found and spoiled in by_run.value.found
    assert "allow_nan=True (cuvee merge --allow-nan)" in in_memory_.value.right
    with pytest.raises(NonFinite):
        in_memory("recipe.yml")
    merged = compute(cuvee.plan("recipe.yml"), allow_nan=True)
    cuvee.merge("recipe.yml", "out", allow_nan=True)
    published = read_folder(family / "out")
    with pytest.raises(NonFinite, match=re.escape(repr(spoiled))):
        in_memory(file.parent)
    for found in (merged, in_memory("recipe.yml", allow_nan=True).tensors, in_memory("out", allow_nan=True).tensors):
        assert all(torch.equal(one.nan_to_num(7.0), found[name].nan_to_num(7.0)) for name, one in published.items())


def test_what_only_the_merge_makes_infinite_is_refused_too(family):
    recipe = recipe_of("linear").replace("{weight: 1}", "{weight: 1e6, normalize: false}")
    (family / "recipe.yml").write_text(recipe + "dtype: float16\n")
    with pytest.raises(NonFinite, match="the merge makes"):
        compute(cuvee.plan("recipe.yml"))
