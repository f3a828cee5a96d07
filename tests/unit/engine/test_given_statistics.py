"""Recipes whose models have statistics: files, memory and direct use mean the same."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee import Recipe, merge_tensors
from cuvee.engine.plan import plan
from cuvee.engine.run import run
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels, MethodError
from cuvee.recipes import RecipeModel
from cuvee.testing.specimens import SMALL, by_place, specimens, statistics_of

GIVEN = specimens(3, SMALL)
HIDDEN = statistics_of(("hidden",), 3)
MAPS = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")


def grams(count):
    generator = torch.Generator().manual_seed(1)
    inputs = [{name: torch.randn(20, 8, generator=generator) for name in MAPS} for _ in range(count)]
    return [{f"gram/{name}": x.mT @ x / len(x) for name, x in own.items()} for own in inputs]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, tensors in {"base": GIVEN.base, **{f"m{k}": model for k, model in enumerate(GIVEN.models)}}.items():
        save_file(tensors, f"{name}.safetensors", {"format": "pt"})
    for k, own in enumerate(HIDDEN):
        save_file(own, f"h{k}.safetensors", {"texts": "the same"})
    for k, own in enumerate(grams(2)):
        save_file(own, f"g{k}.safetensors")
    return tmp_path


def recipe(method, files, more=""):
    listed = "".join(f"  - {{model: m{k}.safetensors, statistics: {file}}}\n" for k, file in enumerate(files))
    return f"merge_method: {method}\nmodels:\n{listed}{more}"


def merged(text, out="out"):
    with open("recipe.yml", "w") as file:
        file.write(text)
    cuvee.merge("recipe.yml", out)
    return load_file(f"{out}/model.safetensors")


def same(got, want):
    return got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


def test_a_recipe_with_files_gives_the_bytes_of_direct_use(workplace):
    got = merged(recipe("recall", ["h0.safetensors", "h1.safetensors", "h2.safetensors"]))
    assert same(got, merge_tensors("recall", GIVEN.models, statistics=by_place(HIDDEN)))
    in_memory = Recipe(
        "recall", models=[RecipeModel(m, statistics=h) for m, h in zip(GIVEN.models, HIDDEN, strict=True)]
    )
    cuvee.merge(in_memory, "other")
    assert same(load_file("other/model.safetensors"), got)


@pytest.mark.parametrize("method", ["bayesian_model_merging", "mats"])
def test_gram_matrices_in_files_give_the_bytes_of_direct_use(workplace, method):
    more = "base_model: base.safetensors\nparameters: {gram: data}\n"
    got = merged(recipe(method, ["g0.safetensors", "g1.safetensors"], more))
    told = by_place(grams(2))
    assert same(got, merge_tensors(method, GIVEN.models[:2], GIVEN.base, statistics=told, gram="data"))
    assert not same(got, merge_tensors(method, GIVEN.models[:2], GIVEN.base, gram="task_vector"))


def test_the_edit_reforge_is_given_them_too(workplace):
    more = "base_model: base.safetensors\nafter: [reforge: {gram: data}]\n"
    got = merged(recipe("task_arithmetic", ["g0.safetensors", "g1.safetensors"], more))
    after = [{"reforge": {"gram": "data"}}]
    told = by_place(grams(2))
    assert same(got, merge_tensors("task_arithmetic", GIVEN.models[:2], GIVEN.base, statistics=told, after=after))


def test_a_name_that_shares_a_tensor_means_it(workplace):
    (own,) = grams(1)
    save_file(own, "plain.safetensors")
    first, second = own
    save_file({first: own[first]}, "shared.safetensors", {"shared": json.dumps({second: first})})
    more = "base_model: base.safetensors\n"
    both = {first: own[first], second: own[first]}
    want = merge_tensors("bayesian_model_merging", GIVEN.models[:1], GIVEN.base, statistics=by_place([both]))
    assert same(merged(recipe("bayesian_model_merging", ["shared.safetensors"], more)), want)


def test_the_manifest_names_the_files_and_the_plan_knows_their_headers(workplace):
    text = recipe("recall", ["h0.safetensors", "h1.safetensors"])
    merged(text)
    manifest = json.loads((workplace / "out/cuvee.json").read_text())
    from blake3 import blake3

    said = [one for one in manifest["inputs"] if one["role"].startswith("statistics")]
    digests = [blake3((workplace / f"h{k}.safetensors").read_bytes()).hexdigest() for k in range(2)]
    assert [(one["model"], one["role"], one["digest"]) for one in said] == [
        (f"h{k}.safetensors", f"statistics of model {k}", digests[k]) for k in range(2)
    ]
    assert manifest["recipe"]["models"][1]["statistics"] == "h1.safetensors"
    before = plan("recipe.yml").plan_id
    save_file({**HIDDEN[1], "gram/model.layers.0.mlp.up_proj": torch.eye(8)}, "h1.safetensors", {"texts": "the same"})
    changed = plan("recipe.yml")
    assert changed.plan_id != before
    assert any("no use for gram" in said for said in changed.warnings)


def test_a_file_that_changes_while_it_is_used_is_noticed(workplace):
    (workplace / "recipe.yml").write_text(recipe("recall", ["h0.safetensors", "h1.safetensors"]))
    planned = plan("recipe.yml")
    (workplace / "h1.safetensors").write_bytes((workplace / "h0.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="changed"):
        run(planned, "out")
    assert not (workplace / "out").exists()


def test_a_run_goes_on_only_with_the_statistics_that_it_began_with(workplace, monkeypatch):
    from cuvee.engine import run as running

    (workplace / "recipe.yml").write_text(recipe("recall", ["h0.safetensors", "h1.safetensors"]))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "build_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        cuvee.merge("recipe.yml", "out")
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert cuvee.merge("recipe.yml", "out").resumed == len(GIVEN.base)
    again = {name: tensor + 1 for name, tensor in HIDDEN[1].items()}
    monkeypatch.setattr(running, "build_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        cuvee.merge("recipe.yml", "out2")
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    save_file(again, "h1.safetensors", {"texts": "the same"})
    assert cuvee.merge("recipe.yml", "out2").resumed == 0
    told = by_place([HIDDEN[0], again])
    assert same(load_file("out2/model.safetensors"), merge_tensors("recall", GIVEN.models[:2], statistics=told))


def test_a_stage_may_have_statistics(workplace):
    text = recipe("recall", ["h0.safetensors", "h1.safetensors"], "name: first\n")
    text += "---\nmerge_method: linear\nmodels: [first, m2.safetensors]\n"
    first = merge_tensors("recall", GIVEN.models[:2], statistics=by_place(HIDDEN[:2]))
    assert same(merged(text), merge_tensors("linear", [first, GIVEN.models[2]]))


def failing(text, error, said, right=""):
    with pytest.raises(error, match=said) as raised:
        merged(text)
    assert re.search(right, str(raised.value)), raised.value


def test_what_is_wrong_with_statistics_is_said(workplace):
    plain = "merge_method: recall\nmodels: [m0.safetensors, m1.safetensors]\n"
    failing(plain, CuveeError, "needs 'hidden' of", "cuvee collect hidden m0.safetensors texts.txt a.safetensors")
    failing(recipe("recall", ["h0.safetensors", "g0.safetensors"]), MethodError, "which holds none", "recipe.yml:4")
    failing(recipe("recall", ["h0.safetensors", "none.safetensors"]), CheckpointError, "no such file", "cuvee collect")
    failing(recipe("recall", ["h0.safetensors", "m1.safetensors"]), CheckpointError, "holds no statistics")
    failing(recipe("recall", ["h0.safetensors", "[]"]), CuveeError, "statistics is")
    save_file(HIDDEN[1], "other.safetensors", {"texts": "others"})
    failing(recipe("recall", ["h0.safetensors", "other.safetensors"]), IncompatibleModels, "different texts")
    save_file({"gram/nothing.here": torch.eye(8)}, "strange.safetensors")
    more = "base_model: base.safetensors\n"
    failing(recipe("mats", ["strange.safetensors", "strange.safetensors"], more), IncompatibleModels, "belongs to")
    failing(recipe("mats", ["g0.safetensors"], "parameters: {gram: data}\n") + "  - m1.safetensors\n", CuveeError, ".")
    one = "{model: m0.safetensors, layer_range: [0, 2], statistics: h0.safetensors}"
    sliced = f"merge_method: linear\nslices:\n- sources: [{one}]\n"
    failing(sliced, CuveeError, "belong to whole models", "recipe.yml:3")
    for name, metadata in {"a": {"shared": "["}, "b": {"shared": '{"x/y": "none"}'}, "c": {"shared": "[1]"}}.items():
        save_file(HIDDEN[0], f"{name}.safetensors", metadata)
        failing(recipe("recall", ["h0.safetensors", f"{name}.safetensors"]), CheckpointError, "holds no statistics")
    for name, bad in {"nan": torch.full((5, 8), torch.nan), "short": torch.zeros(4, 8), "flat": torch.zeros(5)}.items():
        save_file({**HIDDEN[1], "hidden/model.layers.0": bad}, f"{name}.safetensors", {"texts": "the same"})
        failing(recipe("recall", ["h0.safetensors", f"{name}.safetensors"]), MethodError, "hidden states")
    save_file({f"gram/{MAPS[0]}": torch.eye(7)}, "seven.safetensors")
    failing(recipe("mats", ["seven.safetensors"], more), CuveeError, "Gram matrix of shape")
    assert not (workplace / "out").exists()


def test_recall_weighs_layers_by_likeness_to_the_newest_model():
    one, newest = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    told = {
        "hidden/model0/h.0": one,
        "hidden/model1/h.0": newest,
        "hidden/model0/h.1": one + 98.0,
        "hidden/model1/h.1": newest,
    }
    names = ["embed.weight", "h.0.w", "h.1.w", "norm.weight"]
    models = [{name: torch.full((2, 2), value) for name in names} for value in (0.0, 1.0)]
    got = merge_tensors("recall", models, statistics=told, temperature=0.5)
    # the newest's states are 2 apart, so σ² = 4, and the other's lie 1 away: s = exp(−1/8); in the last layer 0
    near = torch.softmax(torch.tensor([torch.tensor(-1 / 8).exp(), 1.0]) / 0.5, 0)[1]
    far = torch.softmax(torch.tensor([0.0, 1.0]) / 0.5, 0)[1]
    for name, wanted in zip(names, (near, near, far, far), strict=True):
        torch.testing.assert_close(got[name], torch.full((2, 2), float(wanted)))


def test_what_lies_outside_the_layers_of_recall_belongs_to_its_stack():
    from cuvee.methods.papers.recall import layer_of

    layers = [f"{stack}.layers.{n}" for stack in ("decoder", "encoder") for n in range(12)]
    assert layer_of("encoder.layers.10.w", "other", layers) == "encoder.layers.10"
    assert layer_of("encoder.layers.1.w", "other", layers) == "encoder.layers.1"
    assert layer_of("encoder.embed_positions.weight", "position", layers) == "encoder.layers.0"
    assert layer_of("encoder.norm.weight", "norm", layers) == "encoder.layers.11"
    assert layer_of("lm_head.weight", "head", layers) == "encoder.layers.11"


@pytest.mark.parametrize(("method", "command"), [("mats", "cuvee collect gram MODEL"), ("linear", "leave it out")])
def test_a_file_that_is_missing_is_answered_with_what_this_method_takes(method, command, tmp_path):
    recipe = cuvee.Recipe(method, models=[cuvee.RecipeModel("a", statistics=str(tmp_path / "no.safetensors")), "b"])
    with pytest.raises(CheckpointError, match="no such file of statistics") as caught:
        cuvee.plan(recipe)
    assert caught.value.right.startswith(command)
