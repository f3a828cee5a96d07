"""Interpolation on the sphere: every method of the family is Σ c_i x_i with c from the Gram matrix alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cuvee.methods.calls import current, noted
from cuvee.methods.combination import Stored
from cuvee.methods.measuring import Over
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Act

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["linear_combination", "slerp_coefficients"]

_OPPOSITE = 1e-6
"""How near to −1 a cosine counts as it: the arc there is as long as it is arbitrary, and blows rounding up a thousandfold."""


def slerp_coefficients(gram: NDArray[Any], t: float, *, near: float, unit_floor: float) -> NDArray[Any]:
    """Return (c_0, c_1) of slerp(x_0, x_1; t) for each Gram matrix.

    Args:
        gram: (2, 2, …), float64.
        near: beyond this |cosine| the straight line is taken, and beyond −1 + 1e-6 always.
        unit_floor: vectors with a norm up to this are not normalised.

    Returns:
        (2, …).

    Source: Shoemake 1985.
    """
    norms = np.sqrt(np.maximum(gram[(0, 1), (0, 1)], 0.0))
    scale = np.where(norms > unit_floor, norms, 1.0)
    cosine = np.clip(gram[0, 1] / (scale[0] * scale[1]), -1.0, 1.0)
    theta = np.arccos(cosine)
    straight = (np.abs(cosine) > near) | (cosine < _OPPOSITE - 1) | (np.sin(theta) < 1e-8)
    if straight.ndim == 0 and straight:
        noted(fallback="a straight line between the two")
    sine = np.where(straight, 1.0, np.sin(theta))
    arc = np.stack([np.sin((1 - t) * theta) / sine, np.sin(t * theta) / sine])
    line = np.stack([np.full_like(cosine, 1 - t), np.full_like(cosine, t)])
    return np.where(straight, line, arc)


def linear_combination(values: Tensor, coefficients: Any, over: Over | Literal["element"] = "all") -> Tensor:
    """Return Σ c_i x_i.

    Args:
        values: (K, …), a block.
        coefficients: (K,), or (K, …) with one for each row or column of the block, as `measured` gives them.
        over: what the coefficients belong to; "element": to each of the block's own.
    """
    array = np.asarray(coefficients, np.float64)
    if array.ndim == 1:
        return weighted_sum(values, [float(c) for c in array])
    if isinstance(values, Stored):
        run, first = (values.shape[-1] if over == "row" else 1), (current().place.start if over == "column" else 0)
        pairs = zip(values.rows, array.reshape(len(array), -1).astype(np.float32), strict=True)
        each = [row.then(Act.MULTIPLY_EACH, factors=factors, run=run, first=first) for row, factors in pairs]
        return weighted_sum(Stored(each))
    return weighted_sum(values, [_shaped(values[0], c, over) for c in array])


def _shaped(block: Tensor, coefficient: NDArray[Any], over: str) -> Tensor:
    """Give a coefficient for each row, column or element the shape that broadcasts to the block."""
    if over != "column":
        found = coefficient.reshape(*block.shape[:-1], -1)
    elif math.prod(block.shape[1:]) == coefficient.size:
        found = coefficient.reshape(block.shape[1:])
    else:
        columns = (current().place.start + np.arange(math.prod(block.shape))) % coefficient.size
        found = coefficient.reshape(-1)[columns].reshape(block.shape)
    return torch.as_tensor(found, dtype=block.dtype, device=block.device)
