"""What a user is told where users of merging tools were lost. Each test names the thread that it answers.

The numbers are of mergekit's tracker. Those about a recipe's text alone are in tests/unit/recipes, about tokenizers in
tests/unit/tokenizers, about adapters in tests/unit/checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import LLAMA, Tensors, contents, family, llama_shapes, read_folder, write_family, write_model

import cuvee
from cuvee.cli import main
from cuvee.errors import CuveeError, Problems
from cuvee.recipes import Recipe, RecipeModel, Slice, explain, prepare

TIED = {**LLAMA, "tie_word_embeddings": True}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def paths(folder: Path, *names: str) -> list[str]:
    return [str(folder / name) for name in names]


def mean(*models: str, **settings: object) -> Recipe:
    return Recipe("linear", models=models, parameters={"weight": 1, **settings})


def told(recipe: Recipe) -> str:
    """Return the error, in full."""
    with pytest.raises(CuveeError) as raised:
        cuvee.plan(recipe)
    errors = raised.value.errors if isinstance(raised.value, Problems) else [raised.value]
    return "\n".join(map(str, errors))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Call the command line; returns what it prints, on one line."""

    def call(*words: object, code: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert int(ended.value.code or 0) == code, captured.err
        return " ".join((captured.out + captured.err).split())

    return call


# ---- 2.3 architectures


def test_625_a_model_of_an_unheard_of_type_is_merged_without_a_warning(tmp_path):
    config = {**LLAMA, "model_type": "brand_new", "architectures": ["BrandNewForCausalLM"]}
    write_family(tmp_path, config=config)
    report = cuvee.merge(mean(*paths(tmp_path, "math", "code")), tmp_path / "out")
    assert [said for said in report.warnings if "compiled kernels" not in said] == []


def test_581_layers_of_different_shapes_are_merged_each_with_its_own(tmp_path):
    shapes = llama_shapes()
    for name, shape in shapes.items():
        if name.startswith("model.layers.1.mlp."):
            shapes[name] = tuple(24 if size == LLAMA["intermediate_size"] else size for size in shape)
    _, experts = family(2, shapes)
    for name, tensors in zip(("a", "b"), experts, strict=True):
        write_model(tmp_path / name, tensors, LLAMA)
    cuvee.merge(mean(*paths(tmp_path, "a", "b")), tmp_path / "out")
    out = read_folder(tmp_path / "out")
    assert out["model.layers.0.mlp.up_proj.weight"].shape == (40, 16)
    assert out["model.layers.1.mlp.up_proj.weight"].shape == (24, 16)


def test_542_models_of_two_architectures_are_refused_with_the_tensors_that_each_lacks(tmp_path):
    write_family(tmp_path)
    other = {name.replace("model.layers", "transformer.h"): t for name, t in family(0, llama_shapes())[0].items()}
    write_model(tmp_path / "other", other, {"model_type": "gpt_other"})
    error = told(mean(*paths(tmp_path, "math", "other")))
    assert "lacks 18 tensors that" in error
    assert "right: models of one architecture" in error


# ---- 2.2 and 2.3: nothing is lost in silence


def test_602_a_tensor_that_one_model_lacks_is_named_before_anything_is_read(tmp_path):
    write_family(tmp_path)
    extra = read_folder(tmp_path / "math") | {"model.layers.0.self_attn.q_norm.weight": torch.ones(4)}
    write_model(tmp_path / "normed", extra, LLAMA)
    error = told(mean(*paths(tmp_path, "normed", "code")))
    assert "lacks 1 tensor that" in error and "model.layers.0.self_attn.q_norm.weight" in error
    assert 'exclude: ["model.layers.0.self_attn.q_norm.weight"]' in error


# ---- 2.4 vocabularies


def test_139_rows_are_never_cut_in_silence(tmp_path):
    write_family(tmp_path)
    wide = {**LLAMA, "vocab_size": 55}
    write_model(tmp_path / "wide", family(0, llama_shapes(wide))[0], wide)
    error = told(mean(*paths(tmp_path, "math", "wide")))
    assert "is (48, 16) in" in error and "(55, 16) in" in error
    assert "tokenizer_source" in error or "embed_mismatch" in error


# ---- 2.5 the files beside the weights


BESIDE = {
    "generation_config.json": '{"eos_token_id": 2}',
    "chat_template.jinja": "{{ messages }}",
    "modeling_their_own.py": "print('never run')",
    "preprocessor_config.json": "{}",
    "video_preprocessor_config.json": "{}",
    "chat_template.json": "{}",
    "tokenizer.model": "bytes",
}


def test_275_105_589_every_file_of_the_base_is_carried_over_as_it_is(tmp_path):
    others = BESIDE
    write_family(tmp_path, others=others)
    cuvee.merge(mean(*paths(tmp_path, "math", "code")), tmp_path / "out")
    found = contents(tmp_path / "out")
    assert {name: found.get(name) for name in others} == {name: text.encode() for name, text in others.items()}


def test_the_config_says_what_was_written(tmp_path):
    write_family(tmp_path, config={**LLAMA, "torch_dtype": "float32", "quantization_config": None})
    recipe = Recipe("linear", models=paths(tmp_path, "math", "code"), parameters={"weight": 1}, out_dtype="bfloat16")
    cuvee.merge(recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert "quantization_config" not in config


# ---- 2.6 speed


def test_329_the_report_says_how_fast_it_was_and_what_it_waited_for(tmp_path, said):
    write_family(tmp_path)
    recipe = tmp_path / "r.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{tmp_path}/math, {tmp_path}/code]\nparameters: {{weight: 1}}\n")
    words = said("merge", recipe, tmp_path / "out")
    assert "/s read and written; bottleneck: " in words


def test_449_threads_and_memory_are_said_before_the_merge(tmp_path, said):
    write_family(tmp_path)
    recipe = tmp_path / "r.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{tmp_path}/math, {tmp_path}/code]\nparameters: {{weight: 1}}\n")
    words = said("plan", recipe, "--threads", "3")
    assert "MB at most" in words and "threads 3, in blocks of" in words


# ---- 2.7 what parameters mean


def explained(recipe: Recipe) -> str:
    return "\n".join(explain(recipe, prepare(recipe)))


def test_130_after_dare_ties_does_not_trim_and_says_so():
    words = explained(Recipe("dare_ties", models=["a", "b"], base_model="c", parameters={"density": 0.5, "weight": 1}))
    assert "trim" in words


def test_378_density_is_the_share_that_is_kept(said):
    words = said("methods", "ties")
    assert "density" in words and ("kept" in words or "keep" in words)


def test_360_an_end_beyond_the_last_layer_says_how_many_there_are(tmp_path):
    write_family(tmp_path)
    error = told(Recipe("passthrough", slices=[Slice([RecipeModel(str(tmp_path / "math"), {}, (0, 3))])]))
    assert "layer_range [0, 3] ends after layer 2, and" in error and "has 2 layers, 0 to 1" in error
    assert "right: an end of at most 2: the end is not included" in error


def test_360_a_slice_without_layers_says_that_its_end_is_not_included(tmp_path):
    slices = [Slice([RecipeModel("a", {}, layers)]) for layers in ((0, 1), (1, 1), (1, 2))]
    assert "layer_range [1, 1] is empty: its end is not included" in told(Recipe("passthrough", slices=slices))


def test_308_a_head_is_kept_by_name_without_a_slice_of_no_length(tmp_path):
    write_family(tmp_path)
    models = paths(tmp_path, "math", "code")
    recipe = Recipe("linear", models=models, parameters={"weight": 1}, exclude=[HEAD])
    planned = cuvee.plan(recipe)
    assert planned.left_out == {HEAD: f"exclude: {HEAD}; from {models[0]}"}


def test_214_weights_that_sum_to_nothing_are_refused_where_they_are_divided_by_their_sum():
    error = told(Recipe("linear", models=["a", "b"], parameters={"weight": [1, -1]}))
    assert "the weights 1, -1 sum to 0, and normalize divides by their sum" in error
    assert "normalize: false" in error


# ---- 2.8 adapters


def test_442_an_adapter_alone_says_that_its_base_is_missing(tmp_path):
    folder = tmp_path / "adapter"
    write_model(folder, {"base_model.model.x.lora_A.weight": torch.ones(1, 2)})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    assert f"org/base+{folder}" in told(mean(str(folder), str(folder)))


# ---- 2.9 tied weights


def write_tied(folder: Path, name: str, tensors: Tensors, *, stores_head: bool = False) -> str:
    held = {n: t for n, t in tensors.items() if n != HEAD}
    write_model(folder / name, held | ({HEAD: held[EMBEDDING].clone()} if stores_head else {}), TIED)
    return str(folder / name)


def test_424_tied_models_need_no_head_and_the_output_stores_none(tmp_path):
    _, (a, b) = family(2, llama_shapes(TIED))
    cuvee.merge(mean(write_tied(tmp_path, "a", a), write_tied(tmp_path, "b", b)), tmp_path / "out")
    assert HEAD not in read_folder(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_390_a_tied_head_that_a_file_stores_is_not_written_and_the_report_says_so(tmp_path):
    _, (a, b) = family(2, llama_shapes(TIED))
    models = [write_tied(tmp_path, "a", a, stores_head=True), write_tied(tmp_path, "b", b, stores_head=True)]
    planned = cuvee.plan(mean(*models))
    assert planned.dropped == {HEAD: f"tied to {EMBEDDING}"}
    cuvee.run(planned, tmp_path / "out")
    assert HEAD not in read_folder(tmp_path / "out")


def test_464_a_tied_and_an_untied_model_make_an_untied_one(tmp_path):
    _, (a, b) = family(2, llama_shapes())
    write_model(tmp_path / "untied", b, LLAMA)
    cuvee.merge(mean(write_tied(tmp_path, "tied", a), str(tmp_path / "untied")), tmp_path / "out")
    out = read_folder(tmp_path / "out")
    assert torch.allclose(out[HEAD], (a[EMBEDDING] + b[HEAD]) / 2, atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
