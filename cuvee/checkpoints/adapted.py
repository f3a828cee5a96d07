"""Tensors with an adapter applied, as sources: W + s·B·A row by row, and what else an adapter does to a tensor.

Legend of shapes: a weight is seen as a matrix of `O` rows and `I` columns (an embedding of `O` tokens, a convolution of
`O` channels), the update as `left_OR @ right_RI`. Each leaf of the matrix is one product of a shape that depends on the
tensor alone, so that no result depends on the block asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

from cuvee.checkpoints.sources import Scratch, TensorSource, read_all
from cuvee.tensors.dtypes import DTYPES, DType
from cuvee.tensors.layout import Layout

if TYPE_CHECKING:
    import torch

__all__ = ["Adapted", "Factors", "Recent", "ReplacedRows", "Shifted"]


class Recent:
    """The factors of the tensors read last, as float32, shared by all tensors of an adapter."""

    def __init__(self, count: int = 8) -> None:
        self._count = count
        self._kept: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}
        self._lock = Lock()

    def get(
        self, key: object, load: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is kept under `key`, or load it and let go of the oldest."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        loaded = load()
        with self._lock:
            while len(self._kept) >= self._count:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = loaded
        return loaded


@dataclass(frozen=True)
class Factors:
    """A low-rank update of a matrix.

    Attributes:
        down: A, stored as (R, …).
        up: B, stored as (…, R).
        scaling: s.
        is_transposed: the matrix is (B·A)ᵀ: embeddings, and weights stored as (in, out).
        magnitude: of each output (DoRA), None for plain LoRA.
    """

    down: TensorSource
    up: TensorSource
    scaling: float
    is_transposed: bool = False
    magnitude: TensorSource | None = None

    def load(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `left_OR` and `right_RI` as float32, the scaling multiplied into B."""
        import torch

        rank = self.down.shape[0]
        down_RI = read_all(self.down, torch.float32).reshape(rank, -1)
        up_OR = read_all(self.up, torch.float32).reshape(-1, rank) * self.scaling
        if self.is_transposed:
            return down_RI.t().contiguous(), up_OR.t().contiguous()
        return up_OR, down_RI


@dataclass(frozen=True)
class Adapted:
    """A weight with a low-rank update: W + s·B·A; with DoRA, m · (W + s·B·A) / ‖W + s·B·A‖ per output.

    Source: LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353; PEFT 0.21 `merge_and_unload`. An output whose norm is 0
    stays 0 (PEFT divides by 0).
    """

    base: TensorSource
    factors: Factors
    recent: Recent
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.base.shape

    @property
    def dtype(self) -> DType:
        """float32: the update is not rounded to the base's dtype."""
        return DTYPES["F32"]

    @property
    def place(self) -> tuple[str, int]:
        """Where the base lies."""
        return self.base.place

    @cached_property
    def _matrix(self) -> Layout:
        return Layout((self.shape[0], math.prod(self.shape[1:])))

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)`; whole leaves are cheapest."""
        import torch

        leaf = self._matrix.leaf
        first, last = start // leaf * leaf, min(-(-stop // leaf) * leaf, self._matrix.numel)
        stored = self.base.read(first, last, scratch, ("base", slot))
        values = scratch.take(slot, (last - first) * 4).view(torch.float32)
        values.copy_(stored)
        for begin in range(first, last, leaf):
            end = min(begin + leaf, last)
            self._adapt(values[begin - first : end - first], begin, scratch)
        return values[start - first : stop - first]

    def _adapt(self, values: torch.Tensor, start: int, scratch: Scratch) -> None:
        """Turn one leaf of the base, which begins at `start`, into one of the result, in place."""
        self._add_update(values, start, scratch)
        if self.factors.magnitude is None:
            return
        values_OI = values.view(-1, self._matrix.shape[1])
        if self.factors.is_transposed:
            values_OI *= self._output_factors
        else:
            row = start // self._matrix.shape[1]
            norms = values_OI.double().square().sum(1).sqrt()
            values_OI *= _ratio(self._magnitude[row : row + len(norms)], norms)[:, None]

    def _add_update(self, values: torch.Tensor, start: int, scratch: Scratch) -> None:
        import torch

        left_OR, right_RI = self.recent.get((self.factors.down.place, self.factors.up.place), self.factors.load)
        columns = self._matrix.shape[1]
        rows = slice(start // columns, (start + values.numel()) // columns)
        # a buffer of its own: where BLAS writes, and how that is aligned, never depends on the block
        update = scratch.take("update", values.numel() * 4).view(torch.float32).view(-1, columns)
        torch.mm(left_OR[rows], right_RI, out=update)
        values += update.view(-1)

    @cached_property
    def _magnitude(self) -> torch.Tensor:
        import torch

        assert self.factors.magnitude is not None
        return read_all(self.factors.magnitude, torch.float32).reshape(-1)

    @property
    def _output_factors(self) -> torch.Tensor:
        """DoRA's factor of each column, which takes a pass over the whole tensor."""
        with self._lock:
            return self._column_factors

    @cached_property
    def _column_factors(self) -> torch.Tensor:
        import torch

        scratch = Scratch()
        columns = self._matrix.shape[1]
        squares = torch.zeros(columns, dtype=torch.float64)
        for start, stop in self._matrix.blocks(self._matrix.leaf):
            values = self.base.read(start, stop, scratch, "base").to(torch.float32)
            self._add_update(values, start, scratch)
            squares += values.view(-1, columns).double().square().sum(0)
        return _ratio(self._magnitude, squares.sqrt())


def _ratio(magnitude: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(norms > 0, magnitude.double() / norms, torch.zeros_like(norms)).to(torch.float32)


@dataclass(frozen=True)
class Shifted:
    """A bias plus s times the adapter's: `lora_bias`."""

    base: TensorSource
    shift: TensorSource
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.base.shape

    @property
    def dtype(self) -> DType:
        """float32."""
        return DTYPES["F32"]

    @property
    def place(self) -> tuple[str, int]:
        """Where the base lies."""
        return self.base.place

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)`."""
        import torch

        shift = self.shift.read(start, stop, scratch, ("shift", slot)).to(torch.float32) * self.scaling
        return self.base.read(start, stop, scratch, ("base", slot)).to(torch.float32) + shift


@dataclass(frozen=True)
class ReplacedRows:
    """An embedding, some rows of which the adapter replaces: `trainable_token_indices`."""

    base: TensorSource
    rows: tuple[int, ...]
    values: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.base.shape

    @property
    def dtype(self) -> DType:
        """float32, since the rows may be of a wider dtype than the base."""
        return DTYPES["F32"]

    @property
    def place(self) -> tuple[str, int]:
        """Where the base lies."""
        return self.base.place

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)`."""
        import torch

        columns = self.shape[1]
        out = scratch.take(slot, (stop - start) * 4).view(torch.float32)
        out.copy_(self.base.read(start, stop, scratch, ("base", slot)))
        for index, row in enumerate(self.rows):
            begin, end = max(start, row * columns), min(stop, (row + 1) * columns)
            if begin < end:
                shift = (index - row) * columns
                new = self.values.read(begin + shift, end + shift, scratch, ("row", slot))
                out[begin - start : end - start] = new
        return out
