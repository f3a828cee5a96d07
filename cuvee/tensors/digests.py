"""Digests of tensors: BLAKE3 of the digests of their leaves, so that any order of blocks gives the same one."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from blake3 import blake3

from cuvee.tensors import kernels
from cuvee.tensors.dtypes import DType
from cuvee.tensors.layout import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MARK", "TensorDigest", "leaf_mark", "model_digest"]

_SIZE = 32
MARK = 8  # bytes
_MOST_OF_A_KERNEL = 1 << 20


class TensorDigest:
    """The digest of one tensor in the making. Blocks may come in any order, from any thread."""

    def __init__(self, dtype: DType, layout: Layout) -> None:
        self._dtype = dtype
        self._layout = layout
        self._leaves = bytearray(_SIZE * layout.leaves)

    def add(self, start: int, raw: NDArray[np.uint8]) -> None:
        """Add the bytes of the flat elements from `start` on; a run of whole leaves."""
        found = _leaf_digests(raw, self._layout.leaf * self._dtype.itemsize)
        at = _SIZE * (start // self._layout.leaf)
        self._leaves[at : at + len(found)] = found

    def marks(self) -> str:
        """Return the first eight bytes of each leaf's digest, in base64: enough to tell which leaf was damaged."""
        return b64encode(b"".join(self._leaves[at : at + MARK] for at in range(0, len(self._leaves), _SIZE))).decode()

    def hexdigest(self) -> str:
        """Return the tensor's digest: dtype, shape and leaves."""
        head = f"tensor/1\0{self._dtype.name}\0{list(self._layout.shape)}\0".encode()
        return blake3(head + self._leaves).hexdigest()


def _leaf_digests(raw: NDArray[np.uint8], leaf: int) -> bytes:
    """Return the BLAKE3 digests of runs of `leaf` bytes, end to end."""
    if leaf <= _MOST_OF_A_KERNEL and kernels.digests():
        return kernels.digest_leaves(raw, leaf)
    view = raw.data
    return b"".join(blake3(view[begin : begin + leaf]).digest() for begin in range(0, len(view), leaf))


def leaf_mark(raw: memoryview | bytes) -> bytes:
    """Return the mark of one leaf, from its bytes."""
    return blake3(raw).digest(MARK)


def model_digest(tensors: Mapping[str, str]) -> str:
    """Return the digest of a model from those of its tensors: independent of files, shards and their order."""
    return blake3(b"model/1\0" + b"".join(_lines(tensors))).hexdigest()


def _lines(tensors: Mapping[str, str]) -> Iterable[bytes]:
    for name in sorted(tensors, key=lambda name: name.encode("utf-8")):
        yield f"{name}\0{tensors[name]}\n".encode()
