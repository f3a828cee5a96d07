"""The safetensors file format: a strict reader of headers and a deterministic maker of them.

File = u64 little-endian N, N bytes of JSON, data. The checks are those of the reference reader (safetensors 0.8), and
one more: a name written twice is refused.
"""

from __future__ import annotations

import gc
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.checkpoints.sources import ModelFile, StoredTensor
from cuvee.errors import CheckpointError, printable
from cuvee.tensors.dtypes import DTYPES, DType

__all__ = ["FileLayout", "lay_out", "open_safetensors"]

MAX_HEADER_BYTES = 100_000_000
_ALIGNMENT = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_REFETCH = "fetch the file again"


def open_safetensors(path: Path) -> tuple[ModelFile, dict[str, StoredTensor], dict[str, str]]:
    """Open a file and return it with its tensors and its metadata.

    Raises:
        CheckpointError: the header is malformed, hostile, or does not fit the file.
    """
    file = ModelFile.open(path)
    try:
        return file, *_read_header(file)
    except CheckpointError as error:
        file.close()
        raise CheckpointError(error.found, where=error.where or str(path), right=error.right or _REFETCH) from None


def _read_header(file: ModelFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    size = file.opened.size
    if size < 8:
        raise CheckpointError(f"the file has {size} bytes; a safetensors file has at least 8")
    length_bytes = bytearray(8)
    file.read_into(memoryview(length_bytes), 0, "the header's length")
    (length,) = struct.unpack("<Q", length_bytes)
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"the header says it has {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if 8 + length > size:
        raise CheckpointError(f"the header says it has {length} bytes, but the file has {size}")
    with _no_collection():
        header = _parse_json(_header_text(file, length))
        metadata = _metadata(header.pop("__metadata__", None))
        # entry by entry, so that a header of a million tensors is not held twice
        tensors = {name: _entry(file, name, header.pop(name), 8 + length) for name in list(header)}
    _check_tiling(tensors.values(), data_start=8 + length, size=size)
    return tensors, metadata


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let Python not look for cycles among millions of new values: there are none, and it takes longer than parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _header_text(file: ModelFile, length: int) -> str:
    text = bytearray(length)
    file.read_into(memoryview(text), 8, "the header")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the header is not UTF-8: {error.reason} at byte {error.start}") from None


def _parse_json(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise CheckpointError(f"the header names {printable(twice)!r} twice")
        return result

    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        if text.startswith("\ufeff"):
            raise ValueError("byte order mark")
        header = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
        # "\\ud800" parses, in a name or in the metadata, but stands for no text
        if _SURROGATE.search(text):
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError("the header holds half a surrogate pair, which is not Unicode") from None
    except RecursionError:
        raise CheckpointError("the header is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise CheckpointError(f"the header is not JSON: {printable(str(error))[:200]}") from None
    if not isinstance(header, dict):
        raise CheckpointError("the header is not a JSON object")
    return header


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError("the header's __metadata__ is not a map from text to text")
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _count(shape: list[int]) -> int:
    """Return the number of elements, or of those so far where 64 bits overflow: a later 0 must not hide it."""
    numel = 1
    for size in shape:
        numel *= size
        if numel >= 1 << 64:
            break
    return numel


def _entry(file: ModelFile, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        return _checked_entry(file, name, entry, data_start)
    except CheckpointError as error:
        where = f"{file.path}, tensor {printable(name)!r}"
        raise CheckpointError(error.found, where=where, right=_REFETCH) from None


def _checked_entry(file: ModelFile, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype = DTYPES[entry["dtype"]]
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"the header's entry is malformed: {printable(str(entry))[:200]}") from None
    if not isinstance(shape, list) or not all(map(_is_size, (*shape, begin, end))):
        raise CheckpointError("shape and data_offsets must be whole numbers")
    numel = _count(shape)
    bits = numel * dtype.bits
    if numel >= 1 << 64 or bits % 8 or bits >= 1 << 67 or end - begin != bits // 8:
        raise CheckpointError(
            f"{dtype.name} {str(shape)[:100]} needs {bits / 8:g} bytes, but the header gives it {end - begin}"
        )
    return StoredTensor(file, name, dtype, tuple(shape), data_start + begin)


def _stored_bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.bits // 8


def _check_tiling(tensors: Iterable[StoredTensor], *, data_start: int, size: int) -> None:
    """Refuse holes, overlaps and data beyond the end: the tensors must tile the data exactly."""
    expected = data_start
    for offset, length, name in sorted((t.offset, _stored_bytes(t), t.name) for t in tensors):
        if offset != expected:
            fault = "overlaps the one before it" if offset < expected else "leaves a hole before it"
            raise CheckpointError(f"tensor {printable(name)!r} {fault}: it begins at byte {offset}, not {expected}")
        expected += length
    if expected != size:
        what = "is cut short" if size < expected else "has bytes that belong to no tensor"
        raise CheckpointError(f"the file {what}: it has {size} bytes, its tensors end at byte {expected}")


@dataclass(frozen=True)
class FileLayout:
    """A safetensors file before its first byte of data is known.

    Attributes:
        header: its first bytes, padded so that the data begins at a multiple of 64.
        offsets: the absolute offset of each tensor, by name.
        size: of the whole file, in bytes.
    """

    header: bytes
    offsets: Mapping[str, int]
    size: int


def lay_out(tensors: Mapping[str, tuple[DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> FileLayout:
    """Return the layout of a file: metadata first with sorted keys, tensors by (dtype rank, UTF-8 name)."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    relative: dict[str, int] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (tensors[name][0].rank, name.encode("utf-8"))):
        dtype, shape = tensors[name]
        relative[name] = end
        end += math.prod(shape) * dtype.bits // 8
        entries[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [relative[name], end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    start = 8 + len(text)
    return FileLayout(
        struct.pack("<Q", len(text)) + text, {name: start + o for name, o in relative.items()}, start + end
    )
