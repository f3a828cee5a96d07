"""Metrics on inputs: X G for a positive semidefinite G that is held as a matrix, or as few long rows R with G = RᵀR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cuvee.methods.spectral import eigh, gram, gram_spectrum
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Metric", "of_gram", "of_rows", "sum_of"]


class Metric(NamedTuple):
    """G, (n, n), or R, (p, n), p < n; elements of G off the diagonal count `offdiag` times.

    Attributes:
        held: G, with that already done, or R, float64.
        is_rows: it is R.
        offdiag: of R.
    """

    held: Tensor
    is_rows: bool = False
    offdiag: float = 1.0

    def times(self, x: Tensor) -> Tensor:
        """Return X G, (m, n)."""
        if not self.is_rows:
            return x @ self.held
        whole = (x @ self.held.mT) @ self.held
        if self.offdiag == 1:
            return whole
        return whole.mul_(self.offdiag).add_(x * self.held.square().sum(0), alpha=1 - self.offdiag)

    @property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, falling, and eigenvectors, of G or, with nothing off the diagonal weakened, of RᵀR."""
        assert self.offdiag == 1 or not self.is_rows, "it has n directions, which are not held"
        return gram_spectrum(self.held) if self.is_rows else eigh(self.held)


def of_gram(given: Tensor, offdiag: float) -> Metric:
    """Return the metric of a Gram matrix (n, n)."""
    return Metric(_weakened(given.to(torch.float64), offdiag))


def of_rows(rows: Tensor, offdiag: float) -> Metric:
    """Return the metric RᵀR of rows (p, n), float64, held as what is smaller."""
    if rows.shape[0] < rows.shape[1]:
        return Metric(rows, True, offdiag)
    return Metric(_weakened(gram(rows), offdiag))


def sum_of(metrics: Sequence[Metric]) -> Metric:
    """Return the sum of metrics that are all held alike."""
    if metrics[0].is_rows:
        return of_rows(torch.cat([one.held for one in metrics]), metrics[0].offdiag)
    total = metrics[0].held.clone()
    for one in metrics[1:]:
        total += one.held
    return Metric(total)


def _weakened(given: Tensor, offdiag: float) -> Tensor:
    """Return a matrix with its elements off the diagonal multiplied."""
    return given if offdiag == 1 else (given * offdiag).diagonal_scatter(given.diagonal())
