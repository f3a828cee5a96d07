"""Digests of tensors: BLAKE3 of the digests of their leaves, so that any order of blocks gives the same one."""

from __future__ import annotations

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

    def add(self, start: int, raw: NDArray[np.uint8]) -> None:
        """Add the bytes of the flat elements from `start` on; a run of whole leaves."""
        width = self._dtype.itemsize
        _digest_leaves(raw, self._layout.leaf * width, self.place(start, start + len(raw) // width))

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
