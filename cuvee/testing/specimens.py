"""Small models of every shape that has ever broken a merge method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FACTORS", "LARGE", "LARGE_FACTORS", "SMALL", "Specimens", "by_place", "specimens", "statistics_of"]

Tensors = dict[str, "Tensor"]

SMALL: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (11, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.mlp.up_proj.bias": (17,),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.1.conv.weight": (4, 3, 3, 3),
    "model.layers.1.input_layernorm.weight": (8,),
    "model.layers.1.mlp.up_proj.weight": (16, 8),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
    "other.column": (5, 1),
    "other.empty": (0, 8),
    "other.nothing": (0,),
    "other.one": (1,),
    "other.rank_one.weight": (9, 7),
    "other.scalar": (),
    "other.zeros.weight": (6, 4),
}
"""One of each kind: matrices, vectors, a kernel, a scalar, empty ones, one of rank 1 and one that is zero everywhere."""

LARGE: dict[str, tuple[int, ...]] = {
    "model.layers.0.long.weight": (140_001,),
    "model.layers.0.tall.weight": (300, 500),
    "model.layers.1.deep.weight": (2, 300, 250),
    "model.layers.1.wide.weight": (2, 70_000),
    "other.scalar": (),
}
"""More than one leaf each: a long vector, many rows, slices larger than a leaf, rows larger than a leaf."""

_ADAPTED = "base_model.model.model.layers.0"
FACTORS: dict[str, tuple[int, ...]] = {
    f"{_ADAPTED}.conv.lora_A.weight": (3, 4, 3, 3),
    f"{_ADAPTED}.conv.lora_B.weight": (4, 3, 1, 1),
    f"{_ADAPTED}.mlp.down_proj.lora_A.weight": (1, 16),
    f"{_ADAPTED}.mlp.down_proj.lora_B.weight": (8, 1),
    f"{_ADAPTED}.self_attn.q_proj.lora_A.weight": (4, 8),
    f"{_ADAPTED}.self_attn.q_proj.lora_B.weight": (8, 4),
    "base_model.model.model.embed_tokens.lora_embedding_A": (2, 11),
    "base_model.model.model.embed_tokens.lora_embedding_B": (8, 2),
}
"""Of adapters: of a matrix, of rank 1, of a kernel and of an embedding."""
LARGE_FACTORS: dict[str, tuple[int, ...]] = {
    f"{_ADAPTED}.mlp.up_proj.lora_A.weight": (3, 70_000),
    f"{_ADAPTED}.mlp.up_proj.lora_B.weight": (70_000, 3),
}


class Specimens:
    """A base and its fine-tunes.

    Attributes:
        base: name -> tensor.
        models: K of them. The last one has whole leaves, and tensors, that equal the base's: an expert that was
            trained with frozen parts.
    """

    def __init__(self, base: Tensors, models: list[Tensors]) -> None:
        self.base = base
        self.models = models

    def to(self, target: torch.dtype | str) -> Specimens:
        """Return them in another dtype, or on another device."""
        return Specimens(_moved(self.base, target), [_moved(model, target) for model in self.models])


def _moved(tensors: Tensors, target: torch.dtype | str) -> Tensors:
    return {name: tensor.to(target) for name, tensor in tensors.items()}


def specimens(count: int, shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> Specimens:
    """Return `count` fine-tunes of a random base; equal arguments give equal bits in any process."""
    generator = torch.Generator().manual_seed(seed)

    def random(name: str, shape: tuple[int, ...]) -> Tensor:
        if "zeros" in name:
            return torch.zeros(shape)
        if "rank_one" in name:
            return torch.randn(shape[0], 1, generator=generator) * torch.randn(1, shape[1], generator=generator)
        return torch.randn(shape, generator=generator)

    base = {name: random(name, shape) * 0.5 for name, shape in shapes.items()}
    models = []
    for k in range(count):
        deltas = {name: random(name, shape) * (0.03 + 0.01 * k) for name, shape in shapes.items()}
        if k == count - 1 and count > 1:
            for name, delta in deltas.items():
                _freeze(name, delta)
        models.append({name: base[name] + delta for name, delta in deltas.items()})
    return Specimens(base, models)


def statistics_of(needs: Sequence[str], count: int) -> list[Tensors]:
    """Return what data might say of `count` fine-tunes, in the kinds that a method needs; names as in a file of one model.

    Raises:
        KeyError: for a kind that is not known here.
    """
    generator = torch.Generator().manual_seed(7)
    common = {"hidden": torch.randn(2, 5, 8, generator=generator)}  # of both layers: 5 texts, 8 wide
    found: list[Tensors] = []
    for k in range(count):
        own = {kind: common[kind] + 0.2 * (k + 1) * torch.randn(2, 5, 8, generator=generator) for kind in needs}
        found.append({f"{kind}/model.layers.{n}": value for kind in needs for n, value in enumerate(own[kind])})
    return found


def by_place(statistics: Sequence[Tensors]) -> Tensors:
    """Return the statistics of all models as `merge_tensors` takes them: `hidden/model0/…`."""
    return {
        name.replace("/", f"/model{k}/", 1): value for k, own in enumerate(statistics) for name, value in own.items()
    }


def _freeze(name: str, delta: Tensor) -> None:
    """Zero a whole layer, and the first leaf of what is large."""
    if name.startswith("model.layers.1.") and delta.numel() <= 1 << 16:
        delta.zero_()
    elif delta.numel() > 1 << 16:
        # The leading half, rounded down to whole slices, covers a leaf of every shape in LARGE.
        delta.reshape(-1)[: math.prod(delta.shape) // 2].zero_()
