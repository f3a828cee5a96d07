"""The memory budget: threads and block size that keep a promise, or a refusal that says what does not fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.engine.blocks import Task
from cuvee.errors import ResourceError
from cuvee.methods.registry import ROW, Method
from cuvee.tensors.layout import LEAF_ELEMENTS

__all__ = ["Budget", "choose_budget", "default_threads"]

CPU_BLOCK = 1 << 19
CUDA_BLOCK = 1 << 25
PROCESS_BYTES = 230_000_000
"""Anonymous memory of the process itself: Python, torch, the plan. Measured by `make bench-merge`."""
_SELECTION_BYTES = 4 << 20


@dataclass(frozen=True)
class Budget:
    """How a run uses the machine.

    Attributes:
        threads: worker threads.
        block_elements: elements of a block.
        bytes: the most anonymous memory that the run needs, estimated from above.
    """

    threads: int
    block_elements: int
    bytes: int


def default_threads() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_budget(
    tasks: Sequence[Task], method: Method, *, memory: int | None, threads: int | None, device: str = "cpu"
) -> Budget:
    """Choose blocks and threads.

    Args:
        memory: the promise, in bytes; None: what full speed needs.
        threads: None: one for each core.

    Raises:
        ResourceError: not even the smallest blocks fit; the tensor and the amount are named.
    """
    wanted = threads or default_threads()
    full = CPU_BLOCK if device == "cpu" else CUDA_BLOCK
    sizes = [full] if memory is None else [full >> shift for shift in range((full // LEAF_ELEMENTS).bit_length())]
    for count in [wanted] if memory is None else range(wanted, 0, -1):
        for size in sizes:
            needed = PROCESS_BYTES + count * _worker_bytes(tasks, method, size)
            if memory is None or needed <= memory:
                return Budget(count, size, needed)
    largest = max(tasks, key=lambda task: _block_bytes(task, method, LEAF_ELEMENTS))
    needed = PROCESS_BYTES + _worker_bytes(tasks, method, LEAF_ELEMENTS)
    raise ResourceError(
        f"--memory {memory / 1e6:.0f} MB is too little: this merge needs {needed / 1e6:.0f} MB"
        if memory is not None
        else "too little memory",
        where=f"tensor {largest.name!r} {largest.layout.shape}, from {len(largest.all_inputs)} models",
        right=f"--memory {-(-needed // 10**6)}MB",
    )


def _worker_bytes(tasks: Sequence[Task], method: Method, block: int) -> int:
    return max((_block_bytes(task, method, block) for task in tasks), default=0)


def _block_bytes(task: Task, method: Method, block: int) -> int:
    """Bytes that one block needs: as read, in the compute dtype, and the method's temporaries."""
    layout = task.layout
    elements = min(layout.numel, max(1, block // layout.leaf) * layout.leaf)
    if task.is_copy:
        return elements * 8
    if method.unit is ROW and len(layout.shape) < 2:
        elements = layout.numel
    models = len(task.all_inputs)
    return elements * (8 + 4 * models * 4 + 40) + models * _SELECTION_BYTES
