"""Training and scoring on a GPU: the same bits twice on one machine, and a key that says which device made them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["at_once", "marks", "repeatable"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_lock = threading.Lock()
_inside = 0
_before: tuple[bool, bool, bool, bool] = (False, False, False, False)


def marks(device: str) -> tuple[str, ...]:
    """Return what a device adds to the key of what is made on it: nothing on a CPU, else its kind and name."""
    kind, _, number = device.partition(":")
    return () if kind == "cpu" else (kind, torch.cuda.get_device_name(int(number or 0)))


def at_once(device: str) -> int:
    """Return how many examples are scored in one pass: on a CPU such as stay in a core's cache."""
    return 32 if device == "cpu" else 1024


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Let torch do on a GPU only what gives the same bits twice, in float32; changes nothing for a CPU.

    What it sets is the process's, so several threads may be inside: the last one to leave puts back what was before.
    """
    global _inside, _before
    if device == "cpu":
        yield
        return
    with _lock:
        if not _inside:
            # Read when cuBLAS is first used: workspaces of its own choosing would make sums depend on the stream.
            os.environ.setdefault(_WORKSPACE, ":4096:8")
            _before = _flags()
            _set(True, False, False, False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(*_before)


def _flags() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )


def _set(deterministic: bool, benchmark: bool, tf32_convolutions: bool, tf32_products: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = tf32_convolutions
    torch.backends.cuda.matmul.allow_tf32 = tf32_products
