"""Rounds of replay: a method is called on every block until it ends with values, from any number of threads.

A *visit* calls the method on all the blocks of one tensor. A tensor is visited again until only measurements over wider
scopes are missing; when all tensors are finished or waiting, these are finished and the next *round* begins. Folds run in
the order of leaves and names, so that threads and block sizes leave no trace.
"""

from __future__ import annotations

import sys
import threading
from collections import ChainMap, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.engine.blocks import Computed, Observer, Worker, compute_block
from cuvee.engine.matrices import merge_matrix
from cuvee.engine.tasks import Formula, Task
from cuvee.errors import CuveeError, MethodError
from cuvee.methods.calls import Key, Left, Memory, Pending
from cuvee.methods.folding import Accumulator, Done, Miss, Wide
from cuvee.methods.registry import ROW
from cuvee.tensors.devices import own_stream, settle
from cuvee.tensors.lazy_torch import torch

__all__ = ["Handler", "Tally", "run_rounds"]

_MOST_VISITS = 1000


class Handler:
    """What happens around the computation. The default does nothing; the engine's runs override what they need.

    Every method may be called from any worker thread; `begin`, `observed` and `finish` once a task.
    """

    def begin(self, task: Task) -> None:
        """A task is about to be visited for the first time."""

    def observer(self, task: Task) -> Observer | None:
        """Return who is told what the first visit of the task reads."""
        return None

    def visited(self, task: Task) -> None:
        """A visit of all blocks of a task, or of one expert's matrix, has ended."""

    def observed(self, task: Task) -> None:
        """The observer of a task has been told all of its inputs."""

    def deliver(self, task: Task, start: int, block: Computed) -> None:
        """The output from flat element `start` on is there."""

    def left(self, task: Task, start: int, left: Left) -> None:
        """The method has left something beside the output, from flat element `start` on."""

    def noted(self, task: Task, notes: Sequence[Mapping[str, Any]]) -> None:
        """What the method has noted of a task, or of each expert's matrix of it, before it is finished; see `noted`."""

    def finish(self, task: Task) -> None:
        """All the blocks of a task were delivered."""


@dataclass
class Tally:
    """What a run took.

    Attributes:
        decodes: a method that is given arrays has asked for float32 values of them.
    """

    visits: int = 0
    rounds: int = 0
    decodes: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add one worker's clocks: "read", "compute", "write"."""
        spent = {**seconds, "compute": seconds.get("compute", 0.0) - seconds.get("read", 0.0)}
        for what, value in spent.items():
            self.seconds[what] = self.seconds.get(what, 0.0) + value


@dataclass
class _Output:
    """One tensor of the output, and how many of the tasks that make it are yet to be visited, and to be finished."""

    task: Task
    unseen: int
    unfinished: int
    notes: Sequence[Mapping[str, Any]] = ()


@dataclass
class _Progress:
    """One task on its way."""

    output: _Output
    task: Task
    blocks: list[tuple[int, int]]
    answers: dict[Key, Any] = field(default_factory=dict)
    states: dict[Key, Any] = field(default_factory=dict)
    visit: int = 0
    left: int = 0
    asked: frozenset[Key] | None = None
    misses: dict[Key, tuple[Miss, Accumulator]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def begin_visit(self) -> None:
        self.left = len(self.blocks)
        self.asked = None
        self.misses = {}

    def add(self, misses: dict[Key, Miss]) -> None:
        """Add what one block has found missing; all blocks must ask the same."""
        asked = frozenset(misses)
        if self.asked is None:
            self.asked = asked
        elif self.asked != asked:
            raise MethodError(
                "the method measured different things on different blocks of one tensor",
                where=f"tensor {self.task.name!r}",
                right="what a method measures may depend on names, shapes and parameters, not on values",
            )
        for key, miss in misses.items():
            if key not in self.misses:
                self.misses[key] = (miss, Accumulator(miss.reduction.fold(miss.state)))
            self.misses[key][1].add(miss)


def _is_wide(key: Key) -> bool:
    return bool(key[0] != "tensor")


class _Rounds:
    """The shared state of the worker threads."""

    def __init__(
        self, tasks: Sequence[Task], formula: Formula, handler: Handler, block_elements: int, whole_elements: int
    ) -> None:
        self.formula = formula
        self.handler = handler
        self.block_elements = block_elements
        self.whole_elements = whole_elements
        self.tally = Tally()
        self.answers: dict[Key, Any] = {}
        self.states: dict[Key, Any] = {}
        self.wide: dict[Key, Wide] = {}
        self.waiting: list[_Progress] = []
        self.fresh: deque[Task] = deque(tasks)
        self.ready: deque[tuple[_Progress, int]] = deque()
        self.active = 0
        self.error: BaseException | None = None
        self.memory = Memory()
        self.changed = threading.Condition()

    def _blocks(self, task: Task) -> list[tuple[int, int]]:
        layout = task.layout
        if layout.numel and self.formula.needs_whole(task):
            return [(0, layout.numel)]
        whole_row = self.formula.method.unit is ROW and len(layout.shape) < 2
        if not task.is_copy and layout.numel and (whole_row or layout.numel <= self.whole_elements):
            return [(0, layout.numel)]
        return layout.blocks(self.block_elements)

    def work(self) -> None:
        """Take blocks and compute them until there are none left, or until something fails."""
        worker = Worker()
        try:
            _set_torch_threads(1)
            with own_stream(self.formula.device):
                while (job := self._next()) is not None:
                    self._run(*job, worker)
        except BaseException as error:
            with self.changed:
                self.error = self.error or error
                self.changed.notify_all()
        with self.changed:
            self.tally.add_seconds(worker.seconds)
            self.tally.decodes = self.tally.decodes or worker.decodes

    def _next(self) -> tuple[_Progress, int] | None:
        with self.changed:
            while True:
                if self.error is not None:
                    return None
                if self.ready:
                    self.active += 1
                    return self.ready.popleft()
                if self.fresh:
                    self._open(self.fresh.popleft())
                elif self.active:
                    self.changed.wait()
                elif self.waiting:
                    self._next_round()
                else:
                    self.changed.notify_all()
                    return None

    def _open(self, task: Task) -> None:
        self.handler.begin(task)
        if not task.layout.numel:
            self.handler.finish(task)
            return
        parts = list(self.formula.apart(task))
        output = _Output(task, len(parts), len(parts))
        started = [_Progress(output, part, self._blocks(part)) for part in parts]
        output.notes = [one.notes for one in started]
        for progress in reversed(started):
            self._enqueue(progress)

    def _enqueue(self, progress: _Progress) -> None:
        progress.begin_visit()
        # In front: a tensor that was begun is finished first, so that few are open at a time.
        self.ready.extendleft((progress, number) for number in reversed(range(len(progress.blocks))))
        self.changed.notify_all()

    def _run(self, progress: _Progress, number: int, worker: Worker) -> None:
        task, whole = progress.task, progress.output.task
        start, stop = progress.blocks[number]
        call = self.formula.call(
            task.place(start, stop), ChainMap(progress.answers, self.answers), ChainMap(progress.states, self.states)
        )
        call.memory = self.memory
        call.buffers = worker.buffers
        try:
            observer = self.handler.observer(whole) if progress.visit == 0 else None
            with worker.timed("compute"):  # what of it is reading is taken off at the end
                compute = merge_matrix if self.formula.on_matrix(task) else compute_block
                block = compute(task, self.formula, call, worker, observer)
            with worker.timed("write"):
                self.handler.deliver(whole, task.begin + start, block)
                if call.left is not None:
                    self.handler.left(whole, task.begin + start, call.left)
        except Pending:
            pass
        except CuveeError as error:
            error.where = error.where or f"tensor {task.name!r}"
            raise
        settle(self.formula.device)
        with self.changed:
            self.active -= 1
            progress.add(call.misses)
            progress.notes |= call.notes
            progress.left -= 1
            if progress.left == 0:
                self._end_visit(progress)
                settle(self.formula.device)
            self.changed.notify_all()

    def _end_visit(self, progress: _Progress) -> None:
        self.handler.visited(progress.task)
        output = progress.output
        if progress.visit == 0:
            output.unseen -= 1
            if not output.unseen:
                self.handler.observed(output.task)
        progress.visit += 1
        self.tally.visits += 1
        if not progress.misses:
            self.memory.forget(progress.task.name)
            output.unfinished -= 1
            if not output.unfinished:
                if any(output.notes):
                    self.handler.noted(output.task, output.notes)
                self.handler.finish(output.task)
            return
        if progress.visit > _MOST_VISITS:
            raise MethodError("the method never ends", where=f"tensor {progress.task.name!r}")
        narrow = {key: found for key, found in progress.misses.items() if not _is_wide(key)}
        if narrow:
            self._answer(progress, narrow)
            self._enqueue(progress)
            return
        for key, (miss, accumulator) in progress.misses.items():
            wide = self.wide.setdefault(key, Wide(miss.reduction, miss.state))
            wide.add(progress.task.name, accumulator)
        progress.misses = {}
        self.waiting.append(progress)

    def _answer(self, progress: _Progress, misses: dict[Key, tuple[Miss, Accumulator]]) -> None:
        for key, (miss, accumulator) in misses.items():
            folded = accumulator.folded(progress.task.name)
            outcome = miss.reduction.next(folded, miss.state, accumulator.numel)
            if isinstance(outcome, Done):
                progress.answers[key] = outcome.value
            else:
                progress.states[key] = outcome.state

    def _next_round(self) -> None:
        self.tally.rounds += 1
        for key, wide in self.wide.items():
            outcome = wide.finish()
            if isinstance(outcome, Done):
                self.answers[key] = outcome.value
            else:
                self.states[key] = outcome.state
        self.wide = {}
        settle(self.formula.device)
        waiting, self.waiting = self.waiting, []
        for progress in reversed(waiting):
            self._enqueue(progress)


def run_rounds(
    tasks: Sequence[Task],
    formula: Formula,
    handler: Handler,
    *,
    threads: int,
    block_elements: int,
    whole_elements: int = 0,
    watch: Callable[[], None] | None = None,
) -> Tally:
    """Compute every task.

    Args:
        tasks: in the order in which to begin them.
        handler: told what is read, delivered and finished.
        threads: number of worker threads; 1 works in the calling thread, where nobody watches.
        block_elements: about how many elements a block has.
        whole_elements: tensors of up to this many elements are one block.
        watch: called about ten times a second in the calling thread.

    Raises:
        CuveeError: the first error of any worker; all of them have stopped.
    """
    _load_linear_algebra(formula)
    settle(formula.device)  # what the caller has put there
    rounds = _Rounds(tasks, formula, handler, block_elements, whole_elements)
    before = torch.get_num_threads() if "torch" in sys.modules else 0
    try:
        if threads == 1 and watch is None:
            rounds.work()
        else:
            _in_threads(rounds, threads, watch)
    finally:
        _set_torch_threads(before)
    if rounds.error is not None:
        raise rounds.error
    rounds.tally.rounds += 1
    return rounds.tally


def _set_torch_threads(count: int) -> None:
    """Torch's own threads would compete with ours; where it is not loaded, there are none."""
    if count and "torch" in sys.modules:
        torch.set_num_threads(count)


def _load_linear_algebra(formula: Formula) -> None:
    """Have torch load a GPU's linear algebra, which it does when first asked, and fails when two threads ask at once."""
    plain = formula.method.arrays and not (formula.before or formula.after)
    if formula.device.startswith("cuda") and not plain:
        torch.linalg.inv(torch.ones(1, 1, device=formula.device))


def _in_threads(rounds: _Rounds, threads: int, watch: Callable[[], None] | None) -> None:
    workers = [threading.Thread(target=rounds.work, name=f"cuvee-{n}", daemon=True) for n in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.1)
                if watch:
                    watch()
    except BaseException as error:
        with rounds.changed:
            rounds.error = rounds.error or error
            rounds.changed.notify_all()
        for worker in workers:
            if worker.is_alive():  # a signal may come before all have begun
                worker.join()
