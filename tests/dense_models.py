"""Tiny dense decoders of transformers, as the experts of mixtures, with a tokenizer of whitespace words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
PROMPTS = ("a b c d", "p q r s", "x y z", "k l m n o")
TOKENS = torch.tensor([[1, 5, 9, 2, 20, 11, 7, 3], [1, 4, 4, 17, 23, 3, 8, 30]])
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def dense(family: str, *, seed: int, **settings: Any) -> Any:
    """Return a tiny random model of a family."""
    import transformers

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        **({"head_dim": 8} if family == "qwen3" else {}),
        **settings,
    }
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **sizes))
    for name, value in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            value.data += 0.2 * torch.randn_like(value)
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """Write a model's folder."""
    model.save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are words between spaces."""
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": WORDS[n], **plain} for n in range(3)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(WORDS)}, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
