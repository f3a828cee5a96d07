"""Gathered rows: a matrix whose rows are rows of other matrices, or sums of them. E' = S·E, with a sparse S.

Vocabularies that differ come down to this: a permuted embedding has one entry a row, a token that only another model
knows takes that model's row, a transplanted one is a combination of rows that both models know.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from cuvee.checkpoints.sources import Scratch, TensorSource
from cuvee.tensors.draws import draw_key, drawn_words
from cuvee.tensors.dtypes import DTYPES, DType, torch_dtype
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Integers: TypeAlias = NDArray[np.int64]
    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["CombinedRows", "NormalRows", "ProjectedRows", "RowMean", "RowTable", "plain_table", "read_rows"]

_CHUNK_ELEMENTS = 1 << 19


@dataclass(frozen=True, eq=False)
class RowTable:
    """A sparse matrix: row t is the sum of `coefficients[e]` × row `rows[e]` of source `sources[e]` over its entries e.

    Attributes:
        starts: (T + 1,); the entries of row t are `starts[t]` to `starts[t + 1]`. A row without entries is zero.
        sources: (E,), the number of a source.
        rows: (E,), a row of it.
        coefficients: (E,).
    """

    starts: Integers
    sources: Integers
    rows: Integers
    coefficients: Floats

    @classmethod
    def of(cls, count: int, targets: Integers, sources: Integers, rows: Integers, coefficients: Floats) -> RowTable:
        """Return the table of `count` rows with these entries, given in any order of `targets`; equal ones keep theirs."""
        order = np.argsort(targets, kind="stable")
        starts = np.searchsorted(targets[order], np.arange(count + 1)).astype(np.int64)
        return cls(starts, sources[order], rows[order], coefficients[order])

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def is_plain(self) -> NDArray[np.bool_]:
        """(T,): the rows that are one row of one source, unchanged."""
        single = np.diff(self.starts) == 1
        single[single] = self.coefficients[self.starts[:-1][single]] == 1.0
        return single

    def runs(self, first: int, last: int) -> list[tuple[int, int, int, int]]:
        """Return the plain rows among `[first, last)` as (from, to, source, its first row), each read in one piece."""
        at = np.flatnonzero(self.is_plain[first:last]) + first
        if not len(at):
            return []
        entries = self.starts[at]
        sources, rows = self.sources[entries], self.rows[entries]
        breaks = (np.diff(at) != 1) | (np.diff(sources) != 0) | (np.diff(rows) != 1)
        begins = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        ends = np.concatenate((begins[1:], [len(at)]))
        return [
            (int(at[b]), int(at[e - 1]) + 1, int(sources[b]), int(rows[b])) for b, e in zip(begins, ends, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class CombinedRows:
    """A tensor of rows that are taken or summed from sources, row by row of dimension 0.

    Attributes:
        source: whose dtype the result has when it is stored, and whose place it has.
        sources: what the table's numbers mean; all of one width.
        table: one row for each row of the result.
    """

    source: TensorSource
    sources: Sequence[TensorSource]
    table: RowTable

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """As many rows as the table has, each as wide as the source's."""
        return (len(self.table), *self.source.shape[1:])

    @cached_property
    def dtype(self) -> DType:
        """That of the sources where rows are only taken; where any is computed or they differ, F32 (F64 where one is)."""
        used = {self.sources[number].dtype for number in np.unique(self.table.sources)} or {self.source.dtype}
        is_empty = np.diff(self.table.starts) == 0
        if len(used) == 1 and bool(np.all(self.table.is_plain | is_empty)):
            return used.pop()
        return DTYPES["F64"] if DTYPES["F64"] in used else DTYPES["F32"]

    @property
    def place(self) -> tuple[str, int]:
        """The source's."""
        return self.source.place

    @property
    def rows(self) -> int:
        """Blocks in float32 that gathering takes: the result, and the part of a source that is read last."""
        return 2

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> Tensor:
        """Return the flat elements `[start, stop)`."""
        width = math.prod(self.shape[1:])
        first, last = start // width, -(-stop // width)
        runs = self.table.runs(first, last)
        if len(runs) == 1 and runs[0][:2] == (first, last) and self.sources[runs[0][2]].dtype is self.dtype:
            row = runs[0][3]
            values = self.sources[runs[0][2]].read(row * width, (row + last - first) * width, scratch, slot)
        else:
            values = self._gather(first, last, width, runs, scratch, slot)
        return values[start - first * width : stop - first * width]

    def _gather(
        self, first: int, last: int, width: int, runs: list[tuple[int, int, int, int]], scratch: Scratch, slot: object
    ) -> Tensor:
        size = (last - first) * width * self.dtype.itemsize
        out = scratch.take((slot, "rows"), size).view(torch_dtype(self.dtype))
        rows = out.view(last - first, width)
        for begin, end, number, row in runs:
            part = self.sources[number].read(row * width, (row + end - begin) * width, scratch, slot)
            rows[begin - first : end - first].copy_(part.view(end - begin, width))
        summed = np.flatnonzero(~self.table.is_plain[first:last])
        for at in self._chunks(first + summed, width):
            rows[torch.from_numpy(at - first)] = torch.from_numpy(self._sums(at, width, scratch, slot)).to(rows.dtype)
        return out

    def _chunks(self, at: Integers, width: int) -> Iterator[Integers]:
        """Cut rows so that the entries of each piece take a few MB."""
        if not len(at):
            return
        ends = np.cumsum(self.table.starts[at + 1] - self.table.starts[at])
        piece = (ends - 1) * max(1, width) // _CHUNK_ELEMENTS
        yield from np.split(at, np.flatnonzero(np.diff(piece)) + 1)

    def _sums(self, at: Integers, width: int, scratch: Scratch, slot: object) -> Floats:
        """Return the rows `at`, summed in float64 entry after entry: (len(at), width)."""
        table = self.table
        counts = table.starts[at + 1] - table.starts[at]
        begins = np.cumsum(counts) - counts
        entries = np.repeat(table.starts[at] - begins, counts) + np.arange(counts.sum())
        pairs, place = np.unique(np.stack((table.sources[entries], table.rows[entries])), axis=1, return_inverse=True)
        count = pairs.shape[1]
        needed = CombinedRows(
            self.source, self.sources, RowTable(np.arange(count + 1), pairs[0], pairs[1], np.ones(count))
        )
        taken = needed.read(0, count * width, scratch, (slot, "terms")).view(count, width).double().numpy()
        total = np.zeros((len(at), width))
        for step in range(int(counts.max(initial=0))):
            live = counts > step
            e = begins[live] + step
            total[live] += taken[place[e]] * table.coefficients[entries[e], None]
        return total


@dataclass(eq=False)
class _Computed:
    """What the small sources below share: float32 values (rows, width) that are not stored anywhere."""

    source: TensorSource
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def dtype(self) -> DType:
        """F32."""
        return DTYPES["F32"]

    @property
    def place(self) -> tuple[str, int]:
        """The source's."""
        return self.source.place


@dataclass(eq=False)
class RowMean(_Computed):
    """One row: the mean of the rows `of` of a source, summed in float64 in their order, when it is first asked for."""

    of: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    _mean: Tensor | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, width)."""
        return (1, *self.source.shape[1:])

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> Tensor:
        """Return the flat elements `[start, stop)`."""
        with self._lock:
            if self._mean is None:
                self._mean = self._compute()
        return self._mean[start:stop]

    def _compute(self) -> Tensor:
        width = math.prod(self.source.shape[1:])
        total = torch.zeros(width, dtype=torch.float64)
        step = max(1, _CHUNK_ELEMENTS // max(1, width))
        for begin in range(0, len(self.of), step):
            total += read_rows(self.source, self.of[begin : begin + step]).double().sum(0)
        return (total / max(1, len(self.of))).float()


@dataclass(eq=False)
class ProjectedRows(_Computed):
    """The rows x of a source as (x − `from_mean`) · `matrix` + `to_mean`: an affine map into another space."""

    matrix: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # (width, new width), float32
    from_mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    to_mean: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows of the source, new width)."""
        return (self.source.shape[0], self.matrix.shape[1])

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> Tensor:
        """Return the flat elements `[start, stop)`."""
        width, inner = self.shape[1], self.source.shape[1]
        first, last = start // width, -(-stop // width)
        rows = self.source.read(first * inner, last * inner, scratch, slot).view(-1, inner).float()
        values = ((rows - self.from_mean) @ self.matrix + self.to_mean).reshape(-1)
        return values[start - first * width : stop - first * width]


@dataclass(eq=False)
class NormalRows(_Computed):
    """Rows of independent normal draws times `factor` (a number, or (draws, width)), around `mean`; `rows` of them.

    Row t is a function of seed, name and t: the Box–Muller transform of counter-based words.
    """

    name: str = ""
    seed: int = 0
    rows: int = 0
    mean: Tensor | None = None
    factor: Tensor | float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, width)."""
        return (self.rows, *self.source.shape[1:])

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> Tensor:
        """Return the flat elements `[start, stop)`."""
        width = math.prod(self.shape[1:])
        first, last = start // width, -(-stop // width)
        draws = self.factor.shape[0] if isinstance(self.factor, torch.Tensor) else width
        key = draw_key(self.seed, self.name, 0)
        words = drawn_words(key, 2 * first * draws, 2 * last * draws).astype(np.float64)
        # Box–Muller: u in (0, 1], v in [0, 1)
        u, v = (words[0::2] + 1.0) * 2.0**-32, words[1::2] * 2.0**-32
        normal = torch.from_numpy(np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)).view(-1, draws)
        values = normal @ self.factor.double() if isinstance(self.factor, torch.Tensor) else normal * self.factor
        if self.mean is not None:
            values = values + self.mean.double()
        return values.float().reshape(-1)[start - first * width : stop - first * width]


def plain_table(rows: Integers) -> RowTable:
    """Return the table that takes these rows of source 0."""
    count = len(rows)
    return RowTable(np.arange(count + 1), np.zeros(count, np.int64), rows.astype(np.int64), np.ones(count))


def read_rows(source: TensorSource, rows: Integers) -> Tensor:
    """Return rows of a matrix in float32, in fresh memory: (len(rows), width)."""
    width = math.prod(source.shape[1:])
    taken = CombinedRows(source, (source,), plain_table(rows))
    return taken.read(0, len(rows) * width, Scratch(), 0).view(len(rows), width).to(torch.float32, copy=True)
