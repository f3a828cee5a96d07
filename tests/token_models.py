"""Writers of tiny tokenizers for the tests, and of models that have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from models import LLAMA, family, llama_shapes, write_model

SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def bpe(
    pieces: Sequence[str], merges: Sequence[str] = (), added: Mapping[str, int] | None = None, **model: Any
) -> dict[str, Any]:
    """Return the tokenizer.json of a byte-level BPE: ids in the order of `pieces`, then the added tokens."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": t, **SPECIAL} for t, n in (added or {}).items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": list(merges), **model},
    }


def unigram(pieces: Iterable[tuple[str, float]], added: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return the tokenizer.json of a Unigram model over ▁."""
    return {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": t, **SPECIAL} for t, n in (added or {}).items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [list(pair) for pair in pieces]},
    }


def tokens_of(content: Mapping[str, Any]) -> dict[str, int]:
    """Return every token's id."""
    held = content["model"]["vocab"]
    pieces = dict(held) if isinstance(held, dict) else {pair[0]: n for n, pair in enumerate(held)}
    return {**pieces, **{entry["content"]: entry["id"] for entry in content["added_tokens"]}}


def write_tokenizer(folder: Path, content: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **(config or {})}))


def write_token_model(
    folder: Path, content: Mapping[str, Any], *, rows: int | None = None, seed: int = 0, **config: Any
) -> dict[str, torch.Tensor]:
    """Write a tiny Llama with this tokenizer and random weights; returns its tensors."""
    own = {**LLAMA, "vocab_size": rows or max(tokens_of(content).values()) + 1, **config}
    tensors, _ = family(0, llama_shapes(own), seed=seed)
    write_model(folder, tensors, own)
    write_tokenizer(folder, content)
    return tensors
