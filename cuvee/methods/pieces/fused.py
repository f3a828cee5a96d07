"""Fused matrices (queries, keys and values in one; gate and up in one), merged part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cuvee.architectures.meaning import Fused
from cuvee.methods.calls import current
from cuvee.methods.combination import Matrices
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["by_parts", "places_of_parts"]


def by_parts(merge: Callable[[Matrices], Tensor], deltas: Matrices) -> Tensor:
    """Merge each matrix of a fused one by itself; one that is not fused, or whose order is not known, whole.

    Args:
        merge: of (K, a, b) into (a, b). It measures nothing over the model.
        deltas: (K, m, n).

    Returns:
        (m, n).
    """
    place = current().place
    if place.fused is None:
        return merge(deltas)
    count, m, n = deltas.shape
    out: Tensor | None = None
    for rows in places_of_parts(place.fused):
        merged = merge(Matrices((count, len(rows), n), lambda k, rows=rows: deltas[k].index_select(0, rows)))  # type: ignore[misc]
        out = merged.new_empty(m, n) if out is None else out
        out.index_copy_(0, rows.to(merged.device), merged)
    assert out is not None, "a fused matrix has parts"
    return out


def places_of_parts(fused: Fused) -> Iterator[Tensor]:
    """Yield for each part the rows that it has in the fused matrix, in order."""
    group = sum(part.rows for part in fused.parts)
    begin = 0
    for part in fused.parts:
        own = torch.arange(begin, begin + part.rows)
        yield (group * torch.arange(fused.groups)[:, None] + own).reshape(-1)
        begin += part.rows
