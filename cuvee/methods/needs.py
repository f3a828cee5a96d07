"""What methods need besides weights, and the commands that collect it."""

from __future__ import annotations

import re

__all__ = ["COLLECTED", "collect_command", "module_of"]

COLLECTED = {
    "fisher": "diagonal Fisher information of every tensor, over the model's own predictions",
    "gram": "input Gram matrices of every linear map, XᵀX over the tokens",
    "hidden": "hidden states after every layer, the mean over each text",
    "outgram": "Gram matrices of the gradients at the outputs of every linear map, over the model's own predictions",
}
"""The kinds of statistics that `cuvee collect` collects."""


def collect_command(kind: str, model: str = "MODEL", out: str = "a.safetensors") -> str:
    """Return what to do where a model lacks a statistic."""
    entry = f"models: - {{model: {model}, statistics: {out}}}"
    return f"cuvee collect {kind} {model} texts.txt {out}; {entry}" if kind in COLLECTED else entry


def module_of(tensor: str) -> str:
    """Return the name of the module that a weight is of, or of one of its experts: `mlp.up` of `mlp.up.weight`."""
    return re.sub(r"\.weight(\[\d+\])?$", r"\1", tensor)
