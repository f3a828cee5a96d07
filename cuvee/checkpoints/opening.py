"""From a reference to a model: a path, `model+adapter`, or a hub id."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cuvee.checkpoints import fs
from cuvee.checkpoints.adapter_files import open_adapter
from cuvee.checkpoints.adapters import apply_adapter
from cuvee.checkpoints.folders import ADAPTER_WEIGHTS, PICKLES, Weights, find_weights, list_names, member, read_config
from cuvee.checkpoints.fp8 import decode_fp8
from cuvee.checkpoints.hub import Snapshot, fetch, parse_id
from cuvee.checkpoints.quantized import refuse_quantized, without_quantization
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.checkpoints.sources import Model, ModelFile, TensorSource
from cuvee.checkpoints.torch_pickle import open_torch_pickle
from cuvee.errors import CheckpointError, CuveeError, printable

__all__ = ["open_adapter_alone", "open_model"]

_FORMS = "a folder, a .safetensors or .bin file, model+adapter, or a hub id: org/name or org/name@revision"


def open_model(
    reference: str | os.PathLike[str],
    *,
    revision: str | None = None,
    offline: bool = False,
    token: str | None = None,
) -> Model:
    """Open a model, reading headers only.

    What exists locally is never looked up on the hub. `model+adapter` applies a PEFT adapter to a model; both may be
    paths or hub ids, and a further `+adapter` applies another. A path object is always a path.

    Args:
        reference: a path, `model+adapter`, `org/name`, or `org/name@revision`.
        revision: of a hub id: branch, tag or commit. With an adapter, it is the model's.
        offline: take models of the hub from the local cache only.
        token: for private models of the hub.

    Raises:
        CheckpointError: there is no such model, or its files are damaged, hostile, or of a format that is not read.
        IncompatibleModels: the adapter belongs to another model.
    """
    text = os.fsdecode(os.fspath(reference))
    opener = _Opener(text, offline, token, may_be_remote=isinstance(reference, str))
    try:
        return opener.open(text, revision)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the model: {error.strerror or error}",
            where=str(error.filename or text),
            right="check the disk and the permissions",
        ) from None


def open_adapter_alone(reference: str | os.PathLike[str], *, offline: bool = False, token: str | None = None) -> Model:
    """Open an adapter without its base, under the names in its file; `adapter` says what adapter_config.json does.

    Args:
        reference: a folder, `org/name`, or `org/name@revision`.
        offline, token: as for `open_model`.

    Raises:
        CheckpointError: there is no such adapter, or its files are damaged or of a kind that is not read.
    """
    text = os.fsdecode(os.fspath(reference))
    path, is_hub = _path(text), isinstance(reference, str) and parse_id(text) is not None
    snapshot: Snapshot | None = None
    if is_hub and not (path is not None and fs.exists(path)):
        model_id, revision = parse_id(text) or ("", None)
        snapshot = fetch(model_id, revision, adapter=True, offline=offline, token=token)
    elif path is None or not fs.exists(path):
        raise _not_found(text)
    folder = path if snapshot is None else snapshot.folder
    assert folder is not None
    found = open_adapter(folder)
    model = Model(text, found.stored, None, folder, (found.file,), found.notes, adapter=found.config)
    return model if snapshot is None else _from_hub(model, model_id, snapshot)


@dataclass(frozen=True)
class _Opener:
    """How references are opened: once for a model, again for each part of `model+adapter`."""

    label: str
    offline: bool
    token: str | None
    may_be_remote: bool

    def open(self, text: str, revision: str | None) -> Model:
        """Open what `text` refers to."""
        path = _path(text)
        if path is not None and fs.exists(path):
            return _open_local(path, text)
        if self.may_be_remote:
            if split := self._split(text):
                return self._open_adapted(*split, revision)
            if parse_id(text):
                snapshot, model_id = self._fetch(text, revision, adapter=False)
                return _from_hub(_open_folder(snapshot.folder, text), model_id, snapshot)
        raise _not_found(text)

    def _split(self, text: str) -> tuple[str, str] | None:
        """Return model and adapter where `text` is `model+adapter`; a `+` may also be part of a path."""
        places = [place for place, c in enumerate(text) if c == "+" and 0 < place < len(text) - 1]
        halves = [(text[:place], text[place + 1 :]) for place in reversed(places)]
        for model, adapter in halves:
            if self._is_something(adapter) and (self._is_something(model) or self._split(model)):
                return model, adapter
        # nothing fits: the last + was meant, and opening the half that is wrong will say so
        return halves[0] if halves else None

    def _is_something(self, text: str) -> bool:
        path = _path(text)
        return (path is not None and fs.exists(path)) or parse_id(text) is not None

    def _open_adapted(self, model: str, adapter: str, revision: str | None) -> Model:
        base = self.open(model, revision)
        label = f"{base.label}+{adapter}"
        try:
            path = _path(adapter)
            if (path is not None and fs.exists(path)) or not parse_id(adapter):
                return apply_adapter(base, path or Path(adapter), label)
            snapshot, adapter_id = self._fetch(adapter, None, adapter=True)
            return _from_hub(apply_adapter(base, snapshot.folder, label), adapter_id, snapshot)
        except CuveeError:
            base.close()
            raise

    def _fetch(self, text: str, revision: str | None, *, adapter: bool) -> tuple[Snapshot, str]:
        parsed = parse_id(text)
        assert parsed is not None
        model_id, said = parsed
        if said and revision and said != revision:
            raise CheckpointError(
                f"two revisions are named: {said!r} in {text!r}, and {revision!r}", right="name one of them"
            )
        return fetch(model_id, said or revision, adapter=adapter, offline=self.offline, token=self.token), model_id


def _path(text: str) -> Path | None:
    """Return the path that `text` would be, None where it can be none."""
    return Path(os.path.expanduser(text)) if text and "\0" not in text else None


def _from_hub(model: Model, model_id: str, snapshot: Snapshot) -> Model:
    note = f"{model_id} is read at commit {snapshot.commit}"
    commits = {**model.commits, model_id: snapshot.commit}
    return replace(model, notes=(*model.notes, *snapshot.notes, note), commits=commits)


def _not_found(text: str) -> CheckpointError:
    path = _path(text)
    near: list[str] = []
    if path is not None and fs.is_folder(path.parent):
        near = difflib.get_close_matches(path.name, list_names(path.parent), n=1)
    right = f"did you mean {str(path.parent / near[0])!r}?" if path is not None and near else _FORMS
    return CheckpointError(f"there is no file or folder {printable(text)[:300]!r}", right=right)


# ---- what lies on this disk


def _open_local(path: Path, label: str) -> Model:
    if fs.is_folder(path):
        return _open_folder(path, label)
    if not fs.is_file(path):
        raise CheckpointError("this is neither a file nor a folder", where=str(path), right=_FORMS)
    return _open_file(path, label)


def _open_folder(folder: Path, label: str) -> Model:
    weights = find_weights(folder)
    config = read_config(folder)
    open_one = open_torch_pickle if weights.files[0].endswith(".bin") else _open_safetensors
    tensors: dict[str, TensorSource] = {}
    origin: dict[str, str] = {}
    files: list[ModelFile] = []
    notes: list[str] = list(weights.notes)
    try:
        for name in weights.files:
            file, stored, said = open_one(member(folder, name))
            files.append(file)
            _check_names(folder, name, stored, weights, origin)
            tensors.update(stored)
            origin.update(dict.fromkeys(stored, name))
            notes.extend(said)
        return _decoded(Model(label, tensors, config, folder, tuple(files), tuple(notes)))
    except CuveeError:
        for file in files:
            file.close()
        raise


def _open_file(path: Path, label: str) -> Model:
    config = read_config(path.parent) if path.name == "model.safetensors" else None
    file, stored, notes = _opener_of(path)(path)
    try:
        return _decoded(Model(label, stored, config, None, (file,), notes))
    except CuveeError:
        file.close()
        raise


_Opened = tuple[ModelFile, Mapping[str, TensorSource], tuple[str, ...]]


def _open_safetensors(path: Path) -> _Opened:
    file, stored, _ = open_safetensors(path)
    return file, stored, ()


def _opener_of(path: Path) -> Callable[[Path], _Opened]:
    """Return what opens a file, by its name."""
    if path.name in ADAPTER_WEIGHTS:
        raise CheckpointError(
            "the file is an adapter's, not a model's", where=str(path), right=f"name its base too: BASE+{path.parent}"
        )
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _open_safetensors
    if path.name.lower().endswith(PICKLES):
        return open_torch_pickle
    if suffix == ".gguf":
        raise CheckpointError("GGUF files are not read", where=str(path), right="the model that it was made from")
    if path.name.endswith(".index.json"):
        raise CheckpointError("the file is an index", where=str(path), right=f"name its folder: {path.parent}")
    kind = f"of the kind {suffix!r}" if suffix else "without a suffix"
    raise CheckpointError(f"files {kind} are not read", where=str(path), right=_FORMS)


def _check_names(
    folder: Path, file: str, stored: Mapping[str, Any], weights: Weights, origin: Mapping[str, str]
) -> None:
    """Hold a shard against the index, or against the shards before it."""
    where = str(folder / file)
    if weights.index is None:
        twice = next((name for name in stored if name in origin), None)
        if twice is not None:
            raise CheckpointError(
                f"tensor {printable(twice)[:200]!r} is also in {printable(origin[twice])}",
                where=where,
                right="keep the files of one model in the folder, or name one file instead of the folder",
            )
        return
    right = "fetch the index and the file again, from one revision"
    for name in stored:
        of = weights.index.get(name)
        if of != file:
            says = f"puts it into {printable(of)}" if of else "does not name it"
            raise CheckpointError(
                f"the file holds tensor {printable(name)[:200]!r}, but {weights.index_name} {says}",
                where=where,
                right=right,
            )
    missing = next((name for name, of in weights.index.items() if of == file and name not in stored), None)
    if missing is not None:
        raise CheckpointError(
            f"{weights.index_name} puts tensor {printable(missing)[:200]!r} into this file, which does not hold it",
            where=where,
            right=right,
        )


def _decoded(model: Model) -> Model:
    """Return the model with quantized weights as numbers, or refuse it."""
    if not model.tensors:
        raise CheckpointError("the model holds no tensors", where=model.label, right="fetch its files again")
    tensors, notes = decode_fp8(model.tensors, model.config)
    refuse_quantized(tensors, model.config)
    config, dropped = without_quantization(model.config)
    return replace(model, tensors=tensors, config=config, notes=(*model.notes, *notes, *dropped))
