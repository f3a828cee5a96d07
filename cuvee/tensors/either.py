"""Values that may be a NumPy array or a tensor: what pieces need of both. Arrays stay arrays while kernels serve them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_tensor", "empty_like", "number_of", "same_memory"]


def number_of(values: Any) -> int:
    """Return the number of elements."""
    return math.prod(values.shape)


def as_tensor(values: Any) -> Tensor:
    """Return a tensor over the same memory: a definition in PyTorch begins with this."""
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


def empty_like(values: Any) -> Any:
    """Return uninitialised values of the same kind, shape and dtype."""
    return np.empty_like(values) if isinstance(values, np.ndarray) else torch.empty_like(values)


def same_memory(one: Any, other: Any) -> bool:
    """True when both begin at the same place in memory."""
    return bool(_place(one) == _place(other))


def _place(values: Any) -> int:
    return values.__array_interface__["data"][0] if isinstance(values, np.ndarray) else values.data_ptr()
