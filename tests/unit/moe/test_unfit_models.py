"""Models that cannot be made into one mixture, and what the user is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from dense_models import dense, save
from models import read_folder, write_model

import cuvee
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels, NonFinite, Problems, RecipeError
from cuvee.moe import ExpertEntry, plan_moe


def variant(folder, source, change=lambda tensors: tensors, **settings):
    """Copy a model, its tensors changed and its config too."""
    config = json.loads((source / "config.json").read_text()) | settings
    others = {p.name: p.read_text() for p in source.glob("token*.json")}
    write_model(folder, change(read_folder(source)), config, others=others)
    return str(folder)


def with_expert(config, model):
    asked = config()
    return replace(asked, experts=[*asked.experts[:2], ExpertEntry(model, ["z z"])])


def test_no_layout_fits_and_each_says_why(config, llamas, tmp_path):
    base = variant(tmp_path / "base", llamas / "base", model_type="gemma")
    with pytest.raises(IncompatibleModels) as raised:
        plan_moe(replace(config(), base_model=base))
    found = raised.value.found
    for title in ("Mixtral", "DeepSeek MoE", "Qwen MoE", "Qwen3 MoE"):
        assert f"  {title}: " in found
    assert "it is made of llama or mistral models, and the base is of model_type 'gemma'" in found
    assert "it takes one shared expert, and the config has none" in found
    assert "it needs self_attn.k_norm.weight, self_attn.q_norm.weight, and the base has none" in found


def test_one_named_layout_says_why_alone(config):
    with pytest.raises(IncompatibleModels) as raised:
        plan_moe(config(architecture="qwen3"))
    assert "Qwen3 MoE: " in raised.value.found
    assert "Mixtral" not in raised.value.found


def test_a_shared_expert_rules_mixtral_out_and_its_prompts_deepseek(config, llamas):
    shared = ExpertEntry(str(llamas / "expert0"))
    assert plan_moe(config(shared_experts=[shared])).layout.title == "DeepSeek MoE"
    prompted = replace(shared, positive_prompts=["a"])
    assert plan_moe(config(shared_experts=[prompted])).layout.title == "Qwen MoE"
    with pytest.raises(IncompatibleModels, match="its shared expert has no gate, and the config gives it prompts"):
        plan_moe(config(shared_experts=[prompted], architecture="deepseek"))
    with pytest.raises(IncompatibleModels, match="its shared expert has a gate, made of prompts"):
        plan_moe(config(shared_experts=[shared], architecture="qwen"))
    with pytest.raises(IncompatibleModels, match="it has no fused form"):
        plan_moe(config(shared_experts=[shared], architecture="deepseek", expert_layout="fused"))


def test_qwen2_models_without_a_shared_expert_are_told_what_to_write(config, llamas, tmp_path):
    save(dense("qwen2", seed=0), tmp_path / "qwen")
    experts = [ExpertEntry(str(tmp_path / "qwen"), [prompt]) for prompt in ("a", "b")]
    asked = config(base_model=str(tmp_path / "qwen"), experts=experts)
    with pytest.raises(IncompatibleModels) as raised:
        plan_moe(asked)
    shared = f'[{{source_model: {tmp_path / "qwen"}, positive_prompts: ["…"], residual_scale: 0.1}}]'
    assert raised.value.right == f"for Qwen MoE: shared_experts: {shared}"
    with pytest.raises(IncompatibleModels) as raised:
        plan_moe(replace(asked, gate_mode="random"))
    assert "positive_prompts" not in raised.value.right


def test_biases_that_a_layout_cannot_hold_are_named(config, llamas, tmp_path):
    base = dense("llama", seed=0, attention_bias=True)
    save(base, tmp_path / "base")
    shutil.copy(llamas / "base" / "tokenizer.json", tmp_path / "base")
    shutil.copy(llamas / "base" / "tokenizer_config.json", tmp_path / "base")
    with pytest.raises(IncompatibleModels, match="no place for self_attn.k_proj.bias"):
        plan_moe(config(base_model=str(tmp_path / "base"), architecture="mixtral"))
    assert plan_moe(config(base_model=str(tmp_path / "base"))).layout.title == "DeepSeek MoE"


def test_experts_of_another_size_are_all_named(config, llamas, tmp_path):
    save(dense("llama", seed=0, intermediate_size=24), tmp_path / "narrow")
    save(dense("llama", seed=0, num_hidden_layers=3), tmp_path / "deep")
    asked = config()
    experts = [
        asked.experts[0],
        ExpertEntry(str(tmp_path / "narrow"), ["y"]),
        ExpertEntry(str(tmp_path / "deep"), ["z"]),
    ]
    with pytest.raises(Problems) as raised:
        plan_moe(replace(asked, experts=experts))
    assert [error.found.split(": ", 1)[1] for error in raised.value.errors] == [
        "MLP size: 40 in the base, 24 in the expert",
        "layers: 2 in the base, 3 in the expert",
    ]


def test_a_model_without_gate_up_and_down_projections_is_refused(config, llamas, tmp_path):
    import transformers

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 48, "n_positions": 64}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(IncompatibleModels, match="has no tensor 'model.embed_tokens.weight'"):
        plan_moe(with_expert(config, str(tmp_path / "gpt2")))


def test_one_misshapen_tensor_is_named(config, llamas, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"

    def change(tensors):
        return {**tensors, name: torch.zeros(16, 39)}

    with pytest.raises(
        IncompatibleModels, match=r"tensor 'model.layers.1.mlp.down_proj.weight' is \(16, 39\) in expert 2"
    ):
        plan_moe(with_expert(config, variant(tmp_path / "odd", llamas / "expert0", change)))


def test_a_stranger_and_another_vocabulary_are_warned_of(config, llamas, tmp_path):
    save(dense("llama", seed=77, vocab_size=64), tmp_path / "stranger")
    planned = plan_moe(with_expert(config, str(tmp_path / "stranger")))
    assert any("does not look like a fine-tune" in warning for warning in planned.plan.warnings)
    assert any("has 64 token embeddings, and the base 48" in warning for warning in planned.plan.warnings)


def test_nan_in_an_expert_is_found_in_its_own_tensor(config, llamas, tmp_path):
    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = float("inf")
        return tensors

    asked = with_expert(config, variant(tmp_path / "broken", llamas / "expert0", change))
    with pytest.raises(
        NonFinite, match="tensor 'model.layers.0.mlp.up_proj.weight' of '.*broken' holds NaN or infinite values: 1 of"
    ):
        cuvee.build_moe(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = cuvee.build_moe(asked, tmp_path / "out", allow_nan=True)
    assert report.non_finite == {"model.layers.0.mlp.experts.gate_up_proj": 1}


def test_nan_in_the_base_stops_the_forward_pass(config, llamas, tmp_path):
    def change(tensors):
        tensors["model.layers.0.self_attn.q_proj.weight"][:] = float("nan")
        return tensors

    base = variant(tmp_path / "base", llamas / "base", change)
    with pytest.raises(NonFinite, match="forward pass through the base gives NaN"):
        plan_moe(config(base_model=base, gate_mode="hidden"))


def test_a_config_that_contradicts_the_weights_is_no_traceback(config, llamas, tmp_path):
    base = variant(tmp_path / "base", llamas / "base", num_attention_heads=2, head_dim=4)
    with pytest.raises(CheckpointError, match="num_attention_heads is 2 and head_dim 4, but the queries have 16 rows"):
        plan_moe(config(base_model=base, gate_mode="hidden"))

    def narrow(tensors):
        return {**tensors, "model.layers.1.self_attn.o_proj.weight": torch.zeros(16, 8)}

    base = variant(tmp_path / "narrow", llamas / "base", narrow)
    with pytest.raises(
        IncompatibleModels, match=r"1.self_attn.o_proj.weight' is \(16, 8\), and a llama of this config"
    ):
        plan_moe(config(base_model=base, gate_mode="hidden"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 2),
        ("num_attention_heads", 0),
        ("num_attention_heads", "4"),
        ("head_dim", -4),
        ("head_dim", [4]),
        ("hidden_act", 7),
        ("rope_scaling", "linear"),
        ("rope_parameters", [1]),
        ("sliding_window", "all"),
        ("rms_norm_eps", None),
        ("rope_theta", "big"),
    ],
)
def test_a_config_with_values_of_no_meaning_is_refused(key, value, config, llamas, tmp_path):
    base = variant(tmp_path / "base", llamas / "base", **{key: value})
    with pytest.raises((CheckpointError, IncompatibleModels)) as raised:
        plan_moe(config(base_model=base, gate_mode="random"))
    assert key in raised.value.found
    assert "config.json" in raised.value.where


@pytest.mark.parametrize(
    ("key", "value", "size"),
    [("num_hidden_layers", 3, 2), ("vocab_size", 50, 48), ("intermediate_size", 41, 40), ("num_key_value_heads", 4, 2)],
)
def test_layers_that_are_missing_do_not_make_a_shallower_mixture(key, value, size, config, llamas, tmp_path):
    base = variant(tmp_path / "base", llamas / "base", **{key: value})
    with pytest.raises(CheckpointError, match=f"{key} is {value} in config.json, and {size} in the weights"):
        plan_moe(config(base_model=base, gate_mode="random"))


def test_a_prompt_that_is_no_text_is_refused(config):
    asked = config()
    entries = [replace(asked.experts[0], positive_prompts=["half \ud800"]), *asked.experts[1:]]
    with pytest.raises(RecipeError, match="a prompt of expert 0 cannot be tokenized"):
        plan_moe(replace(asked, experts=entries))


def test_a_base_without_tokenizer_or_with_a_larger_one_is_refused(config, llamas, tmp_path):
    bare = variant(tmp_path / "bare", llamas / "base")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer of .* cannot be loaded"):
        plan_moe(config(base_model=bare))

    def crop(tensors):
        return {n: t[:10] if n in ("model.embed_tokens.weight", "lm_head.weight") else t for n, t in tensors.items()}

    small = variant(tmp_path / "small", llamas / "base", crop, vocab_size=10)
    with pytest.raises(CheckpointError, match="the tokenizer gives token 21, and the embedding of .* has 10 rows"):
        plan_moe(config(base_model=small))


def test_a_prompt_without_tokens_is_named(config, llamas, tmp_path):
    base = variant(tmp_path / "base", llamas / "base")
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    asked = config(base_model=base)
    entries = [replace(asked.experts[0], positive_prompts=["a", "  "]), *asked.experts[1:]]
    with pytest.raises(RecipeError, match="prompt 1 of positive_prompts of expert 0 has no tokens"):
        plan_moe(replace(asked, experts=entries))


def test_models_in_memory_and_missing_ones(config, llamas, tmp_path):
    asked = config(gate_mode="random")
    loaded = read_folder(llamas / "expert0")
    planned = plan_moe(replace(asked, experts=[ExpertEntry(loaded), *asked.experts[1:]]))
    assert planned.layout.title == "Mixtral"
    with pytest.raises(CuveeError, match="there is no file or folder"):
        plan_moe(replace(asked, base_model=str(tmp_path / "none")))


def test_an_expert_with_another_tokenizer_is_warned_of(config, llamas, tmp_path):
    expert = variant(tmp_path / "expert", llamas / "expert0")
    text = (llamas / "base" / "tokenizer.json").read_text()
    (tmp_path / "expert" / "tokenizer.json").write_text(text.replace('"a": 3', '"z": 3').replace('"z": 28', '"a": 28'))
    planned = plan_moe(with_expert(config, expert))
    assert any("has 2 tokens that the base's tokenizer has not" in warning for warning in planned.plan.warnings)
    (tmp_path / "expert" / "tokenizer.json").write_text(text)
    assert not plan_moe(with_expert(config, expert)).plan.warnings
    (tmp_path / "expert" / "tokenizer.json").write_text("{[")
    assert not plan_moe(with_expert(config, expert)).plan.warnings
