"""Sums in float64 whose order is fixed: 256 lanes, element i in lane i mod 256, the lanes then added in order.

The same bits on every machine, with and without kernels; a plain sum follows the width of the processor's vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.tensors import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["lane_sum", "magnitude_sum", "product_sums"]

_LANES = 256


def lane_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums along the last axis: (…, n) into (…)."""
    padding = -values.shape[-1] % _LANES
    if padding:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], padding))], axis=-1)
    lanes = np.add.reduce(values.reshape(*values.shape[:-1], -1, _LANES), axis=-2)
    return np.add.accumulate(lanes, axis=-1)[..., -1]


def product_sums(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return ⟨x_i, x_j⟩ of K vectors: (K, n), float32 or float64, into (K, K)."""
    models = len(values)
    result = np.zeros((models, models))
    if kernels.available() and values.dtype == np.float32:
        kernels.product_sums_kernel(np.ascontiguousarray(values), result)
    else:
        wide = values.astype(np.float64)
        for i in range(models):
            for j in range(i + 1):
                result[i, j] = lane_sum(wide[i] * wide[j])
    return np.tril(result) + np.tril(result, -1).T


def magnitude_sum(values: NDArray[Any]) -> float:
    """Return Σ |x| of (n,), float32 or float64."""
    if kernels.available() and values.dtype == np.float32:
        return float(kernels.magnitude_sum_kernel(np.ascontiguousarray(values)))
    return float(lane_sum(np.abs(values.astype(np.float64))))
