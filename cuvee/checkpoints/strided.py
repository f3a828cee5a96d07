"""Tensors whose elements do not follow each other in their file, or whose bytes are the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cuvee.checkpoints.sources import ModelFile, Scratch
from cuvee.errors import printable
from cuvee.tensors.dtypes import DType, torch_dtype

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["StridedTensor", "is_contiguous"]

_ELEMENTS_AT_ONCE = 1 << 18
_GAP_BYTES = 32 << 10
_RUN_BYTES = 4 << 20


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """True when the elements follow each other in the order of `shape`; steps along a single element do not count."""
    step = 1
    for size, actual in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and actual != step:
            return False
        step *= size
    return True


@dataclass(frozen=True)
class StridedTensor:
    """A view of a run of elements in a file.

    Attributes:
        offset: byte at which the element of index (0, 0, …) lies.
        stride: step along each dimension, in elements, none negative.
        big_endian: the most significant byte comes first.
    """

    file: ModelFile
    name: str
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    big_endian: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """File and byte offset."""
        return str(self.file.path), self.offset

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)` in the order of `shape`."""
        size = self.dtype.itemsize
        raw = scratch.take(slot, (stop - start) * size)
        out = raw.numpy().reshape(-1, size)
        for begin in range(start, stop, _ELEMENTS_AT_ONCE):
            end = min(begin + _ELEMENTS_AT_ONCE, stop)
            self._gather(self._indices(begin, end), out[begin - start : end - start])
        if self.big_endian:
            word = 4 if self.dtype.kind == "complex" else size
            words = out.reshape(-1, word)
            words[:] = words[:, ::-1].copy()
        return raw.view(torch_dtype(self.dtype))

    def _indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return where the flat elements `[start, stop)` lie, in elements from `offset`."""
        left = np.arange(start, stop, dtype=np.int64)
        where = np.zeros_like(left)
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            left, along = np.divmod(left, size)
            where += along * step
        return where

    def _gather(self, where: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        order = np.argsort(where, kind="stable")
        sorted_where = where[order]
        for begin, end in self._runs(sorted_where):
            first, last = int(sorted_where[begin]), int(sorted_where[end - 1])
            run = np.empty((last + 1 - first, self.dtype.itemsize), dtype=np.uint8)
            what = f"tensor {printable(self.name)!r}"
            self.file.read_into(run.reshape(-1).data, self.offset + first * self.dtype.itemsize, what)
            out[order[begin:end]] = run[sorted_where[begin:end] - first]

    def _runs(self, where: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Cut ascending places into runs worth one read each: near to each other, and not too long."""
        size = self.dtype.itemsize
        cuts = np.flatnonzero(np.diff(where) * size > _GAP_BYTES) + 1
        limit = _RUN_BYTES // size
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(where)], strict=True):
            while begin < end:
                reach = int(np.searchsorted(where[begin:end], int(where[begin]) + limit))
                yield begin, begin + reach
                begin += reach
