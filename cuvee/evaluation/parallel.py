"""Work on small models, one model a core: a matrix of 128 columns leaves a second thread nothing to do.

Where there are fewer models than cores, each has several: the number of threads, like the seed, decides the last bits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["Stopped", "each_on_a_core"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The work was asked to stop."""


def each_on_a_core(
    work: Callable[[Item, Callable[[], None]], Result],
    items: Sequence[Item],
    *,
    at_most: int | None = None,
    threads: int = 1,
) -> list[Result]:
    """Return what `work(item, check)` gives for each item, in the order of the items.

    Work that takes long calls `check()` now and then: it raises `Stopped` once another item has failed or the user has
    pressed Ctrl-C, so that nobody waits for models that nobody wants.

    Args:
        work: what is done.
        items: to what.
        at_most: how many at once; None: as many as there are cores.
        threads: of torch, for each.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    with _torch_threads(threads), ThreadPoolExecutor(min(at_most or _cores(), len(items)) or 1) as pool:
        futures = [pool.submit(work, item, check) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
