"""Merges of adapters as they are: opened without their base, held against each other, published as an adapter."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cuvee.checkpoints.folders import ADAPTER_WEIGHTS
from cuvee.checkpoints.sources import Model
from cuvee.checkpoints.writing import Shard, plan_shards
from cuvee.engine.tasks import Task
from cuvee.errors import IncompatibleModels
from cuvee.methods.pieces.factors import is_down, is_up

__all__ = ["adapter_shards", "check_adapters"]

_ALIKE = {
    "rank": "r",
    "alpha": "lora_alpha",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "is_rank_stabilized": "use_rslora",
    "has_magnitudes": "use_dora",
    "is_transposed": "fan_in_fan_out",
    "token_rows": "trainable_token_indices",
}
"""What the configs of adapters must agree on, by its key there."""


def check_adapters(adapters: Mapping[int, Model], tasks: Sequence[Task]) -> list[str]:
    """Hold adapters against each other; returns warnings.

    Raises:
        IncompatibleModels: they have no factors, or scale them differently: their factors do not mean the same.
    """
    if not any(is_down(task.name) or is_up(task.name) for task in tasks if not task.is_copy):
        right = "folders of LoRA adapters, whose tensors are called X.lora_A.weight and X.lora_B.weight"
        raise IncompatibleModels("the models have no factors of adapters", right=right)
    configs = [(model.label, model.adapter) for _, model in sorted(adapters.items()) if model.adapter is not None]
    for label, config in configs[1:]:
        first, wanted = configs[0]
        for name, key in _ALIKE.items():
            one, other = getattr(wanted, name), getattr(config, name)
            if one != other:
                raise IncompatibleModels(
                    f"{key} is {one} in {first!r} and {other} in {label!r}: equal factors mean different updates",
                    where=str(config.path),
                    right=f"adapters of one {key}; or their merged weights: models: [BASE+{first}, BASE+{label}]",
                )
    bases = {config.base: label for label, config in reversed(configs)}
    said = ", ".join(f"{label} on {base}" for base, label in bases.items())
    return [f"the adapters say that they were trained on different bases: {said}"] if len(bases) > 1 else []


def adapter_shards(tasks: Sequence[Task]) -> list[Shard]:
    """Return the one file of an adapter, under its name."""
    (shard,) = plan_shards({task.name: (task.dtype, task.layout.shape) for task in tasks}, sys.maxsize)
    return [replace(shard, file=ADAPTER_WEIGHTS[0])]
