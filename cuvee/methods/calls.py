"""One call of a method on one block: where the block lies, what is known of it, and what the engine lends.

The engine makes a `Call` and makes it `current`; what a method is written of asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cuvee.methods.folding import Miss, Reduction
from cuvee.tensors.either import empty_like, number_of
from cuvee.tensors.layout import Layout

if TYPE_CHECKING:
    import torch as torch_types
    from numpy.typing import NDArray

    from cuvee.architectures import Fused

__all__ = [
    "CONTINUAL",
    "Call",
    "Decompositions",
    "Kept",
    "Key",
    "Left",
    "Memory",
    "Pending",
    "Place",
    "Scope",
    "activated",
    "active",
    "apart_from_blocks",
    "current",
    "left_beside",
    "noted",
    "room",
]

CONTINUAL = "continual"
"""What a later merge goes on from: the folder within a model, and the statistic that holds the numbers left beside it."""
Scope = Literal["tensor", "layer", "model"]
Key = tuple[Any, ...]


class Pending(Exception):
    """Ends a call whose measurements are not finished. Not an error."""


@dataclass(frozen=True)
class Place:
    """Where a block lies.

    Attributes:
        tensor: the output tensor's name.
        layout: its shape and cut.
        start, stop: the block's flat range.
        layer: index of its layer, None outside the blocks.
        layers: number of layers of its stack, 0 outside the blocks.
        role: what the tensor is (`architectures.Role`), as text.
        fused: how it splits into matrices, None where it does not, or the order is not known.
        transposed: it is stored as (in, out); methods and edits on matrices are given (out, in) all the same.
    """

    tensor: str
    layout: Layout
    start: int
    stop: int
    layer: int | None = None
    layers: int = 0
    role: str = ""
    fused: Fused | None = None
    transposed: bool = False

    @property
    def is_whole(self) -> bool:
        """True when the block is the whole tensor."""
        return self.start == 0 and self.stop == self.layout.numel

    def leaves(self) -> Iterator[tuple[int, int, int]]:
        """Yield (leaf index, first, last) of each leaf, the range relative to the block."""
        leaf = self.layout.leaf
        for start in range(self.start, self.stop, leaf):
            yield start // leaf, start - self.start, min(start + leaf, self.stop) - self.start


class Memory:
    """Costly intermediates of open tensors, kept from visit to visit while there is room; else they are made again."""

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        self._limit = limit_bytes
        self._held: dict[str, dict[Key, NDArray[Any]]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, tensor: str, key: Key) -> NDArray[Any] | None:
        """Return what was kept, or None."""
        return self._held.get(tensor, {}).get(key)

    def put(self, tensor: str, key: Key, value: NDArray[Any]) -> None:
        """Keep a value if there is room."""
        with self._lock:
            if self._bytes + value.nbytes <= self._limit:
                self._bytes += value.nbytes
                self._held.setdefault(tensor, {})[key] = value

    def forget(self, tensor: str) -> None:
        """Let go of all that belongs to a finished tensor."""
        with self._lock:
            self._bytes -= sum(value.nbytes for value in self._held.pop(tensor, {}).values())


class Kept(Protocol):
    """Tensors kept from round to round, by name."""

    def get(self, name: str) -> torch_types.Tensor | None:
        """Return what was kept, or None."""
        ...

    def put(self, name: str, value: torch_types.Tensor) -> None:
        """Keep a tensor."""
        ...


class Decompositions(Protocol):
    """Decompositions by what was decomposed, and how."""

    def get(self, key: str) -> tuple[torch_types.Tensor, ...] | None:
        """Return the factors, or None."""
        ...

    def put(self, key: str, factors: tuple[torch_types.Tensor, ...]) -> None:
        """Keep the factors, if there is room."""
        ...


@dataclass(frozen=True)
class Left:
    """What a block leaves beside the output: values shaped as the block, and numbers that all blocks agree on."""

    values: torch_types.Tensor
    numbers: Sequence[float]


@dataclass
class Call:
    """One call of a method on one block: what it knows, and what it finds missing.

    Attributes:
        place: the block.
        answers: finished measurements.
        states: stages that unfinished ones have reached.
        statistics: data given beside the models, by key, each as flat tensors of the block's tensor.
        seed: of random draws.
        compat: None or "mergekit".
        misses: measurements that this block has added to.
        path: the models being worked on, outermost first; the last one keys the random draws.
        memory: where costly intermediates are kept from visit to visit.
        measuring: the measurement that values are looked at for.
        buffers: this thread's reused ones, for results that hold until the call's end.
        kept: where whole tensors are kept from round to round.
        decompositions: those that are known already.
        spare: see `room`.
        left: see `left_beside`.
        notes: see `noted`.
        decodes: somebody has asked for the values of stored blocks.
    """

    place: Place
    answers: Mapping[Key, Any] = field(default_factory=dict)
    states: Mapping[Key, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    compat: str | None = None
    misses: dict[Key, Miss] = field(default_factory=dict)
    path: tuple[int, ...] = ()
    asked: dict[Any, int] = field(default_factory=dict)
    alone: bool = False
    memory: Memory | None = None
    measuring: Key = ()
    buffers: dict[Key, torch_types.Tensor] | None = None
    kept: Kept | None = None
    decompositions: Decompositions | None = None
    spare: torch_types.Tensor | None = None
    left: Left | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    decodes: bool = False

    @contextmanager
    def model(self, k: int) -> Iterator[None]:
        """Mark what runs inside as the work on model `k`."""
        self.path = (*self.path, k)
        try:
            yield
        finally:
            self.path = self.path[:-1]

    @contextmanager
    def apart(self, path: tuple[int, ...]) -> Iterator[None]:
        """Mark what runs inside as the work on one model, the same however often and in whatever order it runs."""
        before, self.path, asked, self.asked = self.path, path, self.asked, {}
        try:
            yield
        finally:
            self.path, self.asked = before, asked

    @property
    def model_index(self) -> int:
        """The model whose delta is being worked on."""
        return self.path[-1] if self.path else 0

    def buffer(self, like: torch_types.Tensor) -> torch_types.Tensor:
        """Return an uninitialised tensor like `like`, from memory that this thread has used before."""
        key = (self.path, self.ordinal("buffer"))
        held = None if self.buffers is None else self.buffers.get(key)
        if held is None or type(held) is not type(like) or held.dtype != like.dtype or held.device != like.device:
            held = None
        if held is None or number_of(held) < number_of(like):
            held = empty_like(like).reshape(-1)
            if self.buffers is not None:
                self.buffers[key] = held
        return held[: number_of(like)].reshape(like.shape)

    def ordinal(self, what: Any) -> int:
        """Return how often `what` was asked before on this path, and count this time."""
        count = self.asked.get((self.path, what), 0)
        self.asked[self.path, what] = count + 1
        return count

    def key(self, reduction: Reduction, scope: Scope) -> Key:
        """Return the name of a measurement: equal for all the blocks that add to it."""
        if scope == "tensor":
            return ("tensor", self.place.tensor, self.path, self.ordinal(scope))
        group = (scope, self.place.layer) if scope == "layer" else (scope,)
        return (*group, reduction, self.path, self.ordinal((scope, reduction)))


class _Active(threading.local):
    call: Call | None = None


_active = _Active()


@contextmanager
def activated(call: Call) -> Iterator[Call]:
    """Make `call` the current one in this thread."""
    before, _active.call = _active.call, call
    try:
        yield call
    finally:
        _active.call = before


def active() -> Call | None:
    """Return the call in progress, None outside the engine."""
    return _active.call


def current(values: torch_types.Tensor | None = None) -> Call:
    """Return the call in progress; outside the engine, one whose block is all of `values`."""
    if _active.call is not None:
        return _active.call
    layout = Layout(tuple(values.shape) if values is not None else ())
    return Call(Place("", layout, 0, layout.numel), alone=True)


@contextmanager
def apart_from_blocks(values: torch_types.Tensor) -> Iterator[None]:
    """Have what is measured inside be measured of `values`, all of which are here, whatever block is being worked on."""
    layout = Layout(tuple(values.shape))
    with activated(Call(Place("", layout, 0, layout.numel), alone=True)):
        yield


def left_beside(values: torch_types.Tensor, numbers: Sequence[float]) -> None:
    """Have a run publish values beside the output in the compute dtype, and numbers in its manifest.

    The method is registered as `continual`: a later merge goes on from them.
    """
    current(values).left = Left(values, numbers)


def noted(**facts: Any) -> None:
    """Have the manifest say of this tensor what the method found, chose or fell back to.

    Args:
        facts: whole numbers, words, or lists of them, the same from all blocks. What is said while one model is worked on is
            kept by model. `fallback` is in words, `chosen` a list of models; `engine/notes.py` sums them up.
    """
    call = _active.call
    if call is None or call.alone:
        return
    for name, fact in facts.items():
        if call.path:
            call.notes.setdefault(name, {})[str(call.model_index)] = fact
        else:
            call.notes[name] = fact


def room(like: torch_types.Tensor) -> torch_types.Tensor | None:
    """Return where `each` will keep the result of the filter that runs, once: what is written there is not copied."""
    call = current(like)
    spare, call.spare = call.spare, None
    return spare if spare is not None and spare.shape == like.shape and spare.dtype == like.dtype else None
