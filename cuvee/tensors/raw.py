"""The bytes of a tensor, without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["raw_bytes"]


def raw_bytes(values: Tensor) -> memoryview:
    """Return the bytes of a flat, contiguous CPU tensor; writing to them writes to it."""
    if values.numel() == 0:
        return memoryview(bytearray())
    return memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]
