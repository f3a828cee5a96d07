"""How long a plan will take: an estimate from a sample of the method and of the disk, on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuvee.checkpoints.sources import MemoryArray, Scratch, read_raw
from cuvee.engine.blocks import Computed, Observer
from cuvee.engine.plan import Plan
from cuvee.engine.recording import TaskRecord
from cuvee.engine.rounds import Handler, run_rounds
from cuvee.engine.stages import is_ready
from cuvee.engine.tasks import Input, Task
from cuvee.errors import MethodError
from cuvee.tensors.layout import Layout

__all__ = ["Estimate", "estimate"]

_SAMPLE_ELEMENTS = 1 << 18
_SAMPLE_SIDE = 256
_SAMPLE_BYTES = 8 << 20
_MEMORY_BYTES_PER_S = 4e9  # of a read that the page cache answers, one thread
_WRITE_BYTES_PER_S = 1e9  # cannot be sampled without writing


@dataclass(frozen=True)
class Estimate:
    """A guess at the wall time of a run, start-up not counted.

    Attributes:
        read_s: for the first reading in each round.
        compute_s: for arithmetic and digests, all threads at work.
        write_s: for the output.
    """

    read_s: float
    compute_s: float
    write_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.read_s + self.compute_s + self.write_s


def estimate(plan: Plan) -> Estimate:
    """Estimate a plan's wall time from a sample of a few MB."""
    again = plan.bytes_read * max(0, plan.tally.visits - plan.tally.rounds)
    tasks = [one for task in plan.tasks if not task.is_copy for one in plan.formula.apart(task)]
    whole = [task for task in tasks if plan.formula.needs_whole(task)]
    merged = [task for task in tasks if not plan.formula.needs_whole(task)]
    compute = sum(t.layout.numel for t in merged) * _sampled_seconds(plan, merged, _sample)
    compute += sum(_products(t) for t in whole) * _sampled_seconds(plan, whole, _sample_matrix, runs=1)
    return Estimate(
        plan.bytes_read * plan.tally.rounds / _sampled_read_rate(plan),
        compute + again / (_MEMORY_BYTES_PER_S * plan.budget.threads),
        plan.bytes_written / _WRITE_BYTES_PER_S,
    )


def _sampled_read_rate(plan: Plan) -> float:
    """Return the bytes per second at which the first bytes of the largest tensor are read."""
    ready = [task for task in plan.tasks if is_ready(task.all_inputs[0].source)]
    if not ready:
        return _MEMORY_BYTES_PER_S
    task = max(ready, key=lambda task: task.layout.numel)
    source = task.all_inputs[0].source
    stop = min(math.prod(source.shape), _SAMPLE_BYTES // max(1, source.dtype.itemsize))
    begin = time.perf_counter()
    read_raw(source, 0, stop, Scratch(), "sample")
    seconds = max(time.perf_counter() - begin, 1e-9)
    return max(1e6, stop * source.dtype.itemsize / seconds)


def _products(task: Task) -> int:
    """Return m · n · min(m, n), to which the cost of decompositions and products of a matrix is proportional."""
    rows, columns = task.layout.shape[0], math.prod(task.layout.shape[1:])
    return rows * columns * min(rows, columns)


def _sampled_seconds(
    plan: Plan, tasks: Sequence[Task], sample: Callable[[Task], tuple[Task, int]], *, runs: int = 2
) -> float:
    """Return the seconds that all threads together take for one unit of work, all visits and digests included."""
    if not tasks:
        return 0.0
    one, work = sample(max(tasks, key=lambda task: task.layout.numel))
    copies = [replace(one, name=f"{one.name} {number}") for number in range(plan.budget.threads)]
    best = math.inf
    for _ in range(runs):  # the first run meets cold code and fresh memory
        begin = time.perf_counter()
        try:
            run_rounds(
                copies,
                replace(plan.formula, decompositions=None),
                _Recording(),
                threads=plan.budget.threads,
                block_elements=plan.budget.block_elements,
                whole_elements=plan.budget.whole_elements,
            )
        except MethodError:
            return 0.0
        best = min(best, time.perf_counter() - begin)
    return best / (len(copies) * max(1, work))


def _sample_matrix(task: Task) -> tuple[Task, int]:
    """Return a task like this one on a small random matrix, and its products."""
    found = _on(task, (_SAMPLE_SIDE, _SAMPLE_SIDE))
    return found, _products(found)


def _sample(task: Task) -> tuple[Task, int]:
    """Return a task like this one on a few random elements in memory, and their number."""
    columns = math.prod(task.layout.shape[1:]) if len(task.layout.shape) > 1 else 0
    columns = min(columns, _SAMPLE_ELEMENTS)
    found = _on(task, (max(1, _SAMPLE_ELEMENTS // columns), columns) if columns else (_SAMPLE_ELEMENTS,))
    return found, found.layout.numel


def _on(task: Task, shape: tuple[int, ...]) -> Task:
    generator = np.random.default_rng(0)

    def fake(one: Input) -> Input:
        return Input(one.model, MemoryArray(generator.standard_normal(shape, np.float32)))

    base = fake(task.base) if task.base else None
    return replace(task, layout=Layout(shape), inputs=tuple(map(fake, task.inputs)), base=base)


class _Recording(Handler):
    """Digests and rounds as a run does, and keeps nothing."""

    def __init__(self) -> None:
        self._records: dict[str, TaskRecord] = {}

    def begin(self, task: Task) -> None:
        self._records[task.name] = TaskRecord(task, {}, allow_non_finite=True)

    def observer(self, task: Task) -> Observer:
        return self._records[task.name]

    def deliver(self, task: Task, start: int, block: Computed) -> None:
        self._records[task.name].computed(start, block)
