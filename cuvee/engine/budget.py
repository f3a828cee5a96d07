"""The memory budget: threads and block size that keep a promise, or a refusal that says what does not fit."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.checkpoints import fs
from cuvee.engine.tasks import Formula, Task
from cuvee.errors import ResourceError
from cuvee.methods.registry import ROW, Edit, Method
from cuvee.methods.spectral import decomposition_bytes
from cuvee.tensors import kernels
from cuvee.tensors.layout import LEAF_ELEMENTS

__all__ = ["Budget", "choose_budget", "default_threads"]

CPU_BLOCK = 1 << 19
STREAM_BLOCK = 1 << 20
"""Where blocks go leaf by leaf from file to file, and no more than the output of one is held."""
CUDA_BLOCK = 1 << 25
WHOLE_TENSOR = 3 << 20
"""A tensor of up to this many elements is one block where a method measures: one visit instead of several is worth
more than the cache (a quarter of the time of ties)."""
PROCESS_BYTES = 210_000_000
"""Anonymous memory of the process itself: Python, torch, kernels, the plan. Measured by `make bench-merge`."""
PROMISED_PROCESS_BYTES = 290_000_000
ROWS_PROCESS_BYTES = 70_000_000
"""The same where nothing loads torch."""
DEFAULT_BYTES = 595_000_000
_SHARE_OF_MEMORY = 50
_SHARE_OF_DEVICE = 0.8  # what it frees comes back in pieces
_STACK_BYTES = 16 << 20
_SELECTION_BYTES = 1 << 20


@dataclass(frozen=True)
class Budget:
    """How a run uses the machine.

    Attributes:
        threads: worker threads.
        block_elements: elements of a block.
        bytes: the most anonymous memory that the run needs, estimated from above.
        whole_elements: tensors of up to this many elements are one block.
    """

    threads: int
    block_elements: int
    bytes: int
    whole_elements: int = 0


def default_threads() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_budget(
    tasks: Sequence[Task],
    formula: Formula,
    *,
    memory: int | None,
    threads: int | None,
    device: str = "cpu",
    device_bytes: int | None = None,
    measures: bool = True,
    decodes: bool = True,
) -> Budget:
    """Choose blocks and threads: the first of these that fits, large blocks first, then fewer threads.

    Args:
        memory: the promise, in bytes; None: what full speed needs.
        threads: None: one for each core.
        device_bytes: free on the device, where it has a memory of its own: threads and blocks must fit there too.
        measures: the method visits a tensor more than once.
        decodes: it works on float32 copies of what it reads, not on rows as they are stored.

    Raises:
        ResourceError: not even the smallest blocks of one thread fit; the tensor and the amount are named.
    """
    tasks = [next(formula.apart(task)) for task in tasks]
    on_cpu = CPU_BLOCK if measures or decodes else STREAM_BLOCK
    full = on_cpu if device == "cpu" else CUDA_BLOCK
    blocks = [full >> shift for shift in range((full // LEAF_ELEMENTS).bit_length())]
    speedy = measures and device == "cpu" and memory is None
    wholes = [WHOLE_TENSOR, WHOLE_TENSOR // 2, WHOLE_TENSOR // 3] if speedy else []
    choices = [(full, whole) for whole in wholes] + [(block, 0) for block in blocks]
    budget = Budget(1, full, 0)
    enough = memory or max(DEFAULT_BYTES, available_bytes() // _SHARE_OF_MEMORY)  # many cores have much memory
    own = PROCESS_BYTES if decodes else ROWS_PROCESS_BYTES
    matrices = any(formula.needs_whole(task) for task in tasks)
    if memory is None and matrices:
        enough = max(enough, available_bytes() * 7 // 10)  # a matrix has no smaller block: fewer threads instead
    sized = [(block, whole, _worker_bytes(tasks, formula, block, whole, decodes)) for block, whole in choices]
    on_device = math.inf if device_bytes is None else _SHARE_OF_DEVICE * device_bytes
    for count in range(threads or default_threads(), 0, -1):
        for block, whole, worker in sized:
            if count * worker > on_device:
                continue
            needed = own + count * worker
            if memory is not None:
                # A promise also holds against a hard limit, which counts stacks, and what is freed but kept.
                needed = PROMISED_PROCESS_BYTES + count * (2 * worker + _STACK_BYTES)
            budget = Budget(count, block, needed, whole)
            if budget.bytes <= enough or (memory is None and not whole and not matrices):
                return budget
    smallest = sized[-1][-1]
    largest = max(tasks, key=lambda task: _block_bytes(task, formula, LEAF_ELEMENTS, 0, decodes))
    inputs = len(largest.all_inputs)
    where = f"tensor {largest.name!r} {largest.layout.shape}, from {inputs} model{'s' * (inputs > 1)}"
    if smallest > on_device:
        found = f"{device} has {(device_bytes or 0) / 1e6:.0f} MB free: this merge needs {smallest / 1e6:.0f} MB there"
        raise ResourceError(found, where=where, right="--device cpu, or a GPU with more memory")
    if memory is None:
        return budget
    needed_mb = -(-budget.bytes // 10**6)
    raise ResourceError(
        f"--memory {(memory or 0) / 1e6:.0f} MB is too little: this merge needs {needed_mb} MB",
        where=where,
        right=f"--memory {needed_mb}MB",
    )


def _worker_bytes(tasks: Sequence[Task], formula: Formula, block: int, whole: int, decodes: bool) -> int:
    return max((_block_bytes(task, formula, block, whole, decodes) for task in tasks), default=0)


def _block_bytes(task: Task, formula: Formula, block: int, whole: int, decodes: bool) -> int:
    """Bytes that one block needs: as read, in the compute dtype, a result for each model, and temporaries.

    Rows are kept as they are stored; a method makes masks of them, and float32 or keys of one at a time.
    """
    layout, method = task.layout, formula.method
    elements = min(layout.numel, max(1, block // layout.leaf) * layout.leaf)
    if task.is_copy:
        return elements * (8 if task.is_plain_copy else 28)
    if formula.needs_whole(task):
        return _matrix_bytes(task, formula)
    if layout.numel <= whole or (method.unit is ROW and len(layout.shape) < 2):
        elements = layout.numel
    models = len(task.all_inputs)
    if not decodes and all(one.source.dtype.name in kernels.KINDS for one in task.all_inputs):
        stored = sum(one.source.dtype.itemsize for one in task.all_inputs) + task.dtype.itemsize
        masks = models * (1 + len(formula.before))
        return elements * (stored + masks + 12) + models * _SELECTION_BYTES
    staged = 4 * sum(getattr(one.source, "rows", 0) for one in task.all_inputs)  # computed as they are read
    return elements * (4 * (2 * models - 1) + 28 + staged) + models * _SELECTION_BYTES


def _matrix_bytes(task: Task, formula: Formula) -> int:
    """Bytes that a whole matrix needs: what method and edits say that they hold, and the output as it is stored."""
    models, size = len(task.inputs), task.layout.numel
    wide = 2 if formula.compute_dtype == "float64" else 1
    steps: list[tuple[Method | Edit, Mapping[str, Any]]]
    steps = [(formula.method, task.arguments or {}), *formula.before, *formula.after]
    found = [(step, task.as_matrix(step, parameters), parameters) for step, parameters in steps]
    held = sum(step.workspace(*shape, models, said) for step, shape, said in found if shape and step.workspace)
    on_stack = formula.on_matrix(task) is None or formula.after or any(step.joint for step, _ in formula.before)
    if "gram" in formula.kinds and formula.statistics:
        sides = [shape[1] for _, shape, _ in found if shape]
        # one as read, three in float64, and the decomposition of their sum
        held += max((28 * n * n + decomposition_bytes(n) for n in sides), default=0)
    if formula.asks_for_whole(task.arguments or {}):
        held += 40 * size  # keys, places and probabilities of one model
    if task.transposed:
        held += 4 * 3 * size  # base, a task vector and the result turned
    stack = 4 * size * (2 * models + 4) if on_stack else 4 * size * (2 if formula.before else 0)
    return wide * (held + stack) + size * task.dtype.itemsize


def available_bytes() -> int:
    """Return the memory that the machine can give without swapping."""
    known = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    said = dict(line.split(":") for line in fs.read_text_of_system("meminfo").splitlines())
    return int(said["MemAvailable"].split()[0]) << 10 if "MemAvailable" in said else known
