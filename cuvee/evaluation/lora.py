"""LoRA (arXiv 2106.09685): linear layers that learn a product of two thin matrices beside their weight, saved as PEFT does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["adapter_config", "adapter_tensors", "with_lora"]

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _WithLora(nn.Module):
    """W·x + (alpha / rank)·B·A·x with W at rest; B begins at zero."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = linear.weight.requires_grad_(False)
        bound = linear.in_features**-0.5
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))
        self._scale = alpha / rank

    def forward(self, inputs: Tensor) -> Tensor:
        low = functional.linear(functional.linear(inputs, self.lora_A), self.lora_B)
        return functional.linear(inputs, self.weight) + self._scale * low


def with_lora(model: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Replace the linear layers of attention and MLP, in place; nothing else learns any more."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(model.named_modules()):
        if name.endswith(MODULES) and isinstance(module, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _WithLora(module, rank, alpha, generator))


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what was learned, under the names of PEFT."""
    return {
        f"base_model.model.{name}.weight": parameter.detach()
        for name, parameter in model.named_parameters()
        if name.endswith(("lora_A", "lora_B"))
    }


def adapter_config(base: str, rank: int, alpha: float) -> dict[str, Any]:
    """Return adapter_config.json of PEFT."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": list(MODULES),
        "inference_mode": True,
    }
