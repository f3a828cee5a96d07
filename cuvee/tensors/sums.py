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
    """Return ⟨x_i, x_j⟩ of K vectors along the last axis: (K, …, n), float32 or float64, into (K, K, …)."""
    if kernels.available() and values.dtype == np.float32 and values.size:
        vectors = [kernels.row_of(vector) for vector in np.ascontiguousarray(values)]
        sums = kernels.product_sums(vectors, values.shape[-1])
        return np.moveaxis(sums.reshape(*values.shape[1:-1], *sums.shape[1:]), (-2, -1), (0, 1))
    wide = values.astype(np.float64)
    rows = [[lane_sum(wide[i] * wide[j]) for j in range(i + 1)] for i in range(len(values))]
    return np.array([[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))])


def magnitude_sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return Σ |x| along the last axis: (…, n), float32 or float64, into (…)."""
    if kernels.available() and values.dtype == np.float32 and values.size:
        sums = kernels.lane_sums([kernels.row_of(np.ascontiguousarray(values))], values.shape[-1], square=False)
        return sums.reshape(values.shape[:-1])
    return lane_sum(np.abs(values.astype(np.float64)))
