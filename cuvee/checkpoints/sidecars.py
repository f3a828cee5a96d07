"""The files beside the weights: every one of the base is carried over, and config.json is made true."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.checkpoints import fs
from cuvee.checkpoints.folders import PICKLES, list_names
from cuvee.checkpoints.json_text import parse_object
from cuvee.checkpoints.sources import Model, ModelFile
from cuvee.errors import CheckpointError
from cuvee.tensors.dtypes import DType

__all__ = ["Sidecar", "copy_sidecars", "digest_of", "find_sidecars", "merged_config", "sidecars_of"]

_WEIGHTS = (*PICKLES, ".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz", ".tflite")
_OURS = {"config.json", "README.md", "cuvee.json"}
_CHUNK = 1 << 20
MAX_DEPTH = 32
_MODULE = re.compile(r"\d+_[A-Za-z]+/")  # sentence-transformers: a module with weights of its own, such as 2_Dense


@dataclass(frozen=True)
class Sidecar:
    """A file beside the weights: carried over, or written anew.

    Attributes:
        name: its path relative to the model's folder.
        path: where it is; None where it is to be written.
        content: what is written then.
    """

    name: str
    path: Path | None = None
    content: bytes = b""

    @property
    def where(self) -> str:
        """What errors call it."""
        return self.name if self.path is None else str(self.path)

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.content) if self.path is None else fs.fingerprint(self.path).size

    @property
    def identity(self) -> list[str]:
        """What tells it from others in a plan: its name, and the digest of what is written."""
        return [self.name] if self.path is not None else [self.name, blake3(self.content).hexdigest()]

    def read(self, limit: int) -> bytes:
        """Return its bytes.

        Raises:
            CheckpointError: it cannot be read, or has more than `limit` bytes.
        """
        if self.path is None:
            return self.content
        try:
            return fs.read_file(self.path, limit=limit)
        except OverflowError as error:
            raise CheckpointError(f"the file has {error}", where=self.where, right="fetch the file again") from None
        except OSError as error:
            raise CheckpointError(
                f"cannot read the file: {error.strerror}", where=self.where, right="check its permissions and the disk"
            ) from None

    def read_object(self, limit: int) -> dict[str, Any]:
        """Return the JSON object that it holds.

        Raises:
            CheckpointError: it holds something else.
        """
        try:
            return parse_object(self.read(limit), strict=False)
        except CheckpointError as error:
            right = error.right or "fetch the file again, or mend it"
            raise CheckpointError(error.found, where=self.where, right=right) from None


def sidecars_of(model: Model) -> tuple[list[Sidecar], list[str]]:
    """Return the files beside a model's weights, and the names of those that are left behind.

    Raises:
        CheckpointError: its folder cannot be listed.
    """
    if model.sidecars is not None:
        return list(model.sidecars), []
    return find_sidecars(model.folder) if model.folder else ([], [])


def find_sidecars(folder: Path) -> tuple[list[Sidecar], list[str]]:
    """Return the non-weight files of a model's folder and the names of those that are left behind.

    The weights of sentence-transformers modules (`2_Dense/`) count as sidecars: they are not merged. Links that lead out
    of the folder are left behind, unless into the blobs of the hub's cache. Hidden files are skipped.

    Raises:
        CheckpointError: a folder cannot be listed, or is hidden too deep.
    """
    try:
        return _find(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the folder: {error.strerror}",
            where=str(error.filename or folder),
            right="check the disk and the permissions",
        ) from None


def _find(folder: Path) -> tuple[list[Sidecar], list[str]]:
    found: list[Sidecar] = []
    refused: list[str] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name in _OURS or (_holds_weights(path) and not _MODULE.match(name)):
            continue
        if fs.is_link(path) and not _is_inside(path, folder):
            refused.append(name)
        elif fs.is_file(path):
            found.append(Sidecar(name, path))
    return found, refused


def _holds_weights(path: Path) -> bool:
    return path.name.lower().endswith(_WEIGHTS) or path.name.endswith(".index.json")


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    if depth > MAX_DEPTH:
        raise CheckpointError(
            f"folders lie in each other more than {MAX_DEPTH} deep", where=str(folder), right="move them elsewhere"
        )
    for name in list_names(folder):
        if name.startswith("."):
            continue
        path = folder / name
        if fs.is_folder(path) and not fs.is_link(path):
            yield from _files(path, depth + 1)
        else:
            yield path


def _is_inside(path: Path, folder: Path) -> bool:
    target = fs.real_path(path)
    allowed = [fs.real_path(folder)]
    if folder.parent.name == "snapshots":
        allowed.append(fs.real_path(folder.parent.parent / "blobs"))
    return any(target.is_relative_to(place) for place in allowed)


def copy_sidecars(sidecars: list[Sidecar], target: Path) -> dict[str, str]:
    """Copy the files, bytes for bytes, or write them, into a folder that holds none of them; make them durable.

    Returns:
        The BLAKE3 digest of each, by name.

    Raises:
        CheckpointError: one cannot be read, or changes meanwhile.
        OSError: the target cannot be written.
    """
    digests: dict[str, str] = {}
    for sidecar in sidecars:
        path = target / sidecar.name
        fs.mkdir(path.parent)
        if sidecar.path is None:
            fs.write_file(path, sidecar.content)
            digests[sidecar.name] = blake3(sidecar.content).hexdigest()
        else:
            digests[sidecar.name] = _copy(sidecar.path, path)
    return digests


def _copy(source: Path, target: Path) -> str:
    """Copy a file; returns the digest of what was written."""
    reading = ModelFile.open(source)
    writing = fs.create(target)
    digest = blake3()
    try:
        for offset, piece in _pieces(reading):
            fs.pwrite(writing, piece, offset)
            digest.update(piece)
        reading.check_unchanged()
        fs.fsync(writing)
    finally:
        reading.close()
        fs.close(writing)
    return digest.hexdigest()


def _pieces(file: ModelFile) -> Iterator[tuple[int, memoryview]]:
    """Yield a file piece by piece, in one buffer, each with its offset."""
    buffer = memoryview(bytearray(min(_CHUNK, max(1, file.opened.size))))
    for offset in range(0, file.opened.size, _CHUNK):
        piece = buffer[: min(_CHUNK, file.opened.size - offset)]
        file.read_into(piece, offset, "the file")
        yield offset, piece


def digest_of(path: Path) -> str:
    """Return the BLAKE3 digest of a file.

    Raises:
        CheckpointError: it is missing, or cannot be read.
    """
    file = ModelFile.open(path)
    digest = blake3()
    try:
        for _, piece in _pieces(file):
            digest.update(piece)
    finally:
        file.close()
    return digest.hexdigest()


_SPOKEN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def merged_config(
    config: Mapping[str, Any], *, dtype: DType | None, tied: bool | None, vocab_size: int | None
) -> dict[str, Any]:
    """Return config.json for the output.

    Args:
        config: the base's.
        dtype: of most of the output's values, None to leave the entry alone.
        tied: whether the output head is tied to the embedding, None to leave the entry alone.
        vocab_size: rows of the output's embedding, None to leave the entry alone.
    """
    result = copy.deepcopy(dict(config))
    result.pop("quantization_config", None)
    parts = [result] + [part for key, part in result.items() if key.endswith("_config") and isinstance(part, dict)]
    for part in parts:
        part.pop("quantization_config", None)
        for key in ("dtype", "torch_dtype"):
            if dtype is not None and dtype.name in _SPOKEN and part.get(key) is not None:
                part[key] = _SPOKEN[dtype.name]
        if vocab_size is not None and "vocab_size" in part:
            part["vocab_size"] = vocab_size
    if dtype is not None and dtype.name in _SPOKEN and "dtype" not in result:
        result["torch_dtype"] = _SPOKEN[dtype.name]
    if tied is not None:
        result["tie_word_embeddings"] = tied
    return result


def config_json(config: Mapping[str, Any]) -> bytes:
    """Return the text of config.json."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
