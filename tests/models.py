"""Writers of tiny models for the tests: families of a base and its fine-tunes, in memory and as folders."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def llama_shapes(config: Mapping[str, Any] = LLAMA) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Llama of this size."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    narrow = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": (narrow, hidden),
            f"{prefix}self_attn.v_proj.weight": (narrow, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def family(
    count: int, shapes: Mapping[str, tuple[int, ...]], *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensors, list[Tensors]]:
    """Return a base and `count` fine-tunes of it."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    experts = [
        {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(count)
    ]
    return {n: t.to(dtype) for n, t in base.items()}, [{n: t.to(dtype) for n, t in e.items()} for e in experts]


def write_model(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    shards: int = 1,
    shuffle: int | None = None,
    others: Mapping[str, str] | None = None,
) -> Path:
    """Write a model's folder.

    Args:
        shards: number of weight files, with an index where there is more than one.
        shuffle: a seed: tensors are dealt to the shards, and shards numbered, in a random order.
        others: further files, name -> text.
    """
    folder.mkdir(parents=True)
    names = list(tensors)
    if shuffle is not None:
        random.Random(shuffle).shuffle(names)
    if shards == 1:
        save_file({name: tensors[name].contiguous() for name in names}, folder / "model.safetensors", {"format": "pt"})
    else:
        files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
        weight_map = {name: files[n % shards] for n, name in enumerate(names)}
        for file in files:
            held = {name: tensors[name].contiguous() for name in names if weight_map[name] == file}
            save_file(held, folder / file, {"format": "pt"})
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, text in (others or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def read_folder(folder: Path) -> Tensors:
    """Return all tensors of a model's folder, by the safetensors package."""
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, by relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same_bytes(got: Mapping[str, bytes], want: Mapping[str, bytes], what: str = "") -> None:
    """Compare two folders' contents, naming the files that differ."""
    assert got.keys() == want.keys(), what
    assert [name for name in want if got[name] != want[name]] == [], what


def assert_equal(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> None:
    """Compare tensors bit for bit."""
    assert got.keys() == want.keys()
    different = [
        name
        for name in want
        if got[name].dtype != want[name].dtype
        or got[name].shape != want[name].shape
        or bits(got[name]) != bits(want[name])
    ]
    assert different == []


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_family(
    folder: Path, count: int = 3, *, names: Sequence[str] = ("math", "code", "chat"), **options: Any
) -> None:
    """Write a base and experts of a tiny Llama as folders `base`, `math`, `code`, `chat`."""
    config = options.pop("config", LLAMA)
    dtype = options.pop("dtype", torch.float32)
    base, experts = family(count, llama_shapes(config), dtype=dtype)
    for name, tensors in zip(("base", *names), (base, *experts), strict=False):
        write_model(folder / name, tensors, config, **options)
