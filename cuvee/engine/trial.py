"""A method tried on a few elements: its errors come before any weight is read, and its visits and rounds are counted."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from cuvee.checkpoints.sources import MemoryArray
from cuvee.engine.given import TrialStatistics
from cuvee.engine.rounds import Handler, Tally, run_rounds
from cuvee.engine.tasks import Formula, Input, Task
from cuvee.errors import MethodError
from cuvee.tensors.layout import Layout

__all__ = ["try_out"]

_TRIALS = 64
_SIDE = 8


def try_out(tasks: Sequence[Task], formula: Formula) -> Tally:
    """Run the method on a few elements for each set of arguments: errors come early, visits and rounds are counted."""
    given = formula.statistics and TrialStatistics(formula.statistics, _SIDE)
    formula = dataclasses.replace(formula, device="cpu", decompositions=None, statistics=given)
    tally = Tally()
    seen: set[str] = set()
    for task in (next(formula.apart(one)) for one in tasks):
        kind = (len(task.layout.shape), formula.needs_whole(task))
        key = repr((task.arguments, len(task.all_inputs), task.base is None, kind))
        if task.is_copy or key in seen or len(seen) >= _TRIALS:
            continue
        # Two leaves of one row make a method stream; a third set of arguments is only tried for its errors.
        streams = len(seen) < 2 and len(task.layout.shape) > 1
        seen.add(key)
        small = (2, 1 << 16) if streams and not formula.needs_whole(task) else (_SIDE, _SIDE)
        fake = _fake_task(task, small)
        try:
            took = run_rounds([fake], formula, Handler(), threads=1, block_elements=1)
        except MethodError as error:
            error.where = error.where.replace(fake.name, task.name) or f"tensor {task.name!r}"
            raise
        tally.visits, tally.rounds = max(tally.visits, took.visits), max(tally.rounds, took.rounds)
        tally.decodes = tally.decodes or took.decodes
    return Tally(max(tally.visits, 1), max(tally.rounds, 1), tally.decodes)


def _fake_task(task: Task, shape: tuple[int, ...]) -> Task:
    """Return a task like this one on values of full rank, none like another; NumPy's generators take 20 ms to load."""
    numbers = itertools.count(1)

    def fake() -> Input:
        words = np.arange(1, math.prod(shape) + 1, dtype=np.uint32) ** 2 * np.uint32(2654435761 * next(numbers) % 2**32)
        return Input(0, MemoryArray((words.astype(np.float32) * 2.0**-31 - 1).reshape(shape)))

    base = fake() if task.base else None
    return dataclasses.replace(task, layout=Layout(shape), inputs=tuple(fake() for _ in task.inputs), base=base)
