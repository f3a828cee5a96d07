"""What a run does with each tensor that it computes: recorded, written, journaled, and sent to the disk meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.checkpoints.journal import Journal
from cuvee.checkpoints.publishing import os_errors
from cuvee.checkpoints.writing import ShardWriter
from cuvee.engine.blocks import Computed, Observer
from cuvee.engine.known import Known
from cuvee.engine.notes import notes_of_tensor
from cuvee.engine.plan import Plan
from cuvee.engine.recording import TaskRecord
from cuvee.engine.rounds import Handler
from cuvee.engine.tasks import Task
from cuvee.errors import CheckpointError
from cuvee.methods.calls import Left
from cuvee.tensors.digests import TensorDigest

__all__ = ["Delivery", "Finished", "WriteBackBeside"]

_WRITE_BACK_BYTES = 64 << 20


@dataclass
class Finished:
    """What is known of the finished tensors."""

    outputs: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    inputs: dict[int, dict[str, str]] = field(default_factory=dict)
    non_finite: dict[str, int] = field(default_factory=dict)
    continual: Sequence[float] = ()
    notes: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any], output: TensorDigest) -> None:
        self.outputs[record["tensor"]] = record["output"]
        self.marks[record["tensor"]] = output.marks()
        for number, name, digest in record["inputs"]:
            self.inputs.setdefault(number, {})[name] = digest
        if record["non_finite"]:
            self.non_finite[record["tensor"]] = record["non_finite"]
        if "notes" in record:
            self.notes[record["tensor"]] = record["notes"]


class Delivery(Handler):
    """Records, writes and journals each tensor.

    Attributes:
        done: bytes of output that are finished.
        visited_bytes: bytes of output that were visited, once for each visit.
        write_back: set when enough is written to be sent to the disk.
    """

    def __init__(
        self,
        plan: Plan,
        writer: ShardWriter,
        continual: ShardWriter,
        journal: Journal,
        finished: Finished,
        staging: Path,
        *,
        allow_non_finite: bool,
    ) -> None:
        self._plan = plan
        self._writer = writer
        self._journal = journal
        self._finished = finished
        self._continual = continual
        self._staging = staging
        self._allow = allow_non_finite
        self._known = Known.of(plan)
        self._records: dict[str, TaskRecord] = {}
        self._notes: dict[str, dict[str, Any]] = {}
        self._unsynced = 0
        self.done = 0
        self.visited_bytes = 0
        self.write_back = threading.Event()

    def begin(self, task: Task) -> None:
        self._records[task.name] = TaskRecord(task, self._plan.labels, self._allow)

    def observer(self, task: Task) -> Observer:
        return self._records[task.name]

    def observed(self, task: Task) -> None:
        self._records[task.name].check_inputs()

    def visited(self, task: Task) -> None:
        self.visited_bytes += task.bytes_written

    def deliver(self, task: Task, start: int, block: Computed) -> None:
        self._records[task.name].computed(start, block)
        with os_errors(self._staging):
            self._writer.write(task.name, start * task.dtype.itemsize, block.raw)

    def left(self, task: Task, start: int, left: Left) -> None:
        values = left.values.cpu().contiguous().reshape(-1).numpy()
        with os_errors(self._staging):
            self._continual.write(task.name, start * values.itemsize, values.view(np.uint8))
        self._finished.continual = left.numbers

    def noted(self, task: Task, notes: Sequence[Mapping[str, Any]]) -> None:
        self._notes[task.name] = {"notes": notes_of_tensor(notes)}

    def finish(self, task: Task) -> None:
        record = self._records.pop(task.name)
        record.check_output()
        self._known.check(record)
        _check_expected(self._plan, record)
        line = {
            "tensor": task.name,
            "output": record.output.hexdigest(),
            "inputs": [
                [one.model, one.name or task.name, digest.hexdigest()]
                for one, digest in zip(task.all_inputs, record.inputs, strict=True)
            ],
            "non_finite": record.non_finite[-1],
            **self._notes.pop(task.name, {}),
        }
        with os_errors(self._staging):
            self._journal.append(line)
        self._finished.add(line, record.output)
        size = task.bytes_written
        self.done += size
        self._unsynced += size
        if self._unsynced >= _WRITE_BACK_BYTES:
            self._unsynced = 0
            self.write_back.set()


def _check_expected(plan: Plan, record: TaskRecord) -> None:
    """Refuse a tensor that is not the one that the plan goes on from.

    Raises:
        CheckpointError: naming model and tensor.
    """
    for one, digest in zip(record.task.all_inputs, record.inputs, strict=True):
        name = one.name or record.task.name
        if plan.expected.get((one.model, name), digest.hexdigest()) != digest.hexdigest():
            raise CheckpointError(
                f"tensor {name!r} of {plan.labels[one.model]!r} is not the one that was merged before",
                where=one.source.place[0],
                right="that model as it was, or one merge of all experts",
            )


class WriteBackBeside:
    """Starts the write-back of finished tensors in a thread beside, so that the last sync is short."""

    def __init__(self, writer: ShardWriter, journal: Journal, wanted: threading.Event) -> None:
        self._writer = writer
        self._journal = journal
        self._wanted = wanted
        self._over = False
        self._thread = threading.Thread(target=self._work, name="cuvee-write-back", daemon=True)

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._over:
                return
            try:
                self._writer.write_back()
                self._journal.sync()
            except OSError:
                return  # the writer remembers it, and refuses the next block

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wanted.set()
        self._thread.join()
