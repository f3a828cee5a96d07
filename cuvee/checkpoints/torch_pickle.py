"""torch's .bin, .pt, .pth and .ckpt files: read lazily, and without running what is in them.

Such a file is a zip archive, stored uncompressed: `<stem>/data.pkl` says which tensors there are, `<stem>/data/<key>`
holds the bytes of a storage. The pickle is read by `pickle_machine`, the bytes where they lie.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.checkpoints.pickle_machine import Group, PickledTensor, run_pickle
from cuvee.checkpoints.sources import ModelFile, StoredTensor, TensorSource
from cuvee.checkpoints.strided import StridedTensor, is_contiguous
from cuvee.errors import CheckpointError, printable

__all__ = ["open_torch_pickle"]

MAX_PICKLE_BYTES = 64 << 20
MAX_DIRECTORY_BYTES = 64 << 20
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module")
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_CONVERT = (
    "where you trust the file, convert it: "
    "python -c \"import torch; torch.save(torch.load('FILE', map_location='cpu', weights_only=True), 'FILE')\""
)
_REFETCH = "fetch the file again, or get the model as safetensors"


def open_torch_pickle(path: Path) -> tuple[ModelFile, dict[str, TensorSource], tuple[str, ...]]:
    """Open a file that `torch.save` wrote; return it with its tensors, and with a sentence on each thing skipped.

    Raises:
        CheckpointError: it is damaged, compressed, of the format before torch 1.6, would run code, or has no tensors.
    """
    file = ModelFile.open(path)
    try:
        return file, *_read(file)
    except CheckpointError as error:
        file.close()
        raise CheckpointError(error.found, where=error.where or str(path), right=error.right or _REFETCH) from None


def _read(file: ModelFile) -> tuple[dict[str, TensorSource], tuple[str, ...]]:
    archive = _Archive.open(file)
    group, notes = _unwrap(run_pickle(archive.record("data.pkl", MAX_PICKLE_BYTES)))
    big_endian = archive.is_big_endian()
    tensors: dict[str, TensorSource] = {}
    skipped: list[str] = []
    for name, value in group.items():
        if isinstance(value, PickledTensor):
            tensors[name] = _source(archive, name, value, big_endian)
        else:
            skipped.append(name)
    return tensors, (*notes, *_skipped(skipped))


# ---- the archive


class _FileView(io.RawIOBase):
    """An open model file, as `zipfile` wants to see it."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        origin = (0, self._at, self._file.opened.size)[whence]
        self._at = max(0, origin + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._file.opened.size - self._at)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size} bytes")
        return super().read(size) or b""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._file.opened.size - self._at))]
        self._file.read_into(view, self._at, "the archive")
        self._at += len(view)
        return len(view)


@dataclass(frozen=True)
class _Archive:
    """A zip of stored entries.

    Attributes:
        stem: the folder in the archive that holds everything.
        entries: by name below the stem.
    """

    file: ModelFile
    stem: str
    entries: Mapping[str, zipfile.ZipInfo]

    @classmethod
    def open(cls, file: ModelFile) -> _Archive:
        head = bytearray(min(512, file.opened.size))
        file.read_into(memoryview(head), 0, "the beginning")
        _check_magic(bytes(head))
        try:
            with zipfile.ZipFile(_FileView(file)) as archive:
                infos = archive.infolist()
        except (
            zipfile.BadZipFile,
            ValueError,
            struct.error,
            NotImplementedError,
            EOFError,
            LookupError,
            OverflowError,
        ) as error:
            raise CheckpointError(f"the archive is damaged: {printable(str(error))[:200]}") from None
        return cls._checked(file, infos)

    @classmethod
    def _checked(cls, file: ModelFile, infos: list[zipfile.ZipInfo]) -> _Archive:
        stems = {info.filename.partition("/")[0] for info in infos}
        entries = {info.filename.partition("/")[2]: info for info in infos}
        if len(entries) != len(infos) or len(stems) != 1:
            raise CheckpointError("the archive is not one that torch writes: it has several roots, or a name twice")
        if "constants.pkl" in entries:
            raise CheckpointError(
                "the file is a TorchScript program, not a state dict",
                right="where you trust it: torch.save(torch.jit.load(FILE).state_dict(), OTHER)",
            )
        if "data.pkl" not in entries:
            raise CheckpointError("the archive has no data.pkl: torch did not write it")
        for name, info in entries.items():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise CheckpointError(
                    f"entry {printable(name)[:200]!r} is compressed, which torch never does", right=_CONVERT
                )
        return cls(file, stems.pop(), entries)

    def locate(self, name: str) -> tuple[int, int]:
        """Return the absolute (offset, size) of an entry's bytes."""
        info = self.entries.get(name)
        if info is None:
            raise CheckpointError(f"the archive has no entry {printable(name)[:200]!r}")
        local = bytearray(30)
        if 0 <= info.header_offset <= self.file.opened.size - len(local):
            self.file.read_into(memoryview(local), info.header_offset, "the archive")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        offset = info.header_offset + len(local) + name_length + extra_length
        if local[:4] != b"PK\x03\x04" or offset + info.file_size > self.file.opened.size:
            raise CheckpointError(f"entry {printable(name)[:200]!r} of the archive lies outside the file")
        return offset, info.file_size

    def record(self, name: str, limit: int) -> bytes:
        """Return the bytes of a small entry."""
        offset, size = self.locate(name)
        if size > limit:
            raise CheckpointError(f"entry {name!r} has {size} bytes; at most {limit} are allowed")
        data = bytearray(size)
        self.file.read_into(memoryview(data), offset, f"entry {name!r}")
        return bytes(data)

    def is_big_endian(self) -> bool:
        """What the archive says of its bytes; little-endian where it says nothing."""
        order = self.record("byteorder", 16) if "byteorder" in self.entries else b"little"
        if order not in (b"little", b"big"):
            raise CheckpointError(f"the archive's byte order is {order!r}, neither little nor big")
        return order == b"big"


def _check_magic(head: bytes) -> None:
    if head.startswith(b"PK\x03\x04"):
        return
    if head.startswith(_LEGACY_MAGIC):
        raise CheckpointError(
            "the file has the format of torch before 1.6, which cannot be read lazily", right=_CONVERT
        )
    if head[257:262] == b"ustar":
        raise CheckpointError("the file is a tar archive, of torch before 0.1.10", right=_CONVERT)
    if head.startswith(b"\x80"):
        raise CheckpointError("the file is a plain pickle, which torch.save does not write", right=_REFETCH)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("the file is a git-lfs pointer, not the file itself", right="git lfs pull")
    raise CheckpointError("the file is no archive that torch.save writes", right=_REFETCH)


# ---- from records to sources


def _unwrap(value: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the state dict in what was pickled, and notes on what lay beside it."""
    notes: list[str] = []
    for _ in range(4):
        if not isinstance(value, Group):
            raise CheckpointError(
                f"the file holds {_kind(value)}, not a dict of tensors",
                right="save a state dict: torch.save(model.state_dict(), FILE)",
            )
        inside = [name for name in _WRAPPERS if isinstance(value.items.get(name), Group)]
        filled = [name for name in inside if _has_tensors(value.items[name])]
        if not filled and _has_tensors(value):
            return value.items, tuple(notes)
        if len(filled) > 1:
            raise CheckpointError(
                f"the file holds {len(filled)} state dicts: {', '.join(filled)}",
                right="save the one that is meant: torch.save(torch.load(FILE)['NAME'], OTHER)",
            )
        chosen = (filled or inside)[:1]
        if not chosen:
            break
        notes.append(f"the weights are those under {chosen[0]!r}")
        notes.extend(_skipped(name for name in value.items if name != chosen[0]))
        value = value.items[chosen[0]]
    names = ", ".join(printable(name)[:60] for name in list(value.items)[:8])
    raise CheckpointError(
        f"the file holds no tensors by name, only: {names or 'nothing'}",
        right="save a state dict: torch.save(model.state_dict(), FILE)",
    )


def _has_tensors(group: Group) -> bool:
    return any(isinstance(value, PickledTensor) for value in group.items.values())


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, PickledTensor) else f"a {type(value).__name__.lower()}"


def _skipped(names: Iterable[str]) -> tuple[str, ...]:
    """Say once which entries are no tensors."""
    listed = [printable(name)[:60] for name in names]
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    return (f"skipped what is no part of the weights: {', '.join(listed[:12])}{more}",) if listed else ()


def _source(archive: _Archive, name: str, tensor: PickledTensor, big_endian: bool) -> TensorSource:
    where = f"{archive.file.path}, tensor {printable(name)[:200]!r}"
    try:
        return _checked_source(archive, name, tensor, big_endian)
    except CheckpointError as error:
        raise CheckpointError(error.found, where=where, right=error.right) from None


def _checked_source(archive: _Archive, name: str, tensor: PickledTensor, big_endian: bool) -> TensorSource:
    storage, dtype = tensor.storage, tensor.dtype
    if tensor.kind or storage is None or dtype is None or not dtype.itemsize:
        kind = tensor.kind or "of a dtype that safetensors does not have"
        raise CheckpointError(f"the tensor is {kind}", right="save it as an ordinary dense tensor")
    if _is_half_surrogate(name):
        raise CheckpointError("the name is not valid Unicode")
    start, size = archive.locate(f"data/{storage.key}")
    numel = math.prod(tensor.shape)
    reach = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True)) if numel else 0
    if (tensor.offset + reach) * dtype.itemsize > size:
        raise CheckpointError(
            f"the tensor reaches to byte {(tensor.offset + reach) * dtype.itemsize} of its storage, which has {size}"
        )
    if numel * dtype.itemsize > archive.file.opened.size:
        raise CheckpointError(
            f"the tensor says it has {numel * dtype.itemsize} bytes, more than the whole file: it repeats itself",
            right="save it without repetition: tensor.contiguous()",
        )
    offset = start + tensor.offset * dtype.itemsize
    swapped = big_endian and dtype.itemsize > 1
    if is_contiguous(tensor.shape, tensor.stride) and not swapped:
        return StoredTensor(archive.file, name, dtype, tensor.shape, offset)
    return StridedTensor(archive.file, name, dtype, tensor.shape, tensor.stride, offset, swapped)


def _is_half_surrogate(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
