"""One block of one output tensor: read it from every model, compute in float32, round once.

On the CPU blocks are NumPy arrays, decoded and rounded by kernels. A method that asks for no more than arrays offer
(`arrays=True`) gets them as they are, and its merge never loads torch; any other gets tensors over the same memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Union

import numpy as np

from cuvee.checkpoints.sources import Scratch, StoredTensor, read_raw
from cuvee.engine.tasks import Formula, Input, Task, apply_formula
from cuvee.methods.calls import Call, Pending, activated
from cuvee.methods.combination import Stored, plain
from cuvee.tensors import kernels
from cuvee.tensors.dtypes import DType, torch_dtype
from cuvee.tensors.either import as_tensor
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Combination, InFile, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


__all__ = [
    "Computed",
    "Observer",
    "Worker",
    "compute_block",
    "decode",
    "encode",
]

Array = Union["NDArray[Any]", "Tensor"]

_PIECE_BYTES = 1 << 20


@dataclass
class Worker:
    """The buffers of one thread, reused from block to block.

    Attributes:
        decodes: a method that is given arrays has asked for the values themselves.
    """

    scratch: Scratch = field(default_factory=Scratch)
    decodes: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    buffers: dict[Any, Tensor] = field(default_factory=dict)
    _on_device: Tensor | None = None

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[what]`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begin

    def array(self, rows: int, columns: int, dtype: type[np.floating[Any]]) -> NDArray[Any]:
        """Return an uninitialised (rows, columns) buffer."""
        size = rows * columns * np.dtype(dtype).itemsize
        return self.scratch.take_raw("values", size).view(dtype).reshape(rows, columns)

    def on_device(self, rows: int, columns: int, dtype: torch.dtype, device: str) -> Tensor:
        """Return an uninitialised (rows, columns) buffer on a device."""
        buffer = self._on_device
        if buffer is None or buffer.numel() < rows * columns or buffer.dtype != dtype:
            self._on_device = None
            buffer = self._on_device = torch.empty(rows * columns, dtype=dtype, device=device)
        return buffer[: rows * columns].view(rows, columns)


class Observer(Protocol):
    """Told what is read on the first visit of a block."""

    def read(self, number: int, start: int, raw: NDArray[np.uint8]) -> None:
        """Input `number` was read: the bytes as stored, of the flat elements from `start` on."""

    def place(self, number: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Return where the digests of leaves go, (leaves, 32), of an input that a kernel reads and digests itself."""

    def decoded(self, number: int, non_finite: int) -> None:
        """So many elements of what was read are NaN or infinite."""


class Computed(NamedTuple):
    """A block of the output: its bytes in the output's dtype, valid until the worker's next block."""

    raw: NDArray[np.uint8]
    non_finite: int


def compute_block(
    task: Task, formula: Formula, call: Call, worker: Worker, observer: Observer | None = None
) -> Computed:
    """Return the block's output.

    Raises:
        Pending: the method has asked for measurements that are not finished; they are in `call.misses`.
    """
    start, stop = call.place.start, call.place.stop
    if task.is_copy:
        return _read_copy(task, start, stop, worker, observer)
    shape = task.layout.block_shape(start, stop) if task.layout.shape else ()
    if formula.on_arrays and all(one.source.dtype.name in kernels.KINDS for one in task.all_inputs):
        return _combine_stored(task, formula, call, worker, observer, shape or (1,))
    loaded, non_finite = _load(task, start, stop, formula, worker, observer)
    values = as_tensor(loaded).reshape(-1, *shape)
    base, models = (None, values) if task.base is None else (values[0], values[1:])
    if non_finite and formula.needs_whole(task):  # products and decompositions would spread it over all elements
        return encode(torch.full_like(values[0], math.nan), None, 1.0, task.dtype, worker)
    with activated(call):
        merged = apply_formula(task, formula, models, base)
    return encode(merged, base, task.scaling, task.dtype, worker)


def _read_copy(task: Task, start: int, stop: int, worker: Worker, observer: Observer | None) -> Computed:
    """Return a block of the inputs laid end to end."""
    joined: NDArray[np.uint8] | None = None
    offset, non_finite, width = 0, 0, task.dtype.itemsize
    for number, one in enumerate(task.inputs):
        numel = math.prod(one.source.shape)
        first, last = max(start - offset, 0), min(stop - offset, numel)
        if first < last:
            part = _read_part(number, one, first, last, task.dtype, worker, observer)
            if last - first == stop - start:
                return part
            if joined is None:
                joined = worker.scratch.take_raw("joined", (stop - start) * width)
            at = (offset + first - start) * width
            joined[at : at + part.raw.size] = part.raw
            non_finite += part.non_finite
        offset += numel
    assert joined is not None, "a block holds elements"
    return Computed(joined, non_finite)


def _read_part(
    number: int, one: Input, first: int, last: int, dtype: DType, worker: Worker, observer: Observer | None
) -> Computed:
    """Return the elements `[first, last)` of one input of a copy, as `dtype`."""
    stored = one.source.dtype
    with worker.timed("read"):
        raw = read_raw(one.source, first, last, worker.scratch, "copy")
    if observer:
        observer.read(number, first, raw)
    non_finite = _count_non_finite(raw, stored)
    if observer:
        observer.decoded(number, non_finite)
    if one.change is None and stored == dtype:
        return Computed(raw, non_finite)
    values = torch.from_numpy(raw).view(torch_dtype(stored))
    if one.change is not None:
        values = one.change(values if values.dtype == torch.float64 else values.float(), first)
    changed = values.to(torch_dtype(dtype)).cpu().contiguous().view(torch.uint8).numpy()
    return Computed(changed, _count_non_finite(changed, dtype))


_EXPONENTS = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "BF16": 0x7F80, "F16": 0x7C00}


def _count_non_finite(raw: NDArray[np.uint8], dtype: DType) -> int:
    """Return how many elements are NaN or infinite: those with every bit of the exponent set."""
    if dtype.name not in _EXPONENTS:
        return 0
    bits: NDArray[Any] = raw.view(f"u{dtype.itemsize}")
    exponent = bits.dtype.type(_EXPONENTS[dtype.name])
    return int(np.count_nonzero((bits & exponent) == exponent))


def _combine_stored(
    task: Task, formula: Formula, call: Call, worker: Worker, observer: Observer | None, shape: tuple[int, ...]
) -> Computed:
    """Compute a block of a method that is given arrays, from the raw bytes as far as it measures, filters and combines.

    What nobody looks at before it is combined is read, digested and combined leaf by leaf in the cache.
    """
    start, stop = call.place.start, call.place.stop
    rows: list[Row] = []
    for number, one in enumerate(task.all_inputs):
        elements = _elements(task, number, start, stop, worker, observer)
        rows.append(Row(elements, one.source.dtype.name, shape, rows[0] if task.base and number else None))
    models, base = (rows[1:], rows[0]) if task.base else (rows, None)
    try:
        with activated(call):
            merged = apply_formula(task, formula, Stored(models), base)
    except Pending:
        _read_all(rows, observer)
        raise
    finally:
        worker.decodes = worker.decodes or call.decodes
    if not isinstance(merged, Combination):
        merged = Combination([kernels.row_of(np.ascontiguousarray(_array(plain(merged)), np.float32))], [1.0])
    out = worker.scratch.take_raw("out", (stop - start) * task.dtype.itemsize)
    into: dict[str, Any] = {"base": base, "scaling": task.scaling, "kind": task.dtype.name}
    used = {row.source for row in (*merged.rows, *rows[: bool(base)]) if isinstance(row.source, InFile)}
    streamed = None
    if len(used) == len(rows) and not any(source.is_read for source in used):
        streamed = kernels.stream(merged, out, partial(worker.scratch.take_raw, "leaves"), **into)
    if streamed is not None:
        non_finite, reading = streamed
        worker.seconds["read"] = worker.seconds.get("read", 0.0) + reading
        return Computed(out, non_finite)
    _read_all(rows, observer)
    return Computed(out, kernels.combine(merged, out, **into))


def _read_all(rows: Sequence[Row], observer: Observer | None) -> None:
    """Show the observer also what nobody has asked for: of a model that has no part in this tensor, or not yet."""
    if observer:
        for row in rows:
            _ = row.elements


def _elements(
    task: Task, number: int, start: int, stop: int, worker: Worker, observer: Observer | None
) -> InFile | NDArray[np.uint8]:
    """Return a block of an input, or where it lies."""
    source, leaf = task.all_inputs[number].source, task.layout.leaf
    load = partial(_read_watched, task, number, start, stop, worker, observer)
    if not (kernels.streams() and isinstance(source, StoredTensor)):
        return load()
    if leaf * source.dtype.itemsize > kernels.MOST_OF_A_LEAF:
        return load()
    digests = observer.place(number, start, stop) if observer else None
    found = partial(observer.decoded, number) if observer else _nobody_counts
    return InFile(source.file.fd, source.offset + start * source.dtype.itemsize, leaf, digests, load, found)


def _nobody_counts(_: int) -> None:
    """Stands in for an observer where there is none."""


def _read_watched(
    task: Task, number: int, start: int, stop: int, worker: Worker, observer: Observer | None
) -> NDArray[np.uint8]:
    """Read a block of an input, and show it to the observer in pieces that are still in the cache."""
    source, slot = task.all_inputs[number].source, ("read", number)
    width, leaf, kind = source.dtype.itemsize, task.layout.leaf, source.dtype.name
    if observer is None or not isinstance(source, StoredTensor):
        with worker.timed("read"):
            raw = read_raw(source, start, stop, worker.scratch, slot)
        if observer:
            observer.read(number, start, raw)
            observer.decoded(number, kernels.count_special(raw, kind))
        return raw
    raw = worker.scratch.take_raw(slot, (stop - start) * width)
    step = max(1, _PIECE_BYTES // (leaf * width)) * leaf
    for begin in range(start, stop, step):
        piece = raw[(begin - start) * width : (begin - start + step) * width]
        with worker.timed("read"):
            source.read_into(begin, piece)
        observer.read(number, begin, piece)
        observer.decoded(number, kernels.count_special(piece, kind))
    return raw


def _load(
    task: Task, start: int, stop: int, formula: Formula, worker: Worker, observer: Observer | None
) -> tuple[Array, int]:
    """Read a block of every input into one (inputs, elements) buffer in the compute dtype; also count NaN and Inf.

    With a base, it is the first row, and the others are task vectors.
    """
    inputs, size = task.all_inputs, stop - start
    on_cpu, wide = formula.device == "cpu", formula.compute_dtype == "float64"
    values: Array
    if on_cpu:
        values = worker.array(len(inputs), size, np.float64 if wide else np.float32)
    else:
        values = worker.on_device(len(inputs), size, torch.float64 if wide else torch.float32, formula.device)
    total = 0
    for number, one in enumerate(inputs):
        with worker.timed("read"):
            raw = read_raw(one.source, start, stop, worker.scratch, "read")
        if observer:
            observer.read(number, task.begin + start, raw)
        base = values[0] if task.base and number and not one.is_delta else None
        non_finite = decode(raw, one.source.dtype, base, values[number])
        total += non_finite
        if observer:
            observer.decoded(number, non_finite)
    return values, total


def decode(raw: NDArray[np.uint8], dtype: DType, base: Array | None, out: Array) -> int:
    """`out = raw − base` in out's dtype; returns how many elements of `raw` are NaN or infinite.

    Args:
        raw: the bytes of (n,) elements of `dtype`.
        base: (n,) or None, beside `out`.
        out: (n,) float32 or float64, an array, or a tensor on any device.
    """
    if kernels.available() and isinstance(out, np.ndarray) and out.dtype == np.float32 and dtype.name in kernels.KINDS:
        return kernels.decode(raw, dtype.name, base, out)  # type: ignore[arg-type]
    if raw.size == 0:
        return 0
    target = as_tensor(out)
    target.copy_(torch.from_numpy(raw).view(torch_dtype(dtype)))
    non_finite = 0 if bool(torch.isfinite(target.sum())) else int(target.numel() - torch.isfinite(target).sum())
    if base is not None:
        target.sub_(as_tensor(base))
    return non_finite


def encode(merged: Array, base: Array | None, scaling: float, dtype: DType, worker: Worker) -> Computed:
    """Return base + merged · scaling (without a base: merged), rounded once; both of any shape."""
    merged, base = merged.reshape(-1), None if base is None else base.reshape(-1)
    if isinstance(merged, np.ndarray) or (kernels.serve(merged) and dtype.name in kernels.KINDS):
        out = worker.scratch.take_raw("out", len(merged) * dtype.itemsize)
        return Computed(out, kernels.encode(_array(merged), _array(base), scaling, dtype.name, out))
    if base is not None:
        merged = as_tensor(base) + (merged if scaling == 1.0 else merged * scaling)
    rounded = merged.to(torch_dtype(dtype))
    non_finite = 0 if dtype.name not in _EXPONENTS else int(rounded.numel() - torch.isfinite(rounded).sum())
    return Computed(rounded.cpu().contiguous().view(torch.uint8).numpy(), non_finite)


def _array(values: Array | None) -> Any:
    return values if values is None or isinstance(values, np.ndarray) else values.numpy()
