"""Digests of tensors: BLAKE3 of the digests of their leaves, so that any order of blocks gives the same one."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from cuvee.tensors import kernels
from cuvee.tensors.dtypes import DType
from cuvee.tensors.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MARK", "TensorDigest", "leaf_mark", "model_digest"]

_SIZE = 32
MARK = 8  # bytes


class TensorDigest:
    """The digest of one tensor in the making. Blocks may come in any order, from any thread."""

    def __init__(self, dtype: DType, layout: Layout) -> None:
        self._dtype = dtype
        self._layout = layout
        self._leaves = np.zeros((layout.leaves, _SIZE), np.uint8)
        self._parts: dict[int, dict[int, bytes]] = {}
        self._lock = threading.Lock()

    def add(self, start: int, raw: NDArray[np.uint8]) -> None:
        """Add the bytes of the flat elements from `start` on; what is no whole leaf is held until the rest is there."""
        width, leaf, numel = self._dtype.itemsize, self._layout.leaf, self._layout.numel
        stop = start + len(raw) // width
        whole = min(-(-start // leaf) * leaf, stop)
        end = stop if stop == numel else max(whole, stop // leaf * leaf)
        if whole < end:
            leaves = raw[(whole - start) * width : (end - start) * width]
            _digest_leaves(leaves, leaf * width, self.place(whole, end))
        for first, last in ((start, whole), (end, stop)):
            if first < last:
                self._add_part(first, raw[(first - start) * width : (last - start) * width])

    def _add_part(self, start: int, raw: NDArray[np.uint8]) -> None:
        """Add a part of one leaf; digest the leaf when all its parts are there."""
        number, leaf = start // self._layout.leaf, self._layout.leaf
        size = (min((number + 1) * leaf, self._layout.numel) - number * leaf) * self._dtype.itemsize
        with self._lock:
            parts = self._parts.setdefault(number, {})
            parts[start] = raw.tobytes()
            if sum(map(len, parts.values())) == size:
                joined = b"".join(parts[at] for at in sorted(parts))
                self._leaves[number] = np.frombuffer(blake3(joined).digest(), np.uint8)
                del self._parts[number]

    def place(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return where the digests of the leaves that begin in the flat elements `[start, stop)` go: (leaves, 32)."""
        leaf = self._layout.leaf
        return self._leaves[start // leaf : -(-stop // leaf)]

    def marks(self) -> str:
        """Return the first eight bytes of each leaf's digest, in base64: enough to tell which leaf was damaged."""
        return b64encode(self._leaves[:, :MARK].tobytes()).decode()

    def hexdigest(self) -> str:
        """Return the tensor's digest: dtype, shape and leaves."""
        head = f"tensor/1\0{self._dtype.name}\0{list(self._layout.shape)}\0".encode()
        return blake3(head + self._leaves.tobytes()).hexdigest()


def _digest_leaves(raw: NDArray[np.uint8], leaf: int, out: NDArray[np.uint8]) -> None:
    """Write the BLAKE3 digests of runs of `leaf` bytes to `out`, (leaves, 32)."""
    if leaf <= kernels.MOST_OF_A_LEAF and kernels.digests():
        kernels.digest_leaves(raw, leaf, out)
        return
    view = raw.data
    for number, begin in enumerate(range(0, len(view), leaf)):
        out[number] = np.frombuffer(blake3(view[begin : begin + leaf]).digest(), np.uint8)


def leaf_mark(raw: memoryview | bytes) -> bytes:
    """Return the mark of one leaf, from its bytes."""
    return blake3(raw).digest(MARK)


def model_digest(tensors: Mapping[str, str]) -> str:
    """Return the digest of a model from those of its tensors: independent of files, shards and their order."""
    return blake3(b"model/1\0" + b"".join(_lines(tensors))).hexdigest()


def _lines(tensors: Mapping[str, str]) -> Iterable[bytes]:
    for name in sorted(tensors, key=lambda name: name.encode("utf-8")):
        yield f"{name}\0{tensors[name]}\n".encode()
