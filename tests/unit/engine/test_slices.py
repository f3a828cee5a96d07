"""Slices end to end: the tensors, the config, and what is refused before anything is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LLAMA, Tensors, assert_equal, family, llama_shapes, read_folder, write_model

import cuvee
from cuvee.errors import CuveeError, IncompatibleModels, Problems, RecipeError
from cuvee.recipes import Recipe, RecipeModel, Slice

FOUR = {**LLAMA, "num_hidden_layers": 4}


def layer(tensors: Tensors, number: int) -> Tensors:
    prefix = f"model.layers.{number}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Tensors]:
    base, (a, b) = family(2, llama_shapes(FOUR))
    for name, tensors in {"base": base, "a": a, "b": b}.items():
        write_model(tmp_path / name, tensors, FOUR)
    return {"base": base, "a": a, "b": b}


def source(folder: Path, name: str, first: int, end: int, **parameters: Any) -> RecipeModel:
    return RecipeModel(str(folder / name), parameters, (first, end))


def merged(folder: Path, recipe: Recipe, **options: Any) -> tuple[Tensors, dict[str, Any]]:
    cuvee.merge(recipe, folder / "out", **options)
    return read_folder(folder / "out"), json.loads((folder / "out" / "config.json").read_text())


def test_layers_are_copied_in_the_order_of_the_slices_and_numbered_anew(models, tmp_path):
    slices = [
        Slice([source(tmp_path, "a", 0, 3)]),
        Slice([source(tmp_path, "b", 1, 2)]),
        Slice([source(tmp_path, "b", 1, 4)]),
    ]
    out, config = merged(tmp_path, Recipe("passthrough", slices=slices))
    assert config["num_hidden_layers"] == 7
    came_from = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 1), ("b", 2), ("b", 3)]
    for number, (name, original) in enumerate(came_from):
        assert_equal(layer(out, number), layer(models[name], original))
    assert torch.equal(out["model.embed_tokens.weight"], models["a"]["model.embed_tokens.weight"])
    assert torch.equal(out["model.norm.weight"], models["b"]["model.norm.weight"])
    assert torch.equal(out["lm_head.weight"], models["b"]["lm_head.weight"])
    assert len(out) == 7 * 9 + 3


def test_slices_that_cover_one_model_make_that_model(models, tmp_path):
    slices = [Slice([source(tmp_path, "a", 0, 1)]), Slice([source(tmp_path, "a", 1, 4)])]
    out, config = merged(tmp_path, Recipe("passthrough", slices=slices))
    assert_equal(out, models["a"])
    assert config["num_hidden_layers"] == 4


def test_the_same_model_may_stand_twice_in_a_slice(models, tmp_path):
    slices = [Slice([source(tmp_path, "a", 0, 2, weight=0.25), source(tmp_path, "a", 2, 4, weight=0.75)])]
    out, _ = merged(tmp_path, Recipe("linear", slices=slices))
    for number in (0, 1):
        one, other, got = layer(models["a"], number), layer(models["a"], number + 2), layer(out, number)
        for name in got:
            assert torch.allclose(got[name], 0.25 * one[name] + 0.75 * other[name], atol=1e-7)
    assert torch.equal(out["lm_head.weight"], models["a"]["lm_head.weight"])


def test_task_vectors_of_a_slice_are_taken_from_the_layers_of_the_base(models, tmp_path):
    slices = [Slice([source(tmp_path, "a", 2, 4, weight=0.5)])]
    out, config = merged(tmp_path, Recipe("task_arithmetic", slices=slices, base_model=str(tmp_path / "base")))
    assert config["num_hidden_layers"] == 2
    for number in (0, 1):
        base, expert = layer(models["base"], number + 2), layer(models["a"], number + 2)
        for name, got in layer(out, number).items():
            assert torch.allclose(got, base[name] + 0.5 * (expert[name] - base[name]), atol=1e-7)


def test_a_gradient_runs_over_the_layers_of_a_slice_and_starts_outside_of_them(models, tmp_path):
    slices = [
        Slice([source(tmp_path, "a", 0, 3), source(tmp_path, "b", 0, 3)], {"t": [0, 1]}),
        Slice([source(tmp_path, "a", 3, 4), source(tmp_path, "b", 3, 4)], {"t": [0, 1]}),
    ]
    planned = cuvee.plan(Recipe("slerp", slices=slices, base_model=str(tmp_path / "a")))
    t = {task.name: task.arguments["t"] for task in planned.tasks}
    ups = [t[f"model.layers.{n}.mlp.up_proj.weight"] for n in range(4)]
    assert ups == [0.0, 0.5, 1.0, 1.0]  # one layer alone is at the end of its gradient
    assert t["model.embed_tokens.weight"] == t["lm_head.weight"] == 0.0


def test_the_manifest_names_the_tensors_as_the_models_do(models, tmp_path):
    slices = [Slice([source(tmp_path, "a", 3, 4)])]
    merged(tmp_path, Recipe("passthrough", slices=slices))
    (given,) = json.loads((tmp_path / "out" / "cuvee.json").read_text())["inputs"]
    read = {name for name in given["tensors"] if "layers" in name}
    assert read == {name for name in models["a"] if name.startswith("model.layers.3.")}
    assert "model.layers.0.mlp.up_proj.weight" in given["unread"]


def test_the_bytes_are_the_same_for_any_shards_and_threads(models, tmp_path):
    base = str(tmp_path / "base")
    slices = [
        Slice([source(tmp_path, "a", 0, 3, density=0.25), source(tmp_path, "b", 0, 3)]),
        Slice([source(tmp_path, "b", 0, 2), source(tmp_path, "a", 2, 4), source(tmp_path, "base", 0, 2)]),
    ]
    recipe = Recipe("dare_ties", slices=slices, base_model=base, parameters={"density": 0.5})
    outs = []
    for number, (threads, shard) in enumerate([(1, 10**9), (4, 20_000)]):
        cuvee.merge(recipe, tmp_path / f"out{number}", threads=threads, shard_size=shard)
        outs.append(read_folder(tmp_path / f"out{number}"))
    assert_equal(*outs)


@pytest.mark.parametrize("ends", ["aa", "ab"])
def test_a_tied_head_stays_tied_where_both_ends_are_of_one_model(tmp_path, ends):
    config = {**FOUR, "tie_word_embeddings": True}
    _, (a, b) = family(2, llama_shapes(config))
    write_model(tmp_path / "a", a, config)
    write_model(tmp_path / "b", b, config)
    slices = [Slice([source(tmp_path, name, 0, 2)]) for name in ends]
    out, said = merged(tmp_path, Recipe("passthrough", slices=slices))
    assert said["tie_word_embeddings"] is (ends == "aa")
    assert ("lm_head.weight" in out) is (ends == "ab")
    if ends == "ab":
        assert torch.equal(out["lm_head.weight"], b["model.embed_tokens.weight"])
        assert torch.equal(out["model.embed_tokens.weight"], a["model.embed_tokens.weight"])


def test_lists_of_the_config_with_an_entry_a_layer_follow_their_layers(models, tmp_path):
    kinds = ["sliding_attention", "full_attention"] * 2
    for name in ("a", "b"):
        config = {**FOUR, "layer_types": kinds if name == "a" else kinds[::-1], "mlp_only_layers": [1, 2]}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    slices = [Slice([source(tmp_path, "a", 0, 3)]), Slice([source(tmp_path, "b", 0, 2)])]
    _, config = merged(tmp_path, Recipe("passthrough", slices=slices))
    assert config["layer_types"] == [*kinds[:3], *kinds[::-1][:2]]
    assert config["mlp_only_layers"] == [1, 2, 4]


def refused(recipe: Recipe) -> list[CuveeError]:
    with pytest.raises(CuveeError) as raised:
        cuvee.plan(recipe)
    return list(raised.value.errors) if isinstance(raised.value, Problems) else [raised.value]


def test_layers_that_a_model_does_not_have_are_refused_before_reading(models, tmp_path):
    slices = [Slice([source(tmp_path, "a", 0, 5)]), Slice([source(tmp_path, "b", 3, 9)])]
    errors = refused(Recipe("passthrough", slices=slices))
    assert [type(error) for error in errors] == [RecipeError] * 2
    assert errors[0].found.startswith("layer_range [0, 5] ends after layer 4, and ")
    assert errors[0].found.endswith("has 4 layers, 0 to 3")
    assert errors[0].right == "an end of at most 4: the end is not included"


def test_layers_of_another_width_are_refused(models, tmp_path):
    wide = {**FOUR, "hidden_size": 32}
    write_model(tmp_path / "wide", family(1, llama_shapes(wide))[0], wide)
    slices = [Slice([source(tmp_path, "a", 0, 2)]), Slice([source(tmp_path, "wide", 2, 4)])]
    (error,) = refused(Recipe("passthrough", slices=slices))
    assert isinstance(error, IncompatibleModels)
    assert "width 16" in error.found and "width 32" in error.found


def test_a_model_with_encoder_and_decoder_has_no_single_list_to_cut(tmp_path):
    config = {"model_type": "t5", "d_model": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 4}
    names = [
        f"{side}.block.{n}.layer.0.SelfAttention.{m}.weight"
        for side in ("encoder", "decoder")
        for n in (0, 1)
        for m in "qkvo"
    ]
    write_model(tmp_path / "t5", {name: torch.randn(8, 8) for name in names}, config)
    (error,) = refused(Recipe("passthrough", slices=[Slice([source(tmp_path, "t5", 0, 1)])]))
    assert error.found.endswith("has no single list of layers to cut, but 2: decoder.block, encoder.block")


def test_a_model_without_layers_is_refused(tmp_path):
    write_model(tmp_path / "flat", {"weight": torch.randn(4, 4)}, {})
    (error,) = refused(Recipe("passthrough", slices=[Slice([source(tmp_path, "flat", 0, 1)])]))
    assert error.found.endswith("has no single list of layers to cut")
