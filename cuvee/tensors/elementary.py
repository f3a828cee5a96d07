"""exp and tanh of float32 by additions, multiplications and divisions alone: the same bits on every machine and device.

Those of PyTorch and NumPy follow the width of the processor's vectors, and whether it fuses multiply and add.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["exp", "tanh"]

_HIGH = 355 / 512
"""ln 2 in two parts: times a whole number of two digits the first is exact."""
_LOW = math.log(2) - _HIGH
_ROUNDS = 3.0 * 2**22
"""Added and taken off, it rounds to a whole number."""
_MOST = 88.0


def exp(x: Tensor) -> Tensor:
    """Return eˣ within 2 units in the last place; that of 88 for all above, of −87 for all below. float64: as PyTorch."""
    if x.dtype == torch.float64:
        return x.exp()
    power, rest = _parts(x.clamp(-_MOST + 1, _MOST))
    return power * (rest + 1)


def tanh(x: Tensor) -> Tensor:
    """Return tanh x within 4 units in the last place. float64: as PyTorch."""
    if x.dtype == torch.float64:
        return x.tanh()
    power, rest = _parts((x.abs() * 2).clamp(max=40.0))
    grown = power * rest + (power - 1)  # e^2|x| − 1
    return (grown / (grown + 2)).copysign(x)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return 2ᶻ and eʳ − 1 with x = z ln 2 + r and |r| ≤ ½ ln 2: a Taylor polynomial, whose error is below rounding."""
    z = x * (1 / math.log(2)) + _ROUNDS - _ROUNDS
    r = x - z * _HIGH - z * _LOW
    tail = r * (1 / 5040) + 1 / 720
    for factorial in (120, 24, 6, 2):
        tail = tail * r + 1 / factorial
    return ((z.to(torch.int32) + 127) << 23).view(torch.float32), r * r * tail + r
