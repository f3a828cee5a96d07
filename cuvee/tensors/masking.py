"""Zeroing entries, fast: on a CPU `torch.where` is not vectorised over a mask, an AND of bits is (13 times faster)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cuvee.tensors import kernels
from cuvee.tensors.either import as_tensor
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Act, Row

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["keep_where", "sign_or_plus"]

_CHUNK = 1 << 18


def keep_where(mask: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `torch.where(mask, values, 0)`, in `out` where kernels write it.

    Args:
        mask: bool, shaped as `values`.
        values: float32 or float64, or a row.
    """
    if isinstance(values, Row):
        return values.then(Act.KEEP_MASK, mask=mask)
    if kernels.serve(values) and mask.shape == values.shape:
        return kernels.keep(mask if isinstance(mask, np.ndarray) else mask.contiguous(), values, out)
    mask, values = as_tensor(mask), as_tensor(values)
    if values.device.type != "cpu" or mask.shape != values.shape:
        return torch.where(mask, values, 0)
    whole = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = values.contiguous().view(whole).reshape(-1)
    keep = mask.contiguous().view(torch.int8).reshape(-1)
    result = torch.empty_like(bits)
    for begin in range(0, len(bits), _CHUNK):  # in pieces that stay in the cache
        piece = slice(begin, begin + _CHUNK)
        torch.bitwise_and(keep[piece].to(whole).neg_(), bits[piece], out=result[piece])
    return result.view(values.dtype).reshape(values.shape)


def sign_or_plus(values: Tensor) -> Tensor:
    """Return +1 where a value is ≥ 0, else −1, in the values' dtype."""
    return (values >= 0).to(values.dtype).mul_(2).sub_(1)
