"""exp and tanh of our own against those of float64."""

from __future__ import annotations

import pytest
import torch

from cuvee.tensors.elementary import exp, tanh

POINTS = torch.cat([torch.linspace(-87, 88, 200_001), torch.logspace(-40, 1, 5001), torch.zeros(1)])


def units_off(found: torch.Tensor, right: torch.Tensor) -> float:
    """How far apart they are, in units in the last place of float32."""
    unit = torch.nextafter(right.float().abs(), torch.tensor(float("inf"))).double() - right.float().abs().double()
    return float(((found.double() - right).abs() / unit).max())


@pytest.mark.parametrize(("function", "most"), [(exp, 2), (tanh, 4)])
def test_values_are_those_of_float64_to_a_few_units(function, most):
    right = getattr(torch, function.__name__)
    for points in (POINTS, -POINTS.clamp(max=87)):
        assert units_off(function(points), right(points.double())) <= most
        assert torch.equal(function(points.double()), right(points.double()))


def test_the_ends_are_reached_and_signs_and_nan_stay():
    far = torch.tensor([-1e30, -200.0, 1e-30, 0.0, 200.0, float("inf"), float("nan")])
    assert tanh(far)[:6].tolist() == pytest.approx([-1, -1, 1e-30, 0, 1, 1], rel=1e-6)
    assert exp(far)[[0, 1, 2, 3]].tolist() == pytest.approx([1.65e-38, 1.65e-38, 1, 1], rel=1e-2)
    assert exp(far)[[4, 5]].tolist() == pytest.approx([1.65e38] * 2, rel=1e-2)
    assert tanh(far)[6].isnan() and exp(far)[6].isnan()
    assert torch.equal(tanh(-far), -tanh(far)) or tanh(far)[6].isnan()
