"""What is kept of costly work: whole tensors from round to round, results by what they are made of from run to run."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from cuvee.checkpoints import fs
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KeptDecompositions", "KeptInFolder", "KeptInMemory", "ResultsInFolder"]

_DTYPES = {"float32": np.float32, "float64": np.float64}
_DIGEST_BYTES = 32


class KeptInMemory:
    """Tensors kept from round to round of a merge in memory."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """Return what was kept, or None."""
        return self._held.get(name)

    def put(self, name: str, value: Tensor) -> None:
        """Keep a tensor."""
        self._held[name] = value


class KeptInFolder:
    """Tensors kept from round to round of a run, in its staging folder: memory stays free. Nothing outlives the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, tuple[Path, tuple[int, ...], str]] = {}

    def get(self, name: str) -> Tensor | None:
        """Return what was kept, or None."""
        if name not in self._held:
            return None
        path, shape, dtype = self._held[name]
        return torch.from_numpy(np.frombuffer(bytearray(fs.read_file(path)), _DTYPES[dtype])).reshape(shape)

    def put(self, name: str, value: Tensor) -> None:
        """Keep a tensor."""
        fs.mkdir(self._folder)
        path = self._folder / blake3(name.encode("utf-8", "surrogatepass")).hexdigest()
        array = value.cpu().contiguous().numpy()
        fs.write_scratch(path, array.reshape(-1).view(np.uint8).data)
        self._held[name] = (path, tuple(value.shape), str(array.dtype))


class KeptDecompositions:
    """Decompositions kept in memory, up to a limit; those that were not used for the longest time go first."""

    def __init__(self, limit_bytes: int = 2 << 30) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> tuple[Tensor, ...] | None:
        """Return the factors, or None."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: str, factors: tuple[Tensor, ...]) -> None:
        """Keep the factors, if there is room."""
        with self._lock:
            if key not in self._held:
                self._bytes += _size(factors)
                self._held[key] = factors
            while self._bytes > self._limit and self._held:
                self._bytes -= _size(self._held.popitem(last=False)[1])


def _size(factors: tuple[Tensor, ...]) -> int:
    return sum(one.numel() * one.element_size() for one in factors)


class ResultsInFolder:
    """Tuples of tensors kept in a folder under a digest of all that they follow from, one file each.

    A file says its own digest: what is damaged is made again.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind

    def get(self, key: str) -> tuple[Tensor, ...] | None:
        """Return what was kept, or None."""
        path = self._path(key)
        if not fs.exists(path):
            return None
        content = fs.read_file(path)
        if blake3(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            return None
        held = np.load(io.BytesIO(content[_DIGEST_BYTES:]))
        return tuple(torch.from_numpy(held[f"arr_{number}"]) for number in range(len(held)))

    def put(self, key: str, results: tuple[Tensor, ...]) -> None:
        """Keep tensors that NumPy has a dtype for."""
        packed = io.BytesIO()
        np.savez(packed, *[one.cpu().numpy() for one in results])
        content = packed.getvalue()
        fs.mkdir(self._folder)
        fs.replace_file(self._path(key), blake3(content).digest() + content)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.{self._kind}"
