"""A plan carried out in memory gives what a run publishes."""

from __future__ import annotations

import json

import pytest
from models import assert_equal, read_folder, write_family

import cuvee
from cuvee.engine.in_memory import compute
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
