"""Sources: where the values of one tensor come from, whatever it is stored as.

A source gives its shape, its dtype and any run of its elements. A stored tensor reads bytes at an offset of a file; an
adapted or a dequantised one wraps others. The engine knows nothing but this.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cuvee.checkpoints import fs
from cuvee.errors import CheckpointError
from cuvee.tensors.dtypes import DTYPES, DType, dtype_of_torch, torch_dtype

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from cuvee.checkpoints.lora_config import LoraConfig
    from cuvee.checkpoints.sidecars import Sidecar

__all__ = [
    "Cropped",
    "MemoryArray",
    "MemoryTensor",
    "Model",
    "ModelFile",
    "Scratch",
    "Slice",
    "StoredTensor",
    "TensorSource",
    "as_tensor",
    "natural_dtype",
    "read_all",
    "read_raw",
]


class Scratch:
    """Reused byte buffers of one worker: fresh memory costs more in page faults than the arithmetic on it."""

    def __init__(self) -> None:
        self._buffers: dict[object, NDArray[np.uint8]] = {}

    def take_raw(self, slot: object, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes under `slot`; they hold until the same slot is taken again."""
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[slot] = np.empty(max(size, 64), np.uint8)
        return buffer[:size]

    def take(self, slot: object, size: int) -> torch.Tensor:
        """Return the same bytes as a tensor."""
        import torch

        self.take_raw(slot, size)
        return torch.from_numpy(self._buffers[slot])[:size]


class TensorSource(Protocol):
    """One tensor of one model.

    Attributes:
        shape: of the values.
        dtype: of the values that `read` gives (a decoded source says F32).
        place: where it is stored, as (file, offset): the order in which reading is cheapest.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> DType: ...  # noqa: D102
    @property
    def place(self) -> tuple[str, int]: ...  # noqa: D102

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)`, valid until `slot` of `scratch` is taken again.

        Raises:
            CheckpointError: the file is shorter than it said, or the disk refuses.
        """
        ...


@dataclass
class ModelFile:
    """An open input file, watched: what it was when it was opened must be what it is at the end."""

    path: Path
    fd: int
    opened: fs.Fingerprint

    @classmethod
    def open(cls, path: Path) -> ModelFile:
        """Open a file for reading.

        Raises:
            CheckpointError: it is missing, cannot be read, or is a pipe or a device.
        """
        try:
            fd = fs.open_read(path)
            file = cls(path, fd, fs.fingerprint(path, fd))
            if not fs.is_file(path):
                raise OSError(errno.EINVAL, "it is no regular file")
            return file
        except OSError as error:
            raise CheckpointError(
                f"cannot open the file: {error.strerror}", where=str(path), right="check the path and its permissions"
            ) from None

    def read_into(self, buffer: memoryview, offset: int, what: str) -> None:
        """Fill `buffer` from `offset`; `what` names the thing read, for the error."""
        try:
            count = fs.pread_into(self.fd, buffer, offset)
        except OSError as error:
            raise CheckpointError(
                f"cannot read {what} at byte {offset}: {error.strerror}",
                where=str(self.path),
                right="check the disk, fetch the file again",
            ) from None
        if count != len(buffer):
            raise CheckpointError(
                f"{what} ends after {count} of {len(buffer)} bytes at byte {offset}: the file was cut short",
                where=str(self.path),
                right="fetch the file again, and leave it alone while it is merged",
            )

    def check_unchanged(self) -> None:
        """Raise when the file has changed or was replaced since it was opened."""
        try:
            now = fs.fingerprint(self.path)
        except OSError:
            now = None
        if now != self.opened or fs.fingerprint(self.path, self.fd) != self.opened:
            raise CheckpointError(
                "the file changed while it was being read",
                where=str(self.path),
                right="leave the inputs alone while a merge runs, then run it again",
            )

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            fs.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if fs is not None:  # as it is when the interpreter ends, which closes all
            self.close()


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file: contiguous, little-endian."""

    file: ModelFile
    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int

    @property
    def place(self) -> tuple[str, int]:
        """File and byte offset."""
        return str(self.file.path), self.offset

    def read_raw(self, start: int, stop: int, scratch: Scratch, slot: object) -> NDArray[np.uint8]:
        """Return the bytes of the flat elements `[start, stop)`."""
        raw = scratch.take_raw(slot, (stop - start) * self.dtype.itemsize)
        self.read_into(start, raw)
        return raw

    def read_into(self, start: int, raw: NDArray[np.uint8]) -> None:
        """Fill `raw` with the bytes of the flat elements from `start` on."""
        if raw.size:
            self.file.read_into(raw.data, self.offset + start * self.dtype.itemsize, f"tensor {self.name!r}")

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)` as stored."""
        return as_tensor(self.read_raw(start, stop, scratch, slot), self.dtype)


def read_raw(source: TensorSource, start: int, stop: int, scratch: Scratch, slot: object) -> NDArray[np.uint8]:
    """Return the bytes of the flat elements `[start, stop)` in the source's dtype, on the CPU; valid as `read`'s are.

    A source may have a method of this name, which does it without torch.
    """
    own: Any = getattr(source, "read_raw", None)
    if own is not None:
        return own(start, stop, scratch, slot)
    import torch

    return source.read(start, stop, scratch, slot).cpu().contiguous().view(torch.uint8).numpy()


def as_tensor(raw: NDArray[np.uint8], dtype: DType) -> torch.Tensor:
    """Return raw bytes as a flat tensor of `dtype` over the same memory."""
    import torch

    if not raw.size:
        return torch.empty(0, dtype=torch_dtype(dtype))
    return torch.from_numpy(raw).view(torch_dtype(dtype))


@dataclass(frozen=True)
class MemoryArray:
    """A float32 array in memory."""

    values: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.values.shape

    @property
    def dtype(self) -> DType:
        """float32."""
        return DTYPES["F32"]

    @property
    def place(self) -> tuple[str, int]:
        """Memory has no order of its own."""
        return "", 0

    def read_raw(self, start: int, stop: int, scratch: Scratch, slot: object) -> NDArray[np.uint8]:
        """Return the bytes of the flat elements `[start, stop)`."""
        return self.values.reshape(-1)[start:stop].view(np.uint8)

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)`."""
        import torch

        return torch.from_numpy(self.values.reshape(-1)[start:stop])


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor that is already in memory, on whatever device."""

    values: torch.Tensor
    rank: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> DType:
        """Its dtype."""
        return dtype_of_torch(self.values.dtype)

    @property
    def place(self) -> tuple[str, int]:
        """Memory has no order of its own."""
        return "", self.rank

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)`."""
        return self.values.detach().reshape(-1)[start:stop]


@dataclass(frozen=True)
class _Part:
    """What is read out of another source."""

    source: TensorSource

    @property
    def dtype(self) -> DType:
        """The source's."""
        return self.source.dtype

    @property
    def place(self) -> tuple[str, int]:
        """The source's."""
        return self.source.place


@dataclass(frozen=True)
class Cropped(_Part):
    """The upper left corner of a matrix: what vocabularies of different sizes have in common."""

    shape: tuple[int, ...]

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)` of the corner."""
        width, stored_width = self.shape[1], self.source.shape[1]
        if width == stored_width:
            return self.source.read(start, stop, scratch, slot)
        first, last = start // width, -(-stop // width)
        rows = self.source.read(first * stored_width, last * stored_width, scratch, slot)
        corner = rows.view(last - first, stored_width)[:, :width].reshape(-1)
        return corner[start - first * width : stop - first * width]


@dataclass(frozen=True)
class Slice(_Part):
    """One of the slices of a tensor along dimension 0."""

    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one slice."""
        return self.source.shape[1:]

    @property
    def _first(self) -> int:
        return self.number * math.prod(self.shape)

    def read_raw(self, start: int, stop: int, scratch: Scratch, slot: object) -> NDArray[np.uint8]:
        """Return the bytes of the flat elements `[start, stop)` of the slice."""
        return read_raw(self.source, self._first + start, self._first + stop, scratch, slot)

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)` of the slice."""
        return self.source.read(self._first + start, self._first + stop, scratch, slot)


@dataclass
class Model:
    """A model as a set of sources.

    Attributes:
        label: how the user named it.
        tensors: every tensor, by name, in the order of the files.
        config: config.json, None where there is none.
        folder: where its other files lie, None for a bare file or a model in memory.
        files: the open files, to be watched.
        notes: what the reader should know, a sentence each (skipped optimizer state, resolved aliases).
        commits: the commit of each hub id that was read.
        sidecars: its files beside the weights, where they are not simply those of its folder.
        origins: of a view of a model, whose layers are numbered anew: the model's own name of each tensor.
        is_delta: its tensors are a task vector, from which no base is taken.
        adapter: of an adapter without its base, what its config says.
    """

    label: str
    tensors: Mapping[str, TensorSource]
    config: dict[str, Any] | None = None
    folder: Path | None = None
    files: tuple[ModelFile, ...] = ()
    notes: tuple[str, ...] = field(default=())
    commits: Mapping[str, str] = field(default_factory=dict)
    sidecars: tuple[Sidecar, ...] | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    is_delta: bool = False
    adapter: LoraConfig | None = None

    def close(self) -> None:
        """Close its files."""
        for file in self.files:
            file.close()


def natural_dtype(source: TensorSource, config: Mapping[str, Any] | None) -> DType:
    """Return the dtype in which a tensor is meant to be stored: what lies under an adapter, the config's for fp8."""
    for inner in ("base", "source"):
        if hasattr(source, inner):
            return natural_dtype(getattr(source, inner), config)
    if not hasattr(source, "codes"):
        return source.dtype
    named = str((config or {}).get("dtype") or (config or {}).get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return next((dtype for dtype in DTYPES.values() if dtype.torch == named and dtype.is_float), DTYPES["BF16"])


def read_all(source: TensorSource, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a whole tensor in its shape, in fresh memory; for small ones."""
    numel = 1
    for size in source.shape:
        numel *= size
    values = source.read(0, numel, Scratch(), 0).reshape(source.shape)
    return values.to(dtype) if dtype else values.clone()
