"""Measure how K vectors lie to each other, from their Gram matrix alone: any point Σ c_i x_i has known distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["distances_between", "distances_from"]


def distances_from(coefficients: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ‖x_i − Σ c_j x_j‖ for each i, (K,).

    Args:
        coefficients: (K,).
        gram: (K, K), ⟨x_i, x_j⟩.
    """
    away = np.eye(len(gram)) - coefficients
    return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", away, gram, away), 0.0))


def distances_between(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ‖x_i − x_j‖, (K, K)."""
    squares = np.diag(gram)
    return np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0))
