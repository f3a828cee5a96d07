"""Whether a device that torch shall compute on is there."""

from __future__ import annotations

from cuvee.errors import ResourceError

__all__ = ["need_device"]


def need_device(device: str) -> None:
    """Return if torch can compute on a device: "cpu", "cuda" or "cuda:1".

    Raises:
        ResourceError: it cannot.
    """
    if device == "cpu":
        return
    import torch

    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if kind != "cuda":
        raise ResourceError(f"there is no device {device!r}", right="--device cpu, or cuda")
    if int(number or 0) >= count:
        found = "no CUDA device" if not count else f"no more than {count} CUDA devices"
        raise ResourceError(f"torch {torch.__version__} finds {found} here", right="--device cpu")
