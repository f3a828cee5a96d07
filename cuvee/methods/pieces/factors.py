"""Factors of low-rank adapters, W = B A, merged as they are: A (rank, inputs) is called down, B (outputs, rank) up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.errors import MethodError
from cuvee.methods.calls import apart_from_blocks, current
from cuvee.methods.pieces.trim import keep_largest
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DOWN", "UP", "down_beside", "is_down", "is_up", "rank_gain"]

DOWN, UP = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


def is_down(tensor: str) -> bool:
    """True for the name of a factor A."""
    return _part_of(tensor) in DOWN


def is_up(tensor: str) -> bool:
    """True for the name of a factor B."""
    return _part_of(tensor) in UP


def _part_of(tensor: str) -> str:
    return tensor.removesuffix(".weight").rpartition(".")[2]


def down_beside(tensor: str, k: int, ups: Tensor) -> Tensor:
    """Return the factor A of adapter k that belongs to a factor B, (rank, inputs): the statistic `adapter/model…`.

    Args:
        tensor: the name of the factor B.
        ups: (K, outputs, rank, …), that of every adapter.

    Raises:
        MethodError: the adapter has none, or one of another rank.
    """
    part = _part_of(tensor)
    before, _, after = tensor.rpartition(part)
    key = f"adapter/model{k}/{before}{DOWN[UP.index(part)]}{after}"
    statistics = current().statistics
    if key not in statistics:
        raise MethodError(f"adapter {k} has no factor A beside this B", where=key, right="fetch its file again")
    down: Tensor = statistics[key]
    if down.dim() < 2 or ups.dim() < 3 or len(down) != ups.shape[2]:
        found = f"the factors of adapter {k} are {tuple(ups.shape[1:])} and {tuple(down.shape)}"
        raise MethodError(found, where=key, right="adapters of one shape and rank")
    return down.to(ups.device, ups.dtype).flatten(1)


def rank_gain(down: Tensor, density: float, clamp_top: float) -> Tensor:
    """Return c, (rank,): how much of each row of A a trim takes, Σ|A| / Σ|Â|, lifted to the `clamp_top` largest.

    Args:
        down: (rank, inputs).
        density: share of entries kept, all that reach the threshold.

    A row that the trim leaves empty counts with 1 before it is lifted.
    """
    with apart_from_blocks(down):
        kept = keep_largest(down, density, inclusive=True)
    before, after = down.abs().sum(1), kept.abs().sum(1)
    gain = torch.where(after > 0, before / after.clamp(min=torch.finfo(after.dtype).tiny), 1.0)
    ranks = len(gain)
    return gain.clamp(min=gain.sort().values[min(int(ranks * (1 - clamp_top)), ranks - 1)]) if ranks else gain
