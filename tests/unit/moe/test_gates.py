"""Gates: what transformers itself says of hidden states, layer by layer, for any batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_models import WORDS
from models import read_folder

import cuvee
from cuvee.moe import ExpertEntry, plan_moe
from cuvee.moe.forward import Pass
from cuvee.moe.gates import gate_warnings

transformers = pytest.importorskip("transformers")

LISTS = [(["a b c d", "e f"], []), (["p q r s t u"], ["a a", "c", "d e f g"]), (["x y z", "w", "v u"], [])]


def prompted(config, llamas, mode, **settings):
    entries = [ExpertEntry(str(llamas / f"expert{n}"), *LISTS[n]) for n in range(3)]
    return config(experts=entries, gate_mode=mode, **settings)


def gates(planned) -> torch.Tensor:
    """(L, E, H), from the tasks."""
    tasks = {task.name: task for task in planned.plan.tasks}
    names = [f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)]
    return torch.stack([tasks[name].inputs[0].source.values for name in names])


def ids(prompt: str) -> torch.Tensor:
    return torch.tensor([[1, *(WORDS.index(word) for word in prompt.split())]])


def expected(llamas, state) -> torch.Tensor:
    """Compute gates prompt by prompt; `state(model, ids)` gives a prompt's (L, H)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llamas / "base").eval()
    rows = []
    for positive, negative in LISTS:
        with torch.inference_mode():
            row, *less = (
                torch.stack([state(model, ids(prompt)) for prompt in prompts]).mean(0)
                for prompts in (positive, negative)
                if prompts
            )
        row = row - less[0] if less else row
        rows.append(row / row.norm(dim=-1, keepdim=True))
    return torch.stack(rows, dim=1)


def hidden(model, tokens) -> torch.Tensor:
    return torch.stack(model(tokens, output_hidden_states=True).hidden_states[:-1])[:, 0]


def router_inputs(model, tokens) -> torch.Tensor:
    seen = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0])) for layer in model.model.layers
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


STATES = {
    "hidden": lambda model, tokens: hidden(model, tokens)[:, -1],
    "hidden_last": lambda model, tokens: hidden(model, tokens)[:, -1],
    "hidden_avg": lambda model, tokens: hidden(model, tokens).mean(dim=1),
    "router_input": lambda model, tokens: router_inputs(model, tokens)[:, -1],
    "cheap_embed": lambda model, tokens: model.model.embed_tokens(tokens)[0].sum(dim=0).expand(2, -1),
}


@pytest.mark.parametrize("batch", [1, 2, 32])
@pytest.mark.parametrize("mode", ["hidden", "hidden_last", "hidden_avg", "router_input"])
def test_gates_are_what_transformers_says_without_padding(mode, batch, config, llamas):
    got = gates(plan_moe(prompted(config, llamas, mode), how=Pass(batch=batch)))
    assert torch.allclose(got, expected(llamas, STATES[mode]), atol=1e-5)


def test_the_padding_counts_where_mergekit_counts_it(config, llamas):
    mended, compat = (
        gates(plan_moe(prompted(config, llamas, "hidden_avg", compat=compat))) for compat in (None, "mergekit")
    )
    assert not torch.allclose(mended[:, 0], compat[:, 0], atol=1e-2)  # two lengths
    last, same = (gates(plan_moe(prompted(config, llamas, "hidden", compat=compat))) for compat in (None, "mergekit"))
    assert torch.equal(last, same)


def test_bfloat16_is_near_float32(config, llamas):
    exact, rough = (
        gates(plan_moe(prompted(config, llamas, "hidden"), how=Pass(dtype=d))) for d in ("float32", "bfloat16")
    )
    assert 0 < (exact - rough).abs().max() < 0.03


def test_cheap_gates_are_sums_of_embeddings_by_direction(config, llamas):
    table = read_folder(llamas / "base")["model.embed_tokens.weight"]

    def direction(prompts):
        total = sum(table[ids(prompt)[0]].sum(dim=0) for prompt in prompts)
        return total / total.norm()

    rows = [direction(positive) - (direction(negative) if negative else 0) for positive, negative in LISTS]
    want = torch.stack([row / row.norm() for row in rows])
    got = gates(plan_moe(prompted(config, llamas, "cheap_embed")))
    assert torch.allclose(got[0], want, atol=1e-6)
    assert torch.equal(got[0], got[1])


def test_drawn_gates_depend_on_the_seed_alone(config):
    one, same, other = (gates(plan_moe(config(gate_mode="random", seed=seed))) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std() == pytest.approx(1, abs=0.25)
    uniform = gates(plan_moe(config(gate_mode="uniform_random")))
    assert uniform.abs().max() <= 1 / 16**0.5
    assert uniform.std() == pytest.approx(1 / 16**0.5 / 3**0.5, rel=0.2)
    assert len(uniform.unique()) == uniform.numel()


def test_an_adapter_on_the_base_is_part_of_the_forward_pass(config, llamas, tmp_path):
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(llamas / "base")
    torch.manual_seed(3)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "o_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((llamas / "base" / name).read_bytes())
    asked = prompted(config, llamas, "hidden")
    got = gates(plan_moe(replace(asked, base_model=f"{llamas / 'base'}+{tmp_path / 'adapter'}")))
    assert torch.allclose(got, gates(plan_moe(replace(asked, base_model=str(tmp_path / "base")))), atol=1e-5)
    assert not torch.allclose(got[1], gates(plan_moe(asked))[1], atol=1e-3)


def test_nearly_parallel_gates_are_warned_of():
    rows = torch.nn.functional.normalize(torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert gate_warnings(rows, 3) == []
    rows[2, 1] = torch.nn.functional.normalize(rows[2, 0] + 0.01 * rows[2, 1], dim=-1)
    (warning,) = gate_warnings(rows, 3)
    assert "nearly parallel in layer 2" in warning
    assert "experts 0 and 1 have cosine 1.000" in warning


def test_prompts_that_cancel_out_leave_an_empty_gate_and_a_warning(config, llamas):
    entries = [
        ExpertEntry(str(llamas / f"expert{n}"), ["a b"], ["a b"] if n == 1 else [f"{'cde'[n]}"]) for n in range(3)
    ]
    planned = plan_moe(config(experts=entries))
    assert any("gate of expert 1 is empty" in warning for warning in planned.plan.warnings)


def test_a_run_that_is_killed_goes_on_with_the_same_gates(config, llamas, tmp_path):
    asked = prompted(config, llamas, "hidden")
    assert plan_moe(asked).plan.plan_id == plan_moe(asked).plan.plan_id
    assert plan_moe(asked).plan.plan_id != plan_moe(replace(asked, gate_mode="router_input")).plan.plan_id
    cuvee.build_moe(asked, tmp_path / "out")


def test_all_layers_lie_in_the_memory_of_one(config, llamas, monkeypatch):
    from cuvee.moe import forward

    places, fill = [], forward._fill

    def noted(target, source, scratch):
        places.append(target.data_ptr())
        fill(target, source, scratch)

    monkeypatch.setattr(forward, "_fill", noted)
    plan_moe(prompted(config, llamas, "hidden"), how=Pass(batch=2))
    assert len(places) == 5 * 2 * 9  # batches of the 9 prompts, layers, weights of a layer
    assert len(set(places)) == 9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "router_input"])
def test_gates_on_a_gpu_are_those_of_the_cpu(mode, config, llamas):
    on_cpu, on_gpu = (gates(plan_moe(prompted(config, llamas, mode), how=Pass(device=d))) for d in ("cpu", "cuda"))
    assert torch.allclose(on_cpu, on_gpu, atol=1e-4)
