"""Leaves and blocks: how a tensor is cut, by its shape alone.

A *leaf* is the unit in which reductions are folded and digests are taken. A *block* is a run of leaves, as large as
suits the device. Because leaves depend on the shape only, no result depends on the size of the blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

__all__ = ["LEAF_ELEMENTS", "Layout"]

LEAF_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Layout:
    """The cut of one tensor.

    A leaf is as many whole slices of dimension 0 as fit in 2^16 elements; where one slice is larger, as many whole
    rows of the last dimension as fit, at least one; in one dimension, a run of 2^16.
    """

    shape: tuple[int, ...]

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """The shape of one step along a block's first dimension; a block is shaped `(steps, *inner)`."""
        if len(self.shape) < 2:
            return ()
        slice_shape = self.shape[1:]
        return slice_shape if math.prod(slice_shape) <= LEAF_ELEMENTS else self.shape[-1:]

    @cached_property
    def leaf(self) -> int:
        """Elements of a full leaf; the last one may be shorter."""
        step = max(1, math.prod(self.inner))
        return max(1, LEAF_ELEMENTS // step) * step

    @cached_property
    def leaves(self) -> int:
        """Number of leaves."""
        return -(-self.numel // self.leaf)

    def blocks(self, elements: int) -> list[tuple[int, int]]:
        """Return the flat `(start, stop)` of blocks of about `elements`, each a run of whole leaves."""
        size = max(1, elements // self.leaf) * self.leaf
        return [(start, min(start + size, self.numel)) for start in range(0, self.numel, size)]

    def block_shape(self, start: int, stop: int) -> tuple[int, ...]:
        """Return the shape of the block `[start, stop)`: `(steps, *inner)`."""
        return ((stop - start) // max(1, math.prod(self.inner)), *self.inner)
