"""Models of these tests, read whole, and what is asserted of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from cuvee.checkpoints.sources import Model, Scratch, TensorSource, read_all

WriteModel = Callable[..., Path]


def read_model(model: Model) -> dict[str, torch.Tensor]:
    """Return every tensor of a model."""
    return {name: read_all(source) for name, source in model.tensors.items()}


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """True when shape, dtype and every bit agree."""
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*flat)


def assert_blocks_agree(source: TensorSource, whole: torch.Tensor) -> None:
    """Any run of elements is the same run of the whole, whatever block is asked."""
    flat, count = whole.reshape(-1), whole.numel()
    cuts = {0, 1, count // 3, count // 2, count - 1, count}
    scratch = Scratch()
    for start in cuts:
        for stop in cuts:
            if 0 <= start < stop <= count:
                assert same_bytes(source.read(start, stop, scratch, "test"), flat[start:stop]), (start, stop)
