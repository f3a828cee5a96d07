"""Writing a model: shards laid out beforehand, filled at fixed offsets from any thread in any order."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.checkpoints import fs
from cuvee.checkpoints.safetensors_format import FileLayout, lay_out
from cuvee.errors import RecipeError
from cuvee.tensors.dtypes import DType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["INDEX_NAME", "Shard", "ShardWriter", "index_json", "parse_size", "plan_shards"]

INDEX_NAME = "model.safetensors.index.json"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str | int, *, where: str) -> int:
    """Return the bytes that a text such as `5GB`, `500MB` or `2GiB` means.

    Raises:
        RecipeError: it is no size, or not positive.
    """
    compact = str(text).strip().upper().replace(" ", "")
    number = compact.rstrip("KMGTIB")
    try:
        size = int(float(number) * _UNITS[compact[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise RecipeError(f"{text!r} is not a size", where=where, right="a number and a unit, such as 500MB or 2GB")
    return size


@dataclass(frozen=True)
class Shard:
    """One file of the output.

    Attributes:
        file: its name.
        tensors: dtype and shape by name.
        layout: its header and the offset of each tensor.
    """

    file: str
    tensors: Mapping[str, tuple[DType, tuple[int, ...]]]
    layout: FileLayout


def plan_shards(tensors: Mapping[str, tuple[DType, tuple[int, ...]]], shard_size: int) -> list[Shard]:
    """Cut a model into files of at most `shard_size` bytes of tensors, in the order of names.

    A tensor larger than that has a file of its own. One file is called model.safetensors.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors, key=lambda name: name.encode("utf-8")):
        dtype, shape = tensors[name]
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    count = len(groups)
    files = (
        ["model.safetensors"]
        if count == 1
        else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    )
    shards = []
    for file, names in zip(files, groups, strict=True):
        held = {name: tensors[name] for name in names}
        shards.append(Shard(file, held, lay_out(held, {"format": "pt"})))
    return shards


def index_json(shards: Iterable[Shard]) -> bytes:
    """Return the text of model.safetensors.index.json."""
    weight_map = {name: shard.file for shard in shards for name in shard.tensors}
    total = sum(math.prod(shape) * dtype.itemsize for shard in shards for dtype, shape in shard.tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


class ShardWriter:
    """The open shards of one output.

    A sync that fails is final: the system may have dropped what it could not write, and say so only once. The file is
    removed then, so that no later run takes what memory still holds of it for what is on the disk.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], *, keep: bool) -> None:
        """Create the files, reserve their space and write their headers; with `keep`, reopen those that are there."""
        self._fds: dict[Path, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._lost: OSError | None = None
        try:
            for shard in shards:
                self._open(folder / shard.file, shard, keep=keep)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, shard: Shard, *, keep: bool) -> None:
        if keep and fs.is_own_file(path):
            fd = fs.reopen(path)
        else:
            if keep:
                fs.remove_tree(path)
            fd = fs.create(path)
        self._fds[path] = fd
        fs.fallocate(fd, shard.layout.size)
        fs.truncate(fd, shard.layout.size)
        fs.pwrite(fd, shard.layout.header, 0)
        for name, offset in shard.layout.offsets.items():
            self._places[name] = (fd, offset)

    def write(self, name: str, at: int, raw: NDArray[np.uint8]) -> None:
        """Write bytes of a tensor, from its byte `at` on.

        Raises:
            OSError: the disk refuses, or refused to keep what was written before.
        """
        if self._lost is not None:
            raise self._lost
        if raw.size:
            fd, offset = self._places[name]
            fs.pwrite(fd, raw.data, offset + at)

    def read(self, name: str, start: int, buffer: memoryview, itemsize: int) -> bool:
        """Read back what was written; False when it is not all there."""
        fd, offset = self._places[name]
        return fs.pread_into(fd, buffer, offset + start * itemsize) == len(buffer)

    def write_back(self) -> None:
        """Start the write-back of what was written so far, so that the last sync is short."""
        self._sync(fs.fdatasync)

    def sync(self) -> None:
        """Make all files durable.

        Raises:
            OSError: the disk refuses, now or at an earlier write-back.
        """
        self._sync(fs.fsync)

    def forget(self) -> None:
        """Have `read` give what the disk holds, not what memory does."""
        self.sync()
        for fd in self._fds.values():
            fs.forget(fd)

    def _sync(self, sync: Callable[[int], None]) -> None:
        if self._lost is not None:
            raise self._lost
        for path, fd in self._fds.items():
            try:
                sync(fd)
            except OSError as error:
                error.filename = str(path)
                self._lost = error
                with contextlib.suppress(OSError):
                    fs.unlink(path)
                raise

    def close(self) -> None:
        """Close all files."""
        for fd in self._fds.values():
            fs.close(fd)
        self._fds = {}
