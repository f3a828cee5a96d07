"""One block of one output tensor: read it from every model, compute in float32, round once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from cuvee.checkpoints.sources import Scratch, TensorSource
from cuvee.methods.measuring import Call, Place, activated, each
from cuvee.methods.registry import DELTAS, OPTIONAL, Edit, Method
from cuvee.tensors.dtypes import DType, torch_dtype
from cuvee.tensors.layout import Layout
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Formula", "Input", "Observer", "Task", "Worker", "compute_block", "needs_base", "rounded"]

ENGINE_PARAMETERS = ("scaling", "embed_mismatch")


@dataclass(frozen=True)
class Input:
    """One model's tensor as an input.

    Attributes:
        model: which model's.
        source: the values.
        name: in that model, where it is not the output's.
        change: what a copy does to it, elementwise: given flat float values and the place of the first, returns them
            changed. It must not depend on where blocks begin and end.
    """

    model: int
    source: TensorSource
    name: str = ""
    change: Callable[[Tensor, int], Tensor] | None = None


@dataclass(frozen=True)
class Task:
    """One output tensor.

    Attributes:
        name: in the output.
        layout: its shape and cut.
        dtype: in the output.
        inputs: the models' tensors in the method's order; when it is copied, what is laid end to end, mostly one.
        base: the base's, where the method works on task vectors.
        arguments: the method's parameters for this tensor; None: the inputs are copied.
        layer, layers, role: see `Place`.
    """

    name: str
    layout: Layout
    dtype: DType
    inputs: tuple[Input, ...]
    base: Input | None = None
    arguments: Mapping[str, Any] | None = None
    layer: int | None = None
    layers: int = 0
    role: str = ""

    @property
    def is_copy(self) -> bool:
        """True when the values come out as they went in, end to end where there are several inputs."""
        return self.arguments is None

    @property
    def is_plain_copy(self) -> bool:
        """True when one input comes out as it went in, dtype apart."""
        return self.is_copy and len(self.inputs) == 1 and self.inputs[0].change is None

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs, once."""
        return sum(math.prod(one.source.shape) * one.source.dtype.itemsize for one in self.all_inputs)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output."""
        return self.layout.numel * self.dtype.itemsize

    @property
    def all_inputs(self) -> tuple[Input, ...]:
        """The base first, then the models."""
        return (self.base, *self.inputs) if self.base else self.inputs

    def place(self, start: int, stop: int) -> Place:
        """Return the place of a block."""
        return Place(self.name, self.layout, start, stop, self.layer, self.layers, self.role)


@dataclass(frozen=True)
class Formula:
    """What is done to every tensor: the method, the edits around it, and how it computes."""

    method: Method
    before: tuple[tuple[Edit, Mapping[str, Any]], ...] = ()
    after: tuple[tuple[Edit, Mapping[str, Any]], ...] = ()
    seed: int = 0
    compat: str | None = None
    compute_dtype: str = "float32"
    device: str = "cpu"
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def call(self, place: Place, answers: Mapping[Any, Any], states: Mapping[Any, Any]) -> Call:
        """Return a call on one block that knows these measurements."""
        return Call(place, answers, states, self.statistics, self.seed, self.compat)


@dataclass
class Worker:
    """The buffers of one thread, reused from block to block."""

    scratch: Scratch = field(default_factory=Scratch)
    seconds: dict[str, float] = field(default_factory=dict)
    buffers: dict[Any, Tensor] = field(default_factory=dict)
    _values: Tensor | None = None

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[what]`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begin

    def values(self, rows: int, columns: int, dtype: torch.dtype, device: str) -> Tensor:
        """Return an uninitialised (rows, columns) buffer."""
        buffer = self._values
        if buffer is None or buffer.numel() < rows * columns or buffer.dtype != dtype or buffer.device.type != device:
            self._values = None
            buffer = self._values = torch.empty(rows * columns, dtype=dtype, device=device)
        return buffer[: rows * columns].view(rows, columns)


class Observer(Protocol):
    """Told what is read on the first visit of a block."""

    def read(self, number: int, start: int, raw: Tensor) -> None:
        """Input `number` was read: flat values as stored, from `start` on."""

    def loaded(self, start: int, values: Tensor, first: int = 0) -> None:
        """Inputs from number `first` on are there, a merge's in the compute dtype: (inputs, elements)."""


def compute_block(task: Task, formula: Formula, call: Call, worker: Worker, observer: Observer | None = None) -> Tensor:
    """Return the block's flat values in the compute dtype (a copy's: in its own).

    Raises:
        Pending: the method has asked for measurements that are not finished; they are in `call.misses`.
    """
    start, stop = call.place.start, call.place.stop
    if task.is_copy:
        return _read_copy(task, start, stop, worker, observer)
    values = _load(task.all_inputs, start, stop, formula, worker, observer)
    shape = task.layout.block_shape(start, stop) if task.layout.shape else ()
    blocks = values.view(len(values), *shape)
    with activated(call):
        return _apply(task, formula, blocks).reshape(-1)


def _read_copy(task: Task, start: int, stop: int, worker: Worker, observer: Observer | None) -> Tensor:
    """Return a block of the inputs laid end to end."""
    joined: Tensor | None = None
    offset = 0
    for number, one in enumerate(task.inputs):
        numel = math.prod(one.source.shape)
        first, last = max(start - offset, 0), min(stop - offset, numel)
        if first < last:
            values = _read_part(number, one, first, last, worker, observer)
            if last - first == stop - start:
                return values
            if joined is None:
                size = (stop - start) * task.dtype.itemsize
                joined = worker.scratch.take("joined", size).view(torch_dtype(task.dtype))
            at = offset + first - start
            joined[at : at + last - first].copy_(values)
        offset += numel
    assert joined is not None, "a block holds elements"
    return joined


def _read_part(number: int, one: Input, first: int, last: int, worker: Worker, observer: Observer | None) -> Tensor:
    """Return the elements `[first, last)` of one input of a copy."""
    layout = Layout(one.source.shape)
    # A leaf of the input may lie across the block's ends: it is digested with the block that it begins in.
    whole, end = (min(-(-place // layout.leaf) * layout.leaf, layout.numel) for place in (first, last))
    with worker.timed("read"):
        raw = one.source.read(first, end, worker.scratch, "copy")
    if observer and whole < end:
        observer.read(number, whole, raw[whole - first :])
    values = raw[: last - first]
    if observer:
        observer.loaded(first, values.reshape(1, -1), number)
    if one.change is None:
        return values
    return one.change(values if values.dtype == torch.float64 else values.float(), first)


def _load(
    inputs: Sequence[Input], start: int, stop: int, formula: Formula, worker: Worker, observer: Observer | None
) -> Tensor:
    """Read a block of every input into one (inputs, elements) buffer in the compute dtype."""
    dtype = torch.float64 if formula.compute_dtype == "float64" else torch.float32
    values = worker.values(len(inputs), stop - start, dtype, formula.device)
    for number, one in enumerate(inputs):
        with worker.timed("read"):
            raw = one.source.read(start, stop, worker.scratch, "read")
        values[number].copy_(raw)
        if observer:
            observer.read(number, start, raw)
    if observer:
        observer.loaded(start, values)
    return values


def _apply(task: Task, formula: Formula, blocks: Tensor) -> Tensor:
    """Run the method on the (inputs, …) blocks and return the output block."""
    method = formula.method
    arguments = {k: v for k, v in (task.arguments or {}).items() if k not in ENGINE_PARAMETERS}
    if task.base is None:
        return method.function(blocks, **arguments)
    base, deltas = blocks[0], blocks[1:].sub_(blocks[0])
    if method.wants_base:
        arguments["base"] = base
    for step, parameters in formula.before:
        deltas = each(_bound(step.function, parameters), deltas)
    merged = method.function(deltas, **arguments)
    for step, parameters in formula.after:
        merged = step.function(merged, deltas, **parameters)
    scaling = (task.arguments or {}).get("scaling", 1.0)
    if scaling != 1.0:
        merged = merged * scaling
    return base + merged


def _bound(function: Callable[..., Tensor], parameters: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    def filter(delta: Tensor) -> Tensor:
        return function(delta, **parameters)

    return filter


def needs_base(method: Method, has_base: bool) -> bool:
    """True when the method is given task vectors."""
    return method.on is DELTAS or (method.base is OPTIONAL and has_base)


def rounded(values: Tensor, dtype: DType) -> Tensor:
    """Return flat values rounded once to the output's dtype, on the CPU."""
    return values.to(torch_dtype(dtype)).cpu()
