"""Folders of Hugging Face form for trained models: complete, or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints import fs
from cuvee.checkpoints.publishing import MODEL_NAME, leftovers, locked, publish, staging_folder
from cuvee.evaluation.tiny_llama import Shape, TinyLlama

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_json", "is_adapter", "is_model", "load_model", "save_adapter", "save_folder", "save_model"]

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_ADAPTER = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_TRAINED = "0" * 12  # no plan


def save_folder(
    folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, bytes], *, weights_name: str = _WEIGHTS
) -> None:
    """Write weights and other files beside the folder, and give them its name in one step.

    Whatever an interrupted writer has left there is removed.
    """
    from safetensors.torch import save

    weights = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})
    with locked(folder):
        for old in leftovers(folder):
            fs.remove_tree(old)
        staging = staging_folder(folder, _TRAINED)
        fs.mkdir(staging / MODEL_NAME)
        for name, data in {weights_name: weights, **files}.items():
            fs.write_file(staging / MODEL_NAME / name, data)
        publish(staging, folder)


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], config: bytes) -> None:
    """Save an adapter in PEFT's form."""
    save_folder(folder, tensors, {_ADAPTER_CONFIG: config}, weights_name=_ADAPTER)


def save_model(model: TinyLlama, folder: Path) -> None:
    """Save a language model of bytes with its config and tokenizer."""
    files = {
        _CONFIG: as_json(model.shape.config()),
        "tokenizer.json": as_json(_tokenizer()),
        "tokenizer_config.json": as_json({"tokenizer_class": "PreTrainedTokenizerFast"}),
    }
    save_folder(folder, model.state_dict(), files)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter."""
    return (folder / _ADAPTER).is_file()


def is_model(folder: Path) -> bool:
    """Return whether a model, or an adapter, is there, with nothing missing."""
    pairs = ((_WEIGHTS, _CONFIG), (_ADAPTER, _ADAPTER_CONFIG))
    return any((folder / weights).is_file() and (folder / config).is_file() for weights, config in pairs)


def load_model(folder: Path) -> TinyLlama:
    """Read a model that was saved here or merged from such models."""
    from safetensors.torch import load_file

    model = TinyLlama(Shape.of_config(json.loads((folder / _CONFIG).read_text())))
    model.load_state_dict(load_file(folder / _WEIGHTS))
    return model.eval()


def as_json(value: Mapping[str, Any]) -> bytes:
    """Return a file of JSON."""
    return (json.dumps(value, indent=1) + "\n").encode()


def _tokenizer() -> dict[str, Any]:
    """Return tokenizer.json of a tokenizer whose 256 tokens are the bytes: byte-level BPE with nothing to merge."""
    spelled = {byte: chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
    # GPT-2's way to write a byte that is no visible character: the characters from U+0100 on, in order.
    for byte in range(256):
        spelled.setdefault(byte, chr(0x100 + len(spelled) - 188))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {spelled[byte]: byte for byte in range(256)}, "merges": []},
    }
