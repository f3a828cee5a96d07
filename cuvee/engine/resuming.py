"""Going on where a run was killed: whose journal it is, and which of the tensors that it names the disk holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.checkpoints import fs
from cuvee.checkpoints.journal import read_journal
from cuvee.checkpoints.publishing import JOURNAL_NAME, MODEL_NAME
from cuvee.checkpoints.writing import ShardWriter
from cuvee.engine.delivering import Finished
from cuvee.engine.plan import Plan
from cuvee.engine.tasks import Task
from cuvee.tensors.digests import TensorDigest

__all__ = ["header", "keep_what_is_true", "resumable"]


def header(plan: Plan, allow_nan: bool) -> dict[str, Any]:
    files = [asdict(file.opened) for file in plan.files]
    return {"plan": plan.plan_id, "allow_nan": allow_nan, "files": sorted(files, key=lambda file: str(file["path"]))}


def resumable(plan: Plan, staging: Path, allow_nan: bool) -> list[dict[str, Any]] | None:
    """Return the records of an earlier run of the same plan on the same inputs; None when there is none."""
    folders = (staging, staging / MODEL_NAME)
    models = (*plan.models.values(), *plan.statistics.values())
    if not all(map(fs.is_own_folder, folders)) or not all(model.files for model in models):
        return None
    records = read_journal(staging / JOURNAL_NAME)
    same = bool(records) and records[0] == json.loads(json.dumps(header(plan, allow_nan)))
    return records[1:] if same else None


def keep_what_is_true(
    plan: Plan,
    writer: ShardWriter,
    records: Sequence[Mapping[str, Any]],
    finished: Finished,
    found: Callable[[int], None],
) -> None:
    """Count a journaled tensor as finished when its bytes, as the disk holds them, have the digest that is named.

    Args:
        found: told the bytes of all that were so far.
    """
    writer.forget()
    tasks = {task.name: task for task in plan.tasks}
    done = 0
    for record in records:
        task = tasks.get(record["tensor"])
        if task is None:
            continue
        digest = _digest_of_written(writer, task)
        if digest is not None and digest.hexdigest() == record["output"]:
            finished.add(record, digest)
            done += task.bytes_written
            found(done)


def _digest_of_written(writer: ShardWriter, task: Task) -> TensorDigest | None:
    digest = TensorDigest(task.dtype, task.layout)
    for start, stop in task.layout.blocks(1 << 20):
        buffer = np.empty((stop - start) * task.dtype.itemsize, np.uint8)
        if not writer.read(task.name, start, buffer.data, task.dtype.itemsize):
            return None
        digest.add(start, buffer)
    return digest
