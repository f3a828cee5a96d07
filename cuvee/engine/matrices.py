"""One matrix of the output: those of the models are loaded one at a time, when the method asks for them."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from cuvee.checkpoints.sources import read_raw
from cuvee.engine.blocks import Computed, Observer, Worker, decode, encode
from cuvee.engine.tasks import Formula, Task, apply_formula
from cuvee.methods.calls import Call, activated
from cuvee.methods.combination import Matrices
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["merge_matrix"]

_PIECE_ELEMENTS = 1 << 18


def merge_matrix(
    task: Task, formula: Formula, call: Call, worker: Worker, observer: Observer | None = None
) -> Computed:
    """Return the output of a tensor that the method is given as `Matrices`.

    Raises:
        Pending: the method has asked for measurements that are not finished; they are in `call.misses`.
    """
    linear_map = formula.on_matrix(task)
    assert linear_map is not None, "the tensor is a matrix to the method"
    shape = task.as_stored(linear_map)
    inputs, with_base = task.all_inputs, task.base is not None
    unseen = set(range(len(inputs))) if observer else set()

    def load(number: int, base: Tensor | None) -> Tensor:
        watching = observer if number in unseen else None
        unseen.discard(number)
        base = None if inputs[number].is_delta else base
        values, non_finite = _load(task, number, base, shape, formula, worker, watching)
        if non_finite and not formula.method.continual:  # what is left beside must hold them
            raise _NotFinite
        return values

    base: Tensor | None = None
    try:
        base = load(0, None) if with_base else None
        deltas = Matrices((len(task.inputs), *shape), lambda k: load(k + with_base, base).to(formula.device))
        base_there = None if base is None else base.to(formula.device)
        with activated(call):
            merged = apply_formula(task, formula, deltas, base_there)
    except _NotFinite:  # products and decompositions would spread it over all elements
        merged, base_there = torch.full(shape, math.nan), None
    finally:  # what the method had no use for is still digested, and looked through for NaN
        for number in sorted(unseen):
            with suppress(_NotFinite):
                load(number, None)
    return encode(merged, base_there, task.scaling, task.dtype, worker)


class _NotFinite(Exception):
    """A matrix holds NaN or Inf. Not an error: whether it is one, the observer knows."""


def _load(
    task: Task,
    number: int,
    base: Tensor | None,
    shape: tuple[int, int],
    formula: Formula,
    worker: Worker,
    observer: Observer | None,
) -> tuple[Tensor, int]:
    """Return input `number` less the base, (m, n) on the CPU, in the compute dtype, and how many elements are NaN or Inf.

    It is read in pieces that stay in the cache.
    """
    source, layout = task.all_inputs[number].source, task.layout
    values = torch.empty(shape, dtype=torch.float64 if formula.compute_dtype == "float64" else torch.float32)
    flat = values.view(-1).numpy()
    below = None if base is None else base.view(-1).numpy()
    total = 0
    for start, stop in layout.blocks(_PIECE_ELEMENTS):
        with worker.timed("read"):
            raw = read_raw(source, start, stop, worker.scratch, "matrix")
        if observer:
            observer.read(number, task.begin + start, raw)
        non_finite = decode(raw, source.dtype, None if below is None else below[start:stop], flat[start:stop])
        total += non_finite
        if observer:
            observer.decoded(number, non_finite)
    return values, total
