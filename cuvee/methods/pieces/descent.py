"""Iterative minimisers of a quadratic whose gradient is a product of matrices: no automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["adam", "conjugate_gradient", "momentum_descent"]


def adam(x: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, lr: float) -> Tensor:
    """Return x after so many steps of Adam (β 0.9 and 0.999, ε 1e-8). `x`, float32 or float64, may be changed in place.

    No element moves by much more than lr a step, whatever its gradient: the length of the path is absolute.
    """
    # One pass over memory a step; the class torch.optim.Adam would load the compiler.
    from torch.optim.adam import adam as adam_step

    settings: Any = {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    x = x.contiguous()  # the fused step goes through memory in order, whatever the strides are
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    done = torch.zeros((), device=x.device)
    for _ in range(steps):
        adam_step(
            [x],
            [gradient(x).contiguous()],
            [first],
            [second],
            [],
            [done],
            fused=True,
            amsgrad=False,
            maximize=False,
            **settings,
        )
    return x


def momentum_descent(x: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, lr: float, momentum: float) -> Tensor:
    """Return x after so many steps of gradient descent with heavy-ball momentum. `x` is changed in place."""
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        velocity.mul_(momentum).add_(gradient(x))
        x.sub_(velocity, alpha=lr)
    return x


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, iterations: int, enough: float
) -> Tensor:
    """Return x after at most so many steps of conjugate gradients towards A(x) = b.

    Args:
        operator: x -> A(x), linear, symmetric and positive semidefinite, on tensors of any shape.
        b: what is to be reached.
        x: where it starts; what A does not see stays as it is there.
        enough: it stops where ‖b − A(x)‖ is less.
    """
    x = x.clone()
    residual = b - operator(x)
    direction = residual.clone()
    squared = float(residual.square().sum())
    for _ in range(iterations):
        if squared**0.5 <= enough:
            break
        image = operator(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:
            break
        step = squared / curvature
        x.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        before, squared = squared, float(residual.square().sum())
        direction.mul_(squared / before).add_(residual)
    return x
