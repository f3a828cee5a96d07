"""Combine K tensors into one by a weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.errors import MethodError
from cuvee.methods.combination import Matrices, Stored, plain, spread
from cuvee.tensors import kernels
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Combination, Rule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OTHERS", "largest", "mean", "mean_of_weighted", "nothing", "weighted_sum"]


def weighted_sum(values: Any, weight: Any = 1.0, *, normalize: bool = False) -> Any:
    """Return Σ w_i x_i, divided by Σ w_i when `normalize` (unless |Σ w_i| < 1e-8).

    Args:
        values: (K, …): a tensor, an array, matrices that are loaded one by one, or stored blocks, whose sum is then a
            `Combination`.
        weight: K coefficients, or tensors that broadcast to a block; one number for all.
    """
    weights: Sequence[Any] = spread(weight, len(values))
    sum_of_weights = sum(weights) if normalize else 1.0
    divisor = sum_of_weights if abs(sum_of_weights) >= 1e-8 else 1.0
    are_numbers = all(isinstance(w, float | int) for w in weights)
    if isinstance(values, Stored) and are_numbers:
        return Combination(values.rows, [float(w) for w in weights], float(divisor))
    one_by_one = isinstance(values, Matrices)
    values = values if one_by_one else plain(values)
    if are_numbers and not one_by_one and kernels.serve(values):
        return kernels.weighted_sum(values, weights, divisor)
    # Multiply and add stay separate: a fused multiply-add rounds differently from machine to machine.
    total = values[0] * weights[0]
    for k in range(1, len(values)):
        total += values[k] * weights[k]
    return total if divisor == 1.0 else total / divisor


def largest(values: Any) -> Any:
    """Return of each element the value with the largest magnitude, of equal ones the later model's; (K, …) into (…)."""
    if isinstance(values, Stored):
        return Combination(values.rows, [1.0] * len(values), rule=Rule.LARGEST)
    best = values[0]
    for value in values[1:]:
        best = torch.where(value.abs() >= best.abs(), value, best)
    return best


def mean(values: Any) -> Tensor:
    """Return the plain mean over the K models; K equal models give that model."""
    if len(values) == 0:
        raise MethodError("nothing to average", right="name at least one model")
    return weighted_sum(values, 1.0, normalize=True)


def mean_of_weighted(values: Any, weight: Any = 1.0) -> Tensor:
    """Return Σ w_i x_i / K."""
    weights = spread(weight, len(values))
    return mean(values) if set(weights) == {1.0} else weighted_sum(values, [w / len(values) for w in weights])


def nothing(values: Any, weight: Any = 1.0) -> Tensor:
    """Return zeros: the task vector of the base itself."""
    return weighted_sum(values, 0.0)


OTHERS: dict[str, Callable[..., Tensor]] = {"mean": mean_of_weighted, "sum": weighted_sum, "base": nothing}
"""What a method on matrices does with the task vectors of all else, by the value of `others`."""
