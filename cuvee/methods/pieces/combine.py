"""Combine K tensors into one by a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cuvee.errors import MethodError
from cuvee.methods.measuring import spread
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["mean", "weighted_sum"]


def weighted_sum(values: Tensor, weight: Any, *, normalize: bool = False) -> Tensor:
    """Return Σ w_i x_i, divided by Σ w_i when `normalize` (unless |Σ w_i| < 1e-8).

    Args:
        values: (K, …).
        weight: K coefficients, or tensors that broadcast to a block; one number for all.
    """
    weights: Sequence[Any] = spread(weight, len(values))
    # Multiply and add stay separate: a fused multiply-add rounds differently from machine to machine.
    total = values[0] * weights[0]
    product = torch.empty_like(total)
    for value, w in zip(values[1:], weights[1:], strict=True):
        total.add_(torch.mul(value, w, out=product))
    if normalize:
        sum_of_weights = sum(weights)
        if abs(sum_of_weights) >= 1e-8:
            total.div_(sum_of_weights)
    return total


def mean(values: Tensor) -> Tensor:
    """Return the plain mean over the K models; K equal models give that model."""
    if len(values) == 0:
        raise MethodError("nothing to average", right="name at least one model")
    return weighted_sum(values, 1.0).div_(len(values))
