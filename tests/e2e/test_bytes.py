"""The same bytes: of every file for any threads, memory and sharding of the inputs; of every tensor for any shard size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import LLAMA, assert_equal, assert_same_bytes, contents, family, llama_shapes, read_folder, write_model

import cuvee
from cuvee.checkpoints.writing import INDEX_NAME
from cuvee.engine.budget import Budget
from cuvee.recipes import Recipe, RecipeModel
from cuvee.tensors import kernels

# Large enough that tensors have several leaves: an embedding of 500 × 512, matrices of 300 × 512, and long vectors.
CONFIG = {**LLAMA, "hidden_size": 512, "intermediate_size": 300, "vocab_size": 500, "num_hidden_layers": 1}
EXTRA = {"other.long_bias": (150_001,), "other.kernel.weight": (70, 40, 5, 5), "other.scale": (), "other.none": (0, 3)}

RECIPES = {
    "linear": {"weight": [0.5, 0.3, 0.2]},
    "ties": {"density": 0.3, "weight": 0.7},
    "ties, whole model": {
        "density": 0.2,
        "trim_scope": "model",
        "inclusive_threshold": True,
        "tie_sign": "global_majority",
        "merge_func": "mean",
    },
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.7, "gamma": 0.02},
    "sce": {"select_topk": 0.4},
    "model_stock": {},
    "karcher": {},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The same models, written thrice: in one file, in shards, and in other shards in another order."""
    root = tmp_path_factory.mktemp("inputs")
    base, experts = family(3, {**llama_shapes(CONFIG), **EXTRA}, dtype=torch.bfloat16)
    for place, options in {
        "single": {},
        "sharded": {"shards": 3},
        "shuffled": {"shards": 4, "shuffle": 5},
    }.items():
        for name, tensors in zip(("base", "math", "code", "chat"), (base, *experts), strict=True):
            tensors = {**tensors, "other.steps": torch.arange(9)}
            write_model(root / place / name, tensors, CONFIG, others={"tokenizer.json": "{}"}, **options)
    return root


def recipe_of(label: str) -> Recipe:
    method = label.split(",")[0]
    with_base = method not in ("linear", "karcher")
    return Recipe(
        method, models=["math", "code", "chat"], base_model="base" if with_base else None, parameters=RECIPES[label]
    )


def run(label: str, place: Path, out: Path, monkeypatch, budget: Budget | None, **options) -> None:
    monkeypatch.chdir(place)
    plan = cuvee.plan(recipe_of(label), **options)
    cuvee.run(replace(plan, budget=budget or plan.budget), out)


# the others go through the same reductions
QUICK = {"linear", "ties, whole model", "dare_ties", "karcher"}
EACH = [pytest.param(label, marks=[] if label in QUICK else pytest.mark.slow) for label in RECIPES]


@pytest.mark.parametrize("label", EACH)
def test_files_are_the_same_for_any_threads_blocks_and_input_shards(label, inputs, tmp_path, monkeypatch):
    variants = {
        "as planned": ("single", None),
        "one thread, whole tensors": ("shuffled", Budget(1, 1 << 26, 0)),
        "one thread, small blocks": ("single", Budget(1, 1 << 16, 0)),
        "two threads": ("sharded", Budget(2, 1 << 17, 0)),
        "four threads": ("shuffled", Budget(4, 1 << 16, 0)),
    }
    results = {}
    for number, (variant, (place, budget)) in enumerate(variants.items()):
        run(label, inputs / place, tmp_path / str(number), monkeypatch, budget)
        results[variant] = contents(tmp_path / str(number))
    first = results.pop("as planned")
    assert {"model.safetensors", "config.json", "cuvee.json", "README.md", "tokenizer.json"} == set(first)
    for variant, found in results.items():
        assert_same_bytes(found, first, variant)


@pytest.mark.parametrize("label", ["linear", "ties", "model_stock"])
def test_files_are_the_same_where_no_kernel_reads_or_digests(label, inputs, tmp_path, monkeypatch):
    run(label, inputs / "sharded", tmp_path / "with", monkeypatch, None)
    monkeypatch.setattr(kernels, "digests", lambda: False)
    run(label, inputs / "sharded", tmp_path / "without", monkeypatch, None)
    assert_same_bytes(contents(tmp_path / "with"), contents(tmp_path / "without"))


@pytest.mark.parametrize("label", ["linear", "ties", pytest.param("ties, whole model", marks=pytest.mark.slow)])
def test_tensors_are_the_same_for_any_shard_size(label, inputs, tmp_path, monkeypatch):
    outputs = []
    for number, size in enumerate((10**12, 2_000_000, 700_000, 1)):
        run(label, inputs / "single", tmp_path / str(number), monkeypatch, Budget(2, 1 << 18, 0), shard_size=size)
        outputs.append(tmp_path / str(number))
    whole, *cut = (read_folder(out) for out in outputs)
    manifest, *others = (json.loads((out / "cuvee.json").read_text())["output"] for out in outputs)
    for tensors, other, out in zip(cut, others, outputs[1:], strict=True):
        assert_equal(tensors, whole)
        assert other["digest"] == manifest["digest"]
        assert {n: t["blake3"] for n, t in other["tensors"].items()} == {
            n: t["blake3"] for n, t in manifest["tensors"].items()
        }
        index = json.loads((out / INDEX_NAME).read_text())
        assert index["weight_map"] == {name: tensor["file"] for name, tensor in other["tensors"].items()}
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


def test_memory_and_threads_are_options_that_leave_no_trace(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs / "single")
    for number, options in enumerate(({}, {"memory": 330_000_000}, {"threads": 3}, {"memory": 10**9, "threads": 1})):
        cuvee.merge(recipe_of("ties"), tmp_path / str(number), **options)
        assert_same_bytes(contents(tmp_path / str(number)), contents(tmp_path / "0"))


def test_files_hold_what_merging_in_memory_gives(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs / "single")
    models = {name: read_folder(Path(name)) for name in ("base", "math", "code", "chat")}
    for number, label in enumerate(RECIPES):
        recipe = recipe_of(label)
        cuvee.merge(recipe, tmp_path / str(number))
        base = models["base"] if recipe.base_model else None
        experts = [models["math"], models["code"], models["chat"]]
        expected = cuvee.merge_tensors(recipe.merge_method, experts, base, **RECIPES[label])
        assert_equal(read_folder(tmp_path / str(number)), expected)


def test_merging_twice_gives_the_same_and_another_seed_gives_another(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs / "single")
    recipe = recipe_of("dare_ties")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cuvee.merge(replace(recipe, seed=seed), tmp_path / name)
    assert_same_bytes(contents(tmp_path / "a"), contents(tmp_path / "b"))
    one, other = read_folder(tmp_path / "a"), read_folder(tmp_path / "c")
    assert all(not torch.equal(one[name], other[name]) for name in ("other.long_bias", "model.embed_tokens.weight"))


def test_a_models_own_parameters_are_those_of_the_list(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs / "single")
    weights = {"math": 0.5, "code": 0.3, "chat": 0.2}
    models = [RecipeModel(name, {"weight": weight}) for name, weight in weights.items()]
    cuvee.merge(Recipe("linear", models=models), tmp_path / "one")
    cuvee.merge(recipe_of("linear"), tmp_path / "other")
    assert_equal(read_folder(tmp_path / "one"), read_folder(tmp_path / "other"))


def test_the_manifest_names_what_was_read_and_what_was_written(inputs, tmp_path, monkeypatch):
    run("ties", inputs / "sharded", tmp_path / "out", monkeypatch, Budget(2, 1 << 16, 0))
    manifest = json.loads((tmp_path / "out" / "cuvee.json").read_text())
    assert [entry["model"] for entry in manifest["inputs"]] == ["math", "code", "chat", "base"]
    written = read_folder(tmp_path / "out")
    assert manifest["output"]["tensors"].keys() == written.keys()
    for name, tensor in manifest["output"]["tensors"].items():
        assert tensor["shape"] == list(written[name].shape)
    assert manifest["left_out"]["other.steps"] == "whole numbers are not merged; from base"
    text = json.dumps(manifest)
    assert str(inputs) not in text and str(tmp_path) not in text
    # An input's digest is of its tensors alone: the same for any sharding, another for another model.
    digests = [entry["digest"] for entry in manifest["inputs"]]
    run("ties", inputs / "single", tmp_path / "again", monkeypatch, Budget(1, 1 << 18, 0))
    again = json.loads((tmp_path / "again" / "cuvee.json").read_text())
    assert digests == [entry["digest"] for entry in again["inputs"]] and len(set(digests)) == 4
