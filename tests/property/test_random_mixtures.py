"""Mixtures of equal experts, drawn at random over families, sizes, layouts and gates: equal to their dense models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from dense_models import FAMILIES, PROMPTS, TOKENS, dense, save, write_tokenizer

import cuvee
from cuvee.engine.verifying import verify
from cuvee.errors import IncompatibleModels
from cuvee.moe import ExpertEntry, MoeConfig
from cuvee.moe.config import GATE_MODES

transformers = pytest.importorskip("transformers")


def drawn_model(draw: random.Random) -> tuple[str, dict]:
    family = draw.choice(FAMILIES)
    settings: dict = {"tie_word_embeddings": draw.random() < 0.3}
    settings["num_key_value_heads"] = draw.choice([1, 2, 4])
    settings["intermediate_size"] = draw.choice([24, 40, 64])
    settings["num_hidden_layers"] = draw.choice([1, 2, 3])
    if family != "qwen2" and draw.random() < 0.4:
        settings["head_dim"] = draw.choice([4, 6, 8])
    if family in ("llama", "qwen3") and draw.random() < 0.2:
        settings["attention_bias"] = True
    if draw.random() < 0.4:
        kind = draw.choice(["default", "linear", "dynamic", "yarn"])
        settings["rope_parameters"] = {"rope_type": kind, "rope_theta": draw.choice([1e4, 5e5]), "factor": 2.0}
    return family, settings


def drawn_config(draw: random.Random, family: str) -> MoeConfig:
    count = draw.choice([1, 2, 3, 5])
    shared = 1 if family == "qwen2" else draw.choice([0, 0, 1])
    entry = ExpertEntry("base", ["a b"] if family == "qwen2" or draw.random() < 0.5 else [], residual_scale=0.0)
    return MoeConfig(
        "base",
        [ExpertEntry("base", [PROMPTS[n % 4] + " a" * n]) for n in range(count)],
        gate_mode=draw.choice(GATE_MODES),
        experts_per_token=draw.randint(1, count),
        expert_layout=draw.choice([None, "fused", "separate"]),
        shared_experts=[entry] * shared,
        dtype=draw.choice([None, "float32"]),
        compat=draw.choice([None, None, "mergekit"]),
    )


@pytest.mark.parametrize("seed", range(16))
def test_a_random_mixture_is_complete_and_equal_to_its_dense_model_or_refused(seed, workplace):
    draw = random.Random(seed)
    family, settings = drawn_model(draw)
    base = dense(family, seed=seed, **settings)
    save(base.to(draw.choice([torch.float32, torch.bfloat16, torch.float16])), workplace / "base")
    write_tokenizer(workplace / "base")
    try:
        cuvee.build_moe(drawn_config(draw, family), "out", shard_size=draw.choice([10**9, 3000]))
    except IncompatibleModels as error:
        assert "no layout of a mixture of experts fits" in error.found
        assert not Path("out").exists()
        return
    assert not verify(workplace / "out").problems
    if json.loads(Path("out/config.json").read_text())["model_type"] == "deepseek":
        return  # its code is not part of transformers; tests/e2e/test_moe.py has its equations
    load = transformers.AutoModelForCausalLM.from_pretrained
    mixture, info = load("out", dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        got, want = (model.eval()(TOKENS).logits for model in (mixture, load("base", dtype=torch.float32)))
    assert torch.allclose(got, want, atol=2e-4), (got - want).abs().max()
