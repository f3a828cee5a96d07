"""Where tokens go: what is measured equals what the published model does in transformers."""

from __future__ import annotations

import pytest
import torch
from dense_models import PROMPTS, WORDS

import cuvee
from cuvee.moe import ExpertEntry, plan_moe
from cuvee.moe.forward import Pass
from cuvee.moe.routing import _warnings, measure_routing

transformers = pytest.importorskip("transformers")


def built(config, llamas, out, **settings):
    if settings.pop("shared", False):
        settings["shared_experts"] = [ExpertEntry(str(llamas / "expert1"), ["a b"], residual_scale=0.5)]
    mixture = plan_moe(config(**settings))
    cuvee.run(mixture.plan, out)
    return mixture


def counted(folder, per_token) -> torch.Tensor:
    """Return [i][j]: how often the tokens of prompt i choose expert j, by the router of transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for owner, prompt in enumerate(PROMPTS[:3]):
        tokens = torch.tensor([[1, *(WORDS.index(word) for word in prompt.split())]])

        def count(_, inputs, output, owner=owner):
            chosen = output[0].topk(per_token, dim=-1).indices
            counts[owner] += torch.bincount(chosen.reshape(-1), minlength=3)

        hooks = [layer.mlp.gate.register_forward_hook(count) for layer in model.model.layers]
        with torch.inference_mode():
            model(tokens)
        for hook in hooks:
            hook.remove()
    return counts


@pytest.mark.parametrize("per_token", [1, 2])
@pytest.mark.parametrize("form", ["fused", "separate"])
@pytest.mark.parametrize("shared", [False, True], ids=["Mixtral", "Qwen MoE"])
def test_the_shares_are_those_of_the_model_in_transformers(shared, form, per_token, config, llamas, tmp_path):
    mixture = built(
        config, llamas, tmp_path / "out", shared=shared, expert_layout=form, experts_per_token=per_token,
        gate_mode="hidden",
    )  # fmt: skip
    counts = counted(tmp_path / "out", per_token)
    routing = measure_routing(mixture, tmp_path / "out", Pass(batch=2))
    assert torch.allclose(torch.tensor(routing.shares), counts / counts.sum(dim=1, keepdim=True))
    tokens = torch.tensor([2 * (1 + len(prompt.split())) for prompt in PROMPTS[:3]])
    assert torch.allclose(torch.tensor(routing.own), counts.diagonal() / tokens)
    assert sum(routing.usage) == pytest.approx(1)
    assert routing.chance == per_token / 3


def test_a_deepseek_mixture_is_measured_too(config, llamas, tmp_path):
    mixture = built(config, llamas, tmp_path / "out", architecture="deepseek")
    routing = measure_routing(mixture, tmp_path / "out", Pass())
    assert [sum(row) for row in routing.shares] == pytest.approx([1, 1, 1])


def test_an_expert_that_nothing_reaches_is_warned_of():
    assert _warnings([4, 0, 2], [0.9, 0.1, 0.4], 2 / 3) == [
        "expert 1 is never chosen by any prompt",
        "the prompts of expert 1 reach it with 10 % of their tokens; chance would be 67 %",
        "the prompts of expert 2 reach it with 40 % of their tokens; chance would be 67 %",
    ]
    assert _warnings([2, 2], [1.0, 1.0], 1.0) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_routing_on_a_gpu_is_that_of_the_cpu(config, llamas, tmp_path):
    mixture = built(config, llamas, tmp_path / "out", gate_mode="hidden")
    on_cpu, on_gpu = (measure_routing(mixture, tmp_path / "out", Pass(device=device)) for device in ("cpu", "cuda"))
    assert torch.allclose(torch.tensor(on_cpu.shares), torch.tensor(on_gpu.shares), atol=0.05)
