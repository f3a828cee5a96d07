"""Combine K tensors into one by a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cuvee.errors import MethodError
from cuvee.methods.combination import Combination, Stored, plain
from cuvee.methods.measuring import spread
from cuvee.tensors import kernels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["mean", "weighted_sum"]


def weighted_sum(values: Tensor, weight: Any, *, normalize: bool = False) -> Tensor:
    """Return Σ w_i x_i, divided by Σ w_i when `normalize` (unless |Σ w_i| < 1e-8).

    Args:
        values: (K, …): a tensor, an array, or stored blocks, whose sum is then a `Combination`.
        weight: K coefficients, or tensors that broadcast to a block; one number for all.
    """
    weights: Sequence[Any] = spread(weight, len(values))
    sum_of_weights = sum(weights) if normalize else 1.0
    divisor = sum_of_weights if abs(sum_of_weights) >= 1e-8 else 1.0
    are_numbers = all(isinstance(w, float | int) for w in weights)
    if isinstance(values, Stored) and are_numbers:
        return Combination([float(w) for w in weights], float(divisor))
    values = plain(values)
    if are_numbers and kernels.serve(values):
        return kernels.weighted_sum(values, weights, divisor)
    # Multiply and add stay separate: a fused multiply-add rounds differently from machine to machine.
    total = values[0] * weights[0]
    for value, w in zip(values[1:], weights[1:], strict=True):
        total += value * w
    return total if divisor == 1.0 else total / divisor


def mean(values: Tensor) -> Tensor:
    """Return the plain mean over the K models; K equal models give that model."""
    if len(values) == 0:
        raise MethodError("nothing to average", right="name at least one model")
    return weighted_sum(values, 1.0, normalize=True)
