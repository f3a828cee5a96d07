"""Reading a published model again: every tensor, or a sample of the leaves; and in which leaves it differs."""

from __future__ import annotations

import math
import random
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.checkpoints.sources import Scratch, StoredTensor
from cuvee.engine.blocks import Observer
from cuvee.engine.budget import CPU_BLOCK
from cuvee.engine.rounds import Handler, run_rounds
from cuvee.engine.tasks import Formula, Input, Task
from cuvee.methods.registry import find_method
from cuvee.tensors.digests import MARK, TensorDigest, leaf_mark
from cuvee.tensors.layout import Layout

__all__ = ["Read", "choose_leaves", "differing", "read_all", "read_some"]


@dataclass
class Read:
    """What was read.

    Attributes:
        tensors: how many of them were read, or a part of them.
        done: bytes.
        digests: of the tensors that were read whole.
        marks: of their leaves.
        altered: leaves that are not what was published, of the tensors that were read in part.
    """

    tensors: int = 0
    done: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    marks: dict[str, bytes] = field(default_factory=dict)
    altered: dict[str, list[int]] = field(default_factory=dict)


class _Digesting(Handler):
    """Digests every tensor as it is read."""

    def __init__(self, tensors: Mapping[str, StoredTensor], progress: Callable[[int, int], None]) -> None:
        self._open: dict[str, _Digest] = {}
        self._progress = progress
        self._total = _bytes_of(tensors)
        self.read = Read()

    def begin(self, task: Task) -> None:
        self._open[task.name] = _Digest(task)

    def observer(self, task: Task) -> Observer:
        return self._open[task.name]

    def finish(self, task: Task) -> None:
        digest = self._open.pop(task.name).digest
        self.read.digests[task.name] = digest.hexdigest()
        self.read.marks[task.name] = b64decode(digest.marks())
        self.read.tensors += 1
        self.read.done += task.bytes_written

    def watch(self) -> None:
        """Say how far it is."""
        self._progress(self.read.done, self._total)


class _Digest(Observer):
    """The digest of one tensor on its way."""

    def __init__(self, task: Task) -> None:
        self.digest = TensorDigest(task.dtype, task.layout)

    def read(self, number: int, start: int, raw: Any) -> None:
        """Add a block."""
        self.digest.add(start, raw)

    def place(self, number: int, start: int, stop: int) -> Any:
        """Return where the digests of leaves go."""
        return self.digest.place(start, stop)

    def decoded(self, number: int, non_finite: int) -> None:
        """The values themselves do not matter."""


def _bytes_of(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(Layout(t.shape).numel * t.dtype.itemsize for t in tensors.values())


def read_all(tensors: Mapping[str, StoredTensor], progress: Callable[[int, int], None], threads: int) -> Read:
    """Read and digest every tensor.

    Args:
        progress: called with the bytes read and the bytes of all.
    """
    tasks = [
        Task(name, Layout(stored.shape), stored.dtype, (Input(0, stored),))
        for name, stored in sorted(tensors.items(), key=lambda item: item[1].place)
    ]
    handler = _Digesting(tensors, progress)
    formula = Formula(find_method("passthrough"))
    run_rounds(tasks, formula, handler, threads=threads, block_elements=CPU_BLOCK, watch=handler.watch)
    handler.watch()
    return handler.read


def read_some(
    tensors: Mapping[str, StoredTensor],
    marks: Mapping[str, bytes],
    share: float,
    progress: Callable[[int, int], None],
) -> Read:
    """Read a share of all leaves, chosen at random; a tensor of one leaf has no marks, and is digested.

    Args:
        marks: of the leaves of each tensor, as they should be.
        share: from 0 to 1.
        progress: called with the bytes read and the bytes to be read.
    """
    read = Read()
    scratch = Scratch()
    total = math.ceil(share * _bytes_of(tensors))
    chosen = choose_leaves({name: Layout(stored.shape).leaves for name, stored in tensors.items()}, share)
    for name, leaves in sorted(chosen.items(), key=lambda item: tensors[item[0]].place):
        stored, layout = tensors[name], Layout(tensors[name].shape)
        read.tensors += 1
        for leaf in leaves:
            start, stop = leaf * layout.leaf, min(layout.numel, (leaf + 1) * layout.leaf)
            raw = stored.read_raw(start, stop, scratch, "leaf")
            read.done += len(raw)
            if layout.leaves == 1:
                digest = TensorDigest(stored.dtype, layout)
                digest.add(0, raw)
                read.digests[name] = digest.hexdigest()
            elif leaf_mark(raw.data) != marks[name][leaf * MARK : (leaf + 1) * MARK]:
                read.altered.setdefault(name, []).append(leaf)
            progress(min(read.done, total), total)
    return read


def choose_leaves(leaves: Mapping[str, int], share: float) -> dict[str, list[int]]:
    """Return a share of all leaves, at least one, each as likely as any other; sorted, by tensor.

    Args:
        leaves: how many each tensor has.
        share: from 0 to 1.
    """
    total = sum(leaves.values())
    wanted = sorted(random.SystemRandom().sample(range(total), min(total, max(1, math.ceil(share * total)))))
    chosen: dict[str, list[int]] = {}
    names = iter(leaves.items())
    first, end, name = 0, 0, ""
    for number in wanted:
        while number >= end:
            name, count = next(names)
            first, end = end, end + count
        chosen.setdefault(name, []).append(number - first)
    return chosen


def differing(one: bytes, other: bytes) -> list[int]:
    """Return the leaves whose marks differ; none where the tables are not of one length."""
    if len(one) != len(other):
        return []
    return [at // MARK for at in range(0, len(one), MARK) if one[at : at + MARK] != other[at : at + MARK]]
