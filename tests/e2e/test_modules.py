"""Models of several parts, each merged in its own way, still load and compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import read_folder

import cuvee
from cuvee.recipes import Module, Recipe, RecipeModel, Slice

transformers = pytest.importorskip("transformers")


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=48,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def llava() -> Any:
    text = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=63)
    return transformers.LlavaForConditionalGeneration(config)


def written(make: Any, folder: Path, count: int = 2) -> list[str]:
    paths = []
    for seed in range(count):
        torch.manual_seed(seed)
        make().save_pretrained(folder / f"m{seed}")
        paths.append(str(folder / f"m{seed}"))
    return paths


def halves(first: float, paths: list[str]) -> Module:
    return Module([RecipeModel(path, {"weight": w}) for path, w in zip(paths, (first, 1 - first), strict=True)])


def test_encoder_and_decoder_have_weights_of_their_own(tmp_path):
    paths = written(t5, tmp_path)
    modules = {"encoder": halves(0.25, paths), "decoder": halves(0.75, paths)}
    cuvee.merge(Recipe("linear", modules=modules), tmp_path / "out")
    a, b, out = (read_folder(folder) for folder in (*map(Path, paths), tmp_path / "out"))
    assert out.keys() == a.keys()
    for name in out:
        share = 0.25 if name.startswith("encoder.") else 0.75
        assert torch.allclose(out[name], share * a[name] + (1 - share) * b[name], atol=1e-6), name
    tokens = torch.tensor([[1, 5, 9]])
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.isfinite(loaded(input_ids=tokens, decoder_input_ids=tokens).logits).all()


def test_the_layers_of_a_decoder_are_cut_alone_and_the_positions_stay_in_its_first(tmp_path):
    path, _ = written(t5, tmp_path)
    modules = {
        "encoder": Module([path]),
        "decoder": Module(slices=[Slice([RecipeModel(path, {}, (1, 3))]), Slice([RecipeModel(path, {}, (0, 3))])]),
    }
    cuvee.merge(Recipe("passthrough", modules=modules), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_layers"], config["num_decoder_layers"]) == (3, 5)
    a, out = read_folder(Path(path)), read_folder(tmp_path / "out")
    query = "decoder.block.{}.layer.0.SelfAttention.q.weight"
    assert torch.equal(out[query.format(0)], a[query.format(1)])
    assert torch.equal(out[query.format(2)], a[query.format(0)])
    biases = [name for name in out if "relative_attention_bias" in name and name.startswith("decoder")]
    assert biases == ["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    loaded, report = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.isfinite(loaded(input_ids=torch.tensor([[1, 5]]), decoder_input_ids=torch.tensor([[1]])).logits).all()


def test_a_vision_tower_is_kept_while_the_language_model_is_merged(tmp_path):
    paths = written(llava, tmp_path)
    modules = {
        "text_decoder": halves(0.5, paths),
        "vision_tower": halves(1.0, paths),
        "multi_modal_projector": halves(0.0, paths),
    }
    cuvee.merge(Recipe("linear", modules=modules), tmp_path / "out")
    a, b, out = (read_folder(folder) for folder in (*map(Path, paths), tmp_path / "out"))
    assert out.keys() == a.keys()
    for name in out:
        share = 1.0 if "vision_tower" in name else 0.0 if "projector" in name else 0.5
        assert torch.allclose(out[name], share * a[name] + (1 - share) * b[name], atol=1e-6), name
    loaded, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.isfinite(loaded(input_ids=torch.tensor([[1, 5, 9]])).logits).all()


def test_what_belongs_to_no_module_of_the_recipe_is_carried_over_and_reported(tmp_path):
    paths = written(llava, tmp_path)
    planned = cuvee.plan(Recipe("linear", modules={"text_decoder": halves(0.5, paths)}))
    carried = {name for name, reason in planned.left_out.items() if "in no module of the recipe" in reason}
    assert carried == {name for name in read_folder(Path(paths[0])) if "vision_tower" in name or "projector" in name}
    assert len(planned.tasks) == len(read_folder(Path(paths[0])))


def test_a_module_that_a_model_does_not_have_is_refused_with_those_that_it_has(tmp_path):
    paths = written(t5, tmp_path)
    with pytest.raises(cuvee.CuveeError, match=r"has no part called 'vision_tower'[^\n]*\n[^\n]*\n.*decoder, encoder"):
        cuvee.plan(Recipe("linear", modules={"vision_tower": halves(0.5, paths)}))


def test_slices_of_a_vision_language_model_cut_its_language_model(tmp_path):
    path, _ = written(llava, tmp_path)
    slices = [Slice([RecipeModel(path, {}, (0, 3))]), Slice([RecipeModel(path, {}, (1, 3))])]
    cuvee.merge(Recipe("passthrough", slices=slices), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 5
    assert config["vision_config"]["num_hidden_layers"] == 2
    _, report = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_under_compat_what_belongs_to_no_module_is_dropped_and_named(tmp_path):
    paths = written(llava, tmp_path)
    planned = cuvee.plan(Recipe("linear", modules={"text_decoder": halves(0.5, paths)}, compat="mergekit"))
    names = set(read_folder(Path(paths[0])))
    assert {task.name for task in planned.tasks} | set(planned.dropped) == names
    assert {planned.dropped[name] for name in planned.dropped if "vision" in name} == {"in no module of the recipe"}
