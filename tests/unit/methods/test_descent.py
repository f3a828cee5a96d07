"""Adam by hand and as one fused step, whatever the layout of what it is given."""

from __future__ import annotations

import pytest
import torch

from cuvee.methods.pieces.descent import adam

GENERATOR = torch.Generator().manual_seed(0)
START, TARGET = torch.randn(2, 5, 7, generator=GENERATOR, dtype=torch.float64)


def transposed(values: torch.Tensor) -> torch.Tensor:
    """Return the same values, stored column after column."""
    return values.mT.contiguous().mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout_of_x", [torch.Tensor.contiguous, transposed])
@pytest.mark.parametrize("layout_of_gradient", [torch.Tensor.contiguous, transposed])
def test_adam_takes_the_steps_of_its_definition(dtype, layout_of_x, layout_of_gradient):
    x, first, second = START.clone(), torch.zeros_like(START), torch.zeros_like(START)
    for step in range(1, 21):
        g = 2 * (x - TARGET)
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g**2
        x = x - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    start = layout_of_x(START.to(dtype, copy=True))
    got = adam(start, lambda now: layout_of_gradient(2 * (now - TARGET.to(dtype))), 20, 0.1)
    torch.testing.assert_close(got.double(), x, rtol=1e-5, atol=1e-6)
