"""The device that torch shall compute on: whether it is there, its free memory, and a stream of work for each thread."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from cuvee.errors import ResourceError
from cuvee.tensors.lazy_torch import torch

__all__ = ["free_bytes", "need_device", "own_stream", "settle"]


def need_device(device: str) -> None:
    """Return if torch can compute on a device: "cpu", "cuda" or "cuda:1".

    Raises:
        ResourceError: it cannot.
    """
    if device == "cpu":
        return
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if kind != "cuda":
        raise ResourceError(f"there is no device {device!r}", right="--device cpu, or cuda")
    if int(number or 0) >= count:
        found = "no CUDA device" if not count else f"no more than {count} CUDA devices"
        raise ResourceError(f"torch {torch.__version__} finds {found} here", right="--device cpu")


def free_bytes(device: str) -> int | None:
    """Return the memory of a GPU that nothing holds; None of the CPU, whose memory is the process's own."""
    if not _is_gpu(device):
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # freed, and torch's to use again
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def own_stream(device: str) -> AbstractContextManager[object]:
    """Return a context in which this thread gives a GPU its work in a stream of its own.

    So the threads' matrices are decomposed side by side. One batched call for several would be faster only for sides up
    to about 512: linear algebra on GPUs takes larger ones one after the other.
    """
    if not _is_gpu(device):
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def settle(device: str) -> None:
    """Wait until a device has done what this thread asked of it: only then may other threads use it."""
    if _is_gpu(device):
        torch.cuda.current_stream(device).synchronize()


def _is_gpu(device: str) -> bool:
    return device.startswith("cuda")
