"""Which files of a folder are the model: weights by index, by name or by kind; config.json; nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.checkpoints import fs
from cuvee.checkpoints.json_text import read_object
from cuvee.errors import CheckpointError, printable

__all__ = [
    "Choice",
    "Weights",
    "choose",
    "find_weights",
    "is_adapter",
    "list_names",
    "listing",
    "member",
    "read_config",
    "read_index",
]

MAX_CONFIG_BYTES = 16 << 20
MAX_INDEX_BYTES = 64 << 20
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".pt.tar")
_INDEX_SUFFIX = ".index.json"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True)
class Weights:
    """The weight files of a folder.

    Attributes:
        files: their names, sorted.
        index: the file of each tensor, None where the folder has no index.
        index_name: the file that says so.
        notes: what was passed over, a sentence each.
    """

    files: tuple[str, ...]
    index: Mapping[str, str] | None = None
    index_name: str = ""
    notes: tuple[str, ...] = ()


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return fs.listdir(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot list the folder: {error.strerror}", where=str(folder), right="check the path and its permissions"
        ) from None


def is_plain(name: str) -> bool:
    """True for a file name that leads nowhere else."""
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\\0]", name)


def member(folder: Path, name: str) -> Path:
    """Return the path of a file of `folder`, after checking that it lies there.

    A link may lead elsewhere in the folder, or from a snapshot of the hub's cache to its blobs.

    Raises:
        CheckpointError: `name` is not a plain file name, is missing, is no regular file, or is a link out.
    """
    if not is_plain(name):
        raise CheckpointError(
            f"{printable(name)[:200]!r} is not a plain file name", where=str(folder), right="fetch the folder again"
        )
    path = folder / name
    home, real = fs.real_path(folder), fs.real_path(path)
    is_blob = home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"
    if home not in real.parents and not is_blob:
        raise CheckpointError(
            f"{printable(name)!r} is a link to {str(real)!r}, outside the folder",
            where=str(folder),
            right="put the file itself into the folder, or name the file instead of the folder",
        )
    if not fs.is_file(path):
        what = "is not a regular file" if fs.exists(path) else "is missing"
        raise CheckpointError(f"{printable(name)!r} {what}", where=str(folder), right="fetch the folder again")
    return path


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the folder's config.json, None where it has none.

    Raises:
        CheckpointError: there is one that is not a JSON object, or is larger than 16 MB.
    """
    if not fs.exists(folder / "config.json"):
        return None
    return read_object(member(folder, "config.json"), limit=MAX_CONFIG_BYTES, strict=False)


def is_adapter(names: Iterable[str]) -> bool:
    """True when a folder with these names holds an adapter."""
    names = set(names)
    return ADAPTER_CONFIG in names or not names.isdisjoint(ADAPTER_WEIGHTS)


@dataclass(frozen=True)
class Choice:
    """The weight files among names: those of an index, or these.

    Attributes:
        files: their names; empty where an index says them.
        index_name: the index, empty where there is none.
    """

    files: tuple[str, ...] = ()
    index_name: str = ""


def choose(names: Iterable[str], where: str) -> Choice | None:
    """Return which of the names are the model, in transformers' order of preference; None when none are.

    `model.safetensors`; else the shards of an index; else every other `*.safetensors`; else `pytorch_model.bin`, or
    the shards of its index.

    Raises:
        CheckpointError: there are several indexes, none with the usual name.
    """
    names = sorted(names)
    files = tuple(n for n in names if n.endswith(".safetensors") and n not in ADAPTER_WEIGHTS)
    indexes = [n for n in names if n.endswith(".safetensors.index.json")]
    if "model.safetensors" in files:
        return Choice(("model.safetensors",))
    if "model.safetensors.index.json" in indexes:
        return Choice(index_name="model.safetensors.index.json")
    if len(indexes) > 1:
        raise CheckpointError(
            f"there are {len(indexes)} indexes: {listing(indexes)}",
            where=where,
            right="keep the one that is meant, or name one file instead of the folder",
        )
    if indexes:
        return Choice(index_name=indexes[0])
    if files:
        return Choice(files)
    if "pytorch_model.bin" in names:
        return Choice(("pytorch_model.bin",))
    return Choice(index_name="pytorch_model.bin.index.json") if "pytorch_model.bin.index.json" in names else None


def find_weights(folder: Path) -> Weights:
    """Return the weight files of a folder, as `choose` chooses them.

    Raises:
        CheckpointError: there are none, it cannot be told which, or one is missing.
    """
    names = list_names(folder)
    choice = choose(names, str(folder))
    if choice is None:
        raise _nothing(folder, names)
    if choice.index_name:
        index = read_index(folder, choice.index_name)
        _check_members(folder, choice.index_name, index)
        weights = Weights(tuple(sorted(set(index.values()))), index, choice.index_name)
    else:
        _check_numbered(folder, choice.files)
        weights = Weights(choice.files)
    notes = (*_unread(names, weights.files), *_parts(folder, names))
    return Weights(weights.files, weights.index, weights.index_name, notes)


def read_index(folder: Path, name: str) -> dict[str, str]:
    """Return the file of each tensor, as an index says it.

    Raises:
        CheckpointError: the index is malformed, or names what is no plain file name.
    """
    path = member(folder, name)
    index = read_object(path, limit=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError("the index has no 'weight_map'", where=str(path), right="fetch the file again")
    suffix = Path(name.removesuffix(_INDEX_SUFFIX)).suffix
    for tensor, file in index.items():
        if not isinstance(file, str) or not file.endswith(suffix) or not is_plain(file):
            raise CheckpointError(
                f"the index puts tensor {printable(tensor)[:200]!r} into {printable(str(file))[:200]!r}, "
                f"which is no plain name of a *{suffix} file",
                where=str(path),
                right="fetch the index again",
            )
    return index


def _check_members(folder: Path, index_name: str, index: Mapping[str, str]) -> None:
    for file in sorted(set(index.values())):
        try:
            member(folder, file)
        except CheckpointError as error:
            tensor = next(name for name, of in index.items() if of == file)
            raise CheckpointError(
                f"{error.found}; the index says it holds tensor {printable(tensor)[:200]!r}",
                where=str(folder / index_name),
                right=error.right,
            ) from None


def _check_numbered(folder: Path, files: Iterable[str]) -> None:
    """Refuse `model-00001-of-00003.safetensors` without its two sisters."""
    groups: dict[tuple[str, str], set[int]] = {}
    for name in files:
        if match := _NUMBERED.fullmatch(name):
            groups.setdefault((match["stem"], match["count"]), set()).add(int(match["number"]))
    for (stem, count), numbers in groups.items():
        missing = next((n for n in range(1, int(count) + 1) if n not in numbers), None)
        if missing is not None:
            raise CheckpointError(
                f"{stem}-{missing:05}-of-{count}.safetensors is missing: "
                f"the folder has {len(numbers)} of its {int(count)} shards, and no index",
                where=str(folder),
                right="fetch the missing files, and model.safetensors.index.json",
            )


def _unread(names: list[str], read: Iterable[str]) -> tuple[str, ...]:
    """Name the safetensors files that are passed over; .bin twins of them are no news."""
    left = {name for name in names if name.endswith(".safetensors") and name not in ADAPTER_WEIGHTS} - set(read)
    notes = [
        f"{printable(name)} is no part of the model by its index or name, and is not read" for name in sorted(left)
    ]
    if is_adapter(names):
        notes.append("the folder also holds an adapter, which is not applied; to apply it: FOLDER+FOLDER")
    return tuple(notes)


def _holds_weights(path: Path) -> bool:
    return fs.is_folder(path) and any(n.endswith((".safetensors", ".bin")) for n in list_names(path))


def _parts(folder: Path, names: list[str]) -> tuple[str, ...]:
    """Name the subfolders with weights of their own, such as a sentence-transformers `2_Dense`."""
    return tuple(
        f"{printable(name)}/ holds weights of its own, which are not part of this model"
        for name in names
        if re.match(r"\d+_", name) and _holds_weights(folder / name)
    )


def _nothing(folder: Path, names: list[str]) -> CheckpointError:
    where = str(folder)
    if is_adapter(names):
        return CheckpointError(
            f"the folder holds an adapter, not a model: {listing(names)}",
            where=where,
            right=f"name its base model too: {_base_of(folder)}+{folder}",
        )
    parts = [name for name in names if _holds_weights(folder / name)]
    found = f"the folder holds no model: {listing(names)}" if names else "the folder is empty"
    if parts:
        return CheckpointError(
            f"the folder holds no model itself, but these folders in it do: {listing(parts)}",
            where=where,
            right=f"name one of them, such as {folder / parts[0]}",
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return CheckpointError(found, where=where, right=f"name the file, such as {folder / pickles[0]}")
    return CheckpointError(
        found,
        where=where,
        right="a folder with model.safetensors, with *.safetensors shards and their model.safetensors.index.json, "
        "or with pytorch_model.bin",
    )


def _base_of(folder: Path) -> str:
    """Return what the adapter says its base is, for an error to suggest."""
    try:
        base = read_object(member(folder, ADAPTER_CONFIG), limit=MAX_CONFIG_BYTES, strict=False)
    except CheckpointError:
        return "BASE"
    name = base.get("base_model_name_or_path")
    return name if isinstance(name, str) and name else "BASE"


def listing(names: Iterable[str]) -> str:
    """Return the first eight names, and how many more there are."""
    names = [printable(name) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
