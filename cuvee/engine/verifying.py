"""Verifying: every tensor of a published model against its manifest."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.checkpoints import fs
from cuvee.checkpoints.folders import MAX_INDEX_BYTES, is_plain, list_names, member
from cuvee.checkpoints.json_text import read_object
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.checkpoints.sidecars import digest_of
from cuvee.checkpoints.sources import ModelFile, StoredTensor
from cuvee.checkpoints.writing import INDEX_NAME
from cuvee.engine.budget import default_threads
from cuvee.engine.manifest import MANIFEST_NAME, is_sealed, read_manifest
from cuvee.engine.rereading import differing, read_all, read_some
from cuvee.errors import CheckpointError, printable
from cuvee.tensors.digests import model_digest
from cuvee.tensors.dtypes import DTYPES, DType
from cuvee.tensors.layout import Layout

__all__ = ["Verified", "verify"]

_AGAIN = "merge again, or fetch the file again"


@dataclass(frozen=True)
class Verified:
    """What a verification has found.

    Attributes:
        tensors: number of tensors whose bytes were read.
        bytes: of them.
        digest: of the model, from what was read; empty where something is wrong.
        problems: all that is wrong, in the order of files and names; none when the model is what was published.
    """

    tensors: int
    bytes: int
    digest: str
    problems: tuple[CheckpointError, ...]


@dataclass(frozen=True)
class _Entry:
    """What the manifest says of one tensor."""

    file: str
    dtype: DType
    shape: tuple[int, ...]
    digest: str
    marks: bytes = b""


@dataclass
class _Found:
    """What the files hold, and what is wrong with them."""

    files: list[ModelFile] = field(default_factory=list)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    problems: list[CheckpointError] = field(default_factory=list)


def verify(
    folder: Path,
    *,
    sample: float | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Compare a published model with its manifest: names, shapes, dtypes, the digest of every tensor and other file.

    Args:
        sample: read only this share of the leaves, from 0 to 1, others each time. None: all.
        threads: None: one for each core.
        progress: called with the bytes read and the bytes of all tensors.

    Raises:
        CheckpointError: there is no manifest, it is damaged, or a file cannot be read.
    """
    manifest = read_manifest(folder)
    entries, recorded = _entries(manifest, folder)
    found = _Found()
    digests = {name: entry.digest for name, entry in entries.items()}
    if not is_sealed(manifest) or model_digest(digests) != recorded:
        found.problems.append(
            CheckpointError(
                "the manifest does not have the digest that it was written with: it was changed",
                where=str(folder / MANIFEST_NAME),
                right=_AGAIN,
            )
        )
    try:
        for file in sorted({entry.file for entry in entries.values()}):
            _open(folder, file, entries, found)
        _check_strangers(folder, entries, found)
        _check_files(folder, manifest, found)
        tell = progress or (lambda done, total: None)
        if sample is None:
            read = read_all(found.tensors, tell, threads or default_threads())
        else:
            read = read_some(found.tensors, {name: entry.marks for name, entry in entries.items()}, sample, tell)
        for one in found.files:
            one.check_unchanged()
    finally:
        for one in found.files:
            one.close()
    for name, digest in read.digests.items():
        if digest != entries[name].digest:
            leaves = differing(read.marks.get(name, b""), entries[name].marks)
            found.problems.append(_altered(folder, name, entries[name], leaves))
    for name, leaves in read.altered.items():
        found.problems.append(_altered(folder, name, entries[name], leaves))
    problems = sorted(found.problems, key=lambda problem: (problem.where, problem.found))
    digest = "" if problems or sample is not None else model_digest(read.digests)
    return Verified(read.tensors, read.done, digest, tuple(problems))


def _entries(manifest: Mapping[str, Any], folder: Path) -> tuple[dict[str, _Entry], str]:
    """Return what the manifest says of the output.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    try:
        output = manifest["output"]
        entries = {
            str(name): _Entry(
                str(e["file"]),
                DTYPES[e["dtype"]],
                tuple(map(int, e["shape"])),
                str(e["blake3"]),
                b64decode(e.get("leaves", "")),
            )
            for name, e in output["tensors"].items()
        }
        return entries, str(output["digest"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            "the manifest does not say which tensors the model has", where=str(folder / MANIFEST_NAME), right=_AGAIN
        ) from None


def _open(folder: Path, name: str, entries: Mapping[str, _Entry], found: _Found) -> None:
    """Open one file and hold what its header says against the manifest."""
    try:
        file, stored, _ = open_safetensors(member(folder, name))
    except CheckpointError as error:
        where = error.where if name in error.where else str(folder / name)
        found.problems.append(CheckpointError(error.found, where=where, right=_AGAIN))
        return
    found.files.append(file)
    where = str(folder / name)
    for tensor in stored.values():
        entry = entries.get(tensor.name)
        if entry is None or entry.file != name:
            said = (
                "is not in the manifest" if entry is None else f"belongs into {printable(entry.file)} by the manifest"
            )
            found.problems.append(
                CheckpointError(f"tensor {printable(tensor.name)!r} {said}", where=where, right=_AGAIN)
            )
    for wanted, entry in entries.items():
        if entry.file == name:
            _hold(wanted, entry, stored.get(wanted), where, found)


def _hold(name: str, entry: _Entry, stored: StoredTensor | None, where: str, found: _Found) -> None:
    shown = printable(name)
    if stored is None:
        found.problems.append(CheckpointError(f"tensor {shown!r} is missing", where=where, right=_AGAIN))
    elif (stored.dtype, stored.shape) != (entry.dtype, entry.shape):
        found.problems.append(
            CheckpointError(
                f"tensor {shown!r} is {stored.dtype.name} {list(stored.shape)} in the file "
                f"and {entry.dtype.name} {list(entry.shape)} in the manifest",
                where=where,
                right=_AGAIN,
            )
        )
    else:
        found.tensors[name] = stored


def _check_strangers(folder: Path, entries: Mapping[str, _Entry], found: _Found) -> None:
    """Name weights that the manifest does not know, and an index that says something else."""
    files = {entry.file for entry in entries.values()}
    for name in list_names(folder):
        if name.endswith(".safetensors") and name not in files:
            found.problems.append(
                CheckpointError(
                    "the manifest does not name this file", where=str(folder / name), right="move it out of the folder"
                )
            )
    if not fs.exists(folder / INDEX_NAME):
        if len(files) > 1:
            found.problems.append(CheckpointError("the index is missing", where=str(folder / INDEX_NAME), right=_AGAIN))
        return
    where = str(folder / INDEX_NAME)
    try:
        index = read_object(member(folder, INDEX_NAME), limit=MAX_INDEX_BYTES).get("weight_map")
    except CheckpointError as error:
        found.problems.append(CheckpointError(error.found, where=where, right=_AGAIN))
        return
    if index != {name: entry.file for name, entry in entries.items()}:
        found.problems.append(
            CheckpointError("the index names other tensors or files than the manifest", where=where, right=_AGAIN)
        )


def _check_files(folder: Path, manifest: Mapping[str, Any], found: _Found) -> None:
    """Name the other files that are not what was published: config.json, the tokenizer's, code."""
    files = manifest["output"].get("files", {})
    for name, digest in files.items() if isinstance(files, dict) else ():
        *folders, last = name.split("/")
        try:
            for part in folders:
                if not is_plain(part) or fs.is_link(folder / part):
                    raise CheckpointError(
                        f"{printable(name)!r} leads out of the folder", where=str(folder), right=_AGAIN
                    )
            altered = digest_of(member(folder.joinpath(*folders), last)) != digest
        except CheckpointError as error:
            found.problems.append(CheckpointError(error.found, where=str(folder / name), right=_AGAIN))
            continue
        if altered:
            found.problems.append(
                CheckpointError("the file is not what was published", where=str(folder / name), right=_AGAIN)
            )


def _altered(folder: Path, name: str, entry: _Entry, leaves: Sequence[int]) -> CheckpointError:
    layout = Layout(entry.shape)
    place = ""
    if leaves:
        first = leaves[0]
        last = min(layout.numel, (first + 1) * layout.leaf) - 1
        more = f", and {len(leaves) - 1} more of its leaves" if len(leaves) > 1 else ""
        place = f" in leaf {first + 1} of {layout.leaves}: elements {first * layout.leaf} to {last}{more}"
    return CheckpointError(
        f"tensor {printable(name)!r} does not have the values that were published{place}",
        where=str(folder / entry.file),
        right=_AGAIN,
    )
