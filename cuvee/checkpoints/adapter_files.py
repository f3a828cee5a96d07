"""The files of a PEFT adapter, and what each key in them means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cuvee.checkpoints import fs
from cuvee.checkpoints.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, list_names, listing, member
from cuvee.checkpoints.lora_config import LoraConfig, read_lora_config
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.checkpoints.sources import ModelFile, TensorSource
from cuvee.checkpoints.torch_pickle import open_torch_pickle
from cuvee.errors import CheckpointError, printable

__all__ = ["Adapter", "open_adapter"]

_UPDATE = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<leaf>weight|bias))?",
    re.DOTALL,
)
_ROWS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.(?P<adapter>[^.]+))?", re.DOTALL)
_SAVED = re.compile(r"(?P<module>.+?)\.modules_to_save(?:\.(?P<adapter>[^.]+(?=\.)))?(?P<rest>\..+)", re.DOTALL)
_OTHER_KINDS = re.compile(r".*\.(?:lora|lora_[^.]*|hada_[^.]*|lokr_[^.]*|ia3_l|vera_[^.]*|alpha)(?:\..*)?", re.DOTALL)
_PREFIX = "base_model.model."


@dataclass
class Adapter:
    """An adapter's tensors, sorted by what they do.

    Attributes:
        config: adapter_config.json.
        file: that holds the tensors.
        updates: the parts of the low-rank update of each module: `lora_A`, `lora_B`, `lora_magnitude_vector` …
        tokens: rows that replace those of an embedding, by module.
        bases: what lies below an update and was changed too (a resized embedding, a trained bias), by tensor.
        tensors: whole replacements, by tensor.
        notes: on what was skipped.
        stored: all of them, by their names in the file.
    """

    config: LoraConfig
    file: ModelFile
    updates: dict[str, dict[str, TensorSource]] = field(default_factory=dict)
    tokens: dict[str, TensorSource] = field(default_factory=dict)
    bases: dict[str, TensorSource] = field(default_factory=dict)
    tensors: dict[str, TensorSource] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stored: Mapping[str, TensorSource] = field(default_factory=dict)


def open_adapter(folder: Path, values: Mapping[str, TensorSource] | None = None) -> Adapter:
    """Open the adapter in a folder.

    Args:
        folder: where it is.
        values: its tensors by their names in the file; None: those in the file.

    Raises:
        CheckpointError: there is none, its files are damaged, or it is of a kind that is not read.
    """
    if not fs.is_folder(folder):
        raise CheckpointError(
            "an adapter is a folder, and there is none of this name", where=str(folder), right="check the path"
        )
    names = list_names(folder)
    if ADAPTER_CONFIG not in names:
        raise CheckpointError(
            f"the folder holds no adapter: {listing(names) or 'it is empty'}",
            where=str(folder),
            right=f"a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS[0]}",
        )
    config = read_lora_config(member(folder, ADAPTER_CONFIG))
    file, found, notes = _open_weights(folder, names)
    stored = found if values is None else values
    adapter = Adapter(config, file, notes=notes, stored=stored)
    try:
        _sort(adapter, stored)
    except CheckpointError as error:
        file.close()
        raise CheckpointError(error.found, where=error.where or str(file.path), right=error.right) from None
    return adapter


def _open_weights(folder: Path, names: list[str]) -> tuple[ModelFile, Mapping[str, TensorSource], tuple[str, ...]]:
    if ADAPTER_WEIGHTS[0] in names:
        file, stored, _ = open_safetensors(member(folder, ADAPTER_WEIGHTS[0]))
        return file, stored, ()
    if ADAPTER_WEIGHTS[1] in names:
        return open_torch_pickle(member(folder, ADAPTER_WEIGHTS[1]))
    raise CheckpointError(
        f"the adapter has no weights: {listing(names)}", where=str(folder), right=f"fetch {ADAPTER_WEIGHTS[0]} as well"
    )


def _sort(adapter: Adapter, stored: Mapping[str, TensorSource]) -> None:
    """Put each tensor where its key says."""
    labels: set[str] = set()
    saved: dict[str, TensorSource] = {}
    for key, tensor in stored.items():
        if not tensor.dtype.is_float:
            raise CheckpointError(
                f"the adapter's tensor {printable(key)[:200]!r} is {tensor.dtype.name}: its numbers cannot be added",
                right="an adapter in float32, float16 or bfloat16",
            )
        target, name, label = _meaning(adapter, saved, key)
        if label:
            labels.add(label)
        if target is None:
            continue
        if name in target:
            raise CheckpointError(
                f"two keys of the adapter mean the same, one of them {printable(key)[:200]!r}",
                right="save the adapter again with PEFT",
            )
        target[name] = tensor
    # PEFT may save such a tensor under its plain name as well
    adapter.tensors.update(saved)
    if len(labels) > 1:
        raise CheckpointError(
            f"the file holds {len(labels)} adapters: {listing(sorted(labels))}",
            right="save each into a folder of its own: model.save_pretrained(OTHER, selected_adapters=[NAME])",
        )
    if not (adapter.updates or adapter.tokens or adapter.bases or adapter.tensors):
        raise CheckpointError("the adapter holds no tensors", right="fetch the file again")


def _meaning(
    adapter: Adapter, saved: dict[str, TensorSource], key: str
) -> tuple[dict[str, TensorSource] | None, str, str | None]:
    """Return where a key belongs (None: nowhere), under which name, and the name of its adapter where it has one."""
    name = key.removeprefix(_PREFIX)
    if match := _UPDATE.fullmatch(name):
        part = match["part"] + (".bias" if match["leaf"] == "bias" else "")
        return adapter.updates.setdefault(match["module"], {}), part, match["adapter"]
    if match := _ROWS.fullmatch(name):
        return adapter.tokens, match["module"], match["adapter"]
    if match := _SAVED.fullmatch(name):
        return saved, match["module"] + match["rest"], match["adapter"]
    if _OTHER_KINDS.fullmatch(name):
        raise CheckpointError(
            f"the adapter has a key of another kind: {printable(key)[:200]!r}",
            right="an adapter as PEFT saves it: keys X.lora_A.weight and X.lora_B.weight",
        )
    if ".original_module." in name:
        return None, name, None
    if ".base_layer." in name:
        return adapter.bases, name.replace(".base_layer.", "."), None
    return adapter.tensors, name, None
