"""Mixtures of experts of every layout load in transformers and compute what they should; DeepSeek's against its equations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from dense_models import FAMILIES, PROMPTS, TOKENS, dense, save, write_tokenizer
from models import assert_equal, assert_same_bytes, contents, read_folder

import cuvee
from cuvee.engine import delivering
from cuvee.engine.verifying import verify
from cuvee.errors import ResourceError
from cuvee.moe import ExpertEntry, MoeConfig

transformers = pytest.importorskip("transformers")

LAYOUTS = {
    "Mixtral": ("llama", "mistral"),
    "Qwen MoE": ("qwen2", "llama", "mistral"),
    "Qwen3 MoE": ("qwen3",),
    "DeepSeek MoE": ("llama", "mistral"),
}
CASES = [(layout, family) for layout, families in LAYOUTS.items() for family in families]


def family_of(folder, family, count=3, **settings):
    """Write a base and experts whose MLPs are of their own; returns the names of the experts."""
    base = dense(family, seed=0, **settings)
    save(base, folder / "base")
    write_tokenizer(folder / "base")
    for number in range(count):
        expert = dense(family, seed=0, **settings)
        torch.manual_seed(100 + number)
        for name, value in expert.named_parameters():
            if ".mlp." in name:
                value.data += 0.02 * torch.randn_like(value)
        save(expert, folder / f"expert{number}")
    return [f"expert{number}" for number in range(count)]


def config_for(layout, experts, **settings):
    """Return a config; with the shared expert that Qwen2-MoE asks for, silent."""
    entries = [ExpertEntry(name, [PROMPTS[n]]) for n, name in enumerate(experts)]
    shared = [ExpertEntry("base", ["a b"], residual_scale=0.0)] if layout == "Qwen MoE" else []
    settings = {"gate_mode": "uniform_random", "shared_experts": shared, "architecture": layout, **settings}
    return MoeConfig("base", entries, **settings)


def logits(folder, tokens=TOKENS):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(tokens).logits


def deepseek_logits(folder, dense_folder, tokens=TOKENS):
    """Compute a DeepSeek mixture from its files: attention of the dense model, MLPs by the paper's equations 3 to 5."""
    model = transformers.AutoModelForCausalLM.from_pretrained(dense_folder, dtype=torch.float32).eval()
    tensors, config = read_folder(folder), json.loads((folder / "config.json").read_text())

    class Mixture(torch.nn.Module):
        def __init__(self, prefix):
            super().__init__()
            self.prefix = prefix

        def mlp(self, x, name):
            gate, up, down = (tensors[f"{self.prefix}{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

        def forward(self, x):
            scores = torch.softmax(x @ tensors[f"{self.prefix}gate.weight"].T, dim=-1)
            kept = scores >= scores.topk(config["num_experts_per_tok"]).values[..., -1:]
            scores = torch.where(kept, scores, 0)
            if config["norm_topk_prob"] and config["num_experts_per_tok"] > 1:
                scores = scores / scores.sum(dim=-1, keepdim=True)
            outputs = [self.mlp(x, f"experts.{e}") for e in range(config["n_routed_experts"])]
            result = sum(scores[..., e, None] * output for e, output in enumerate(outputs))
            return result + self.mlp(x, "shared_experts") if config["n_shared_experts"] else result

    for number, layer in enumerate(model.model.layers):
        layer.mlp = Mixture(f"model.layers.{number}.mlp.")
    with torch.inference_mode():
        return model(tokens).logits


def mixture_logits(layout, folder, dense_folder):
    return deepseek_logits(folder, dense_folder) if layout == "DeepSeek MoE" else logits(folder)


@pytest.mark.parametrize("form", ["fused", "separate"])
@pytest.mark.parametrize(("layout", "family"), CASES)
def test_equal_experts_compute_what_the_dense_model_does(layout, family, form, workplace):
    if (layout, form) == ("DeepSeek MoE", "fused"):
        pytest.skip("DeepSeek's code has no fused form")
    family_of(workplace, family, count=0)
    config = config_for(layout, ["base"] * 3, expert_layout=form)
    cuvee.build_moe(config, "out")
    assert not verify(workplace / "out").problems
    got, want = mixture_logits(layout, workplace / "out", "base"), logits("base")
    assert torch.allclose(got, want, atol=2e-5), (got - want).abs().max()


@pytest.mark.parametrize(("layout", "family"), CASES)
def test_every_tensor_is_where_the_family_wants_it(layout, family, workplace):
    """Strict loading: nothing missing, nothing unexpected; fused and separate files are the same model."""
    if layout == "DeepSeek MoE":
        pytest.skip("its code is not part of transformers")
    experts = family_of(workplace, family)
    outputs = []
    for form in ("fused", "separate"):
        cuvee.build_moe(config_for(layout, experts, expert_layout=form), form)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(form, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert type(model).__name__ == json.loads((workplace / form / "config.json").read_text())["architectures"][0]
        outputs.append(model(TOKENS).logits)
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], logits("base"), atol=1e-3)


@pytest.mark.parametrize(("layout", "family"), [("Mixtral", "llama"), ("Qwen MoE", "qwen2"), ("Qwen3 MoE", "qwen3")])
def test_a_tied_base_makes_a_tied_mixture(layout, family, workplace):
    family_of(workplace, family, count=0, tie_word_embeddings=True)
    cuvee.build_moe(config_for(layout, ["base"] * 2), "out")
    assert "lm_head.weight" not in read_folder(workplace / "out")
    assert json.loads((workplace / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert torch.allclose(logits("out"), logits("base"), atol=2e-5)


def test_a_window_of_attention_is_kept_where_the_family_has_one(workplace):
    family_of(workplace, "mistral", count=0, sliding_window=3)
    config = config_for("Mixtral", ["base"] * 2)
    cuvee.build_moe(config, "out")
    assert torch.allclose(logits("out"), logits("base"), atol=2e-5)
    report = cuvee.build_moe(replace(config, compat="mergekit"), "forgets")
    assert any("sees 3 tokens back" in warning for warning in report.warnings)
    assert not torch.allclose(logits("forgets"), logits("base"), atol=1e-4)


def test_head_sizes_and_rotary_bases_of_the_dense_model_are_kept(workplace):
    settings = {"head_dim": 8, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    family_of(workplace, "llama", count=0, **settings)
    cuvee.build_moe(config_for("Mixtral", ["base"] * 2), "out")
    assert torch.allclose(logits("out"), logits("base"), atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_leaves_all_to_its_family_means_the_same(family, workplace):
    """The families' defaults are spelt out: Mixtral's rotary base and Qwen3-MoE's head size are others than those."""
    heads = {"llama": 4, "mistral": 8, "qwen2": 32, "qwen3": 32}[family]
    sizes = {"num_attention_heads": heads, "num_key_value_heads": 2 if family == "llama" else heads, "hidden_size": 32}
    family_of(workplace, family, count=0, **sizes, **({"head_dim": 128} if family == "qwen3" else {}))
    path = workplace / "base" / "config.json"
    full = json.loads(path.read_text())
    bare = {key: full[key] for key in ("architectures", "model_type", "hidden_size", "intermediate_size", "vocab_size",
                                       "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")}  # fmt: skip
    if family == "llama":
        bare["num_key_value_heads"] = full["num_key_value_heads"]
    path.write_text(json.dumps(bare))
    layout = {"llama": "Mixtral", "mistral": "Mixtral", "qwen2": "Qwen MoE", "qwen3": "Qwen3 MoE"}[family]
    cuvee.build_moe(config_for(layout, ["base"] * 2), "out")
    assert torch.allclose(logits("out"), logits("base"), atol=2e-5)


@pytest.mark.parametrize("layout", ["DeepSeek MoE", "Qwen MoE"])
def test_a_shared_expert_adds_to_the_chosen_ones(layout, workplace):
    experts = family_of(workplace, "llama")
    shared = [ExpertEntry("expert0", [] if layout == "DeepSeek MoE" else ["a"], residual_scale=0.5)]
    alone = replace(shared[0], residual_scale=0.0)
    settings = {"gate_mode": "cheap_embed"}
    cuvee.build_moe(config_for(layout, experts, shared_experts=shared, **settings), "with")
    cuvee.build_moe(config_for(layout, experts, shared_experts=[alone], **settings), "without")
    down = "model.layers.0.mlp.shared_expert{}.down_proj.weight".format("s" * (layout == "DeepSeek MoE"))
    stored = read_folder(workplace / "expert0")["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(read_folder(workplace / "with")[down], stored * 0.5)
    got, want = (mixture_logits(layout, workplace / name, "base") for name in ("with", "without"))
    assert not torch.allclose(got, want, atol=1e-4)


def test_the_output_does_not_depend_on_threads(workplace):
    experts = family_of(workplace, "llama")
    config = config_for("Mixtral", [*experts, ExpertEntry("base", noise_scale=0.1).source_model])
    noisy = replace(config, experts=[replace(one, noise_scale=0.01, residual_scale=0.9) for one in config.experts])
    for threads in (1, 4):
        cuvee.build_moe(noisy, f"out{threads}", threads=threads)
    assert_equal(read_folder(workplace / "out1"), read_folder(workplace / "out4"))
    cuvee.build_moe(replace(noisy, seed=1), "other")
    down = "model.layers.0.mlp.experts.down_proj"
    first, other = (read_folder(workplace / name)[down] for name in ("out1", "other"))
    clean = read_folder(workplace / "expert0")["model.layers.0.mlp.down_proj.weight"] * 0.9
    assert not torch.equal(first, other)
    assert (first[0] - clean).std() == pytest.approx(0.009, rel=0.15)


def test_without_transformers_the_install_line_is_given(workplace, monkeypatch):
    experts = family_of(workplace, "llama")
    import builtins

    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ResourceError, match="needs transformers") as raised:
        cuvee.build_moe(config_for("Mixtral", experts, gate_mode="hidden"), "out")
    assert raised.value.right == "pip install 'cuvee[moe]'"
    cuvee.build_moe(config_for("Mixtral", experts), "random")
    assert not (workplace / "out").exists()


def test_a_build_that_was_stopped_goes_on(workplace, monkeypatch):
    """Some tensors are finished when it is interrupted; the same call takes them as they are."""
    experts = family_of(workplace, "llama")
    config = config_for("Mixtral", experts, gate_mode="hidden")
    cuvee.build_moe(config, "whole")
    finished = []

    def stop(self, task, finish=delivering.Delivery.finish):
        if len(finished) == 9:
            raise KeyboardInterrupt
        finish(self, task)
        finished.append(task.name)

    monkeypatch.setattr(delivering.Delivery, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        cuvee.build_moe(config, "out", threads=1)
    assert not (workplace / "out").exists()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert cuvee.build_moe(config, "out").resumed == 9
    assert_same_bytes(contents(workplace / "out"), contents(workplace / "whole"))


def test_the_profile_says_where_the_bytes_are_the_same(workplace):
    experts = family_of(workplace, "llama")
    for mode, profile in (("cheap_embed", "portable-1"), ("uniform_random", "portable-1"), ("hidden", "torch:")):
        cuvee.build_moe(config_for("Mixtral", experts, gate_mode=mode), mode)
        assert json.loads((workplace / mode / "cuvee.json").read_text())["profile"].startswith(profile)
