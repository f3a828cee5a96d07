"""Models made from seeds: a base and its experts as Hugging Face Llama folders, written a block at a time.

The same seed and shape give the same bytes on every machine with the same NumPy. Nothing larger than a block
of 2^20 elements is held in memory, so a model of any size can be made.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK_ELEMENTS = 1 << 20
BF16_BYTES = 2
WEIGHT_STD = 0.02
NORM_STD = 0.1
DELTA_SHARE = 0.02
"""Standard deviation of an expert's task vector, as a share of the base tensor's own."""
FROZEN_OF_256 = 3
"""Elements of 256 left as in the base: with those that bf16 rounding leaves (8.9 %), 10 % in all."""
FORMAT_VERSION = 1
"""Part of the folder's name: models of an older recipe are made anew, not reused."""

Bits = NDArray[np.uint16]


@dataclass(frozen=True)
class LlamaShape:
    """The shape of a Llama model with an untied head: 374 M parameters unless told otherwise."""

    hidden: int = 1024
    layers: int = 24
    mlp: int = 2816
    heads: int = 16
    vocab: int = 32000

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors in bf16."""
        return self.parameters * BF16_BYTES

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, sorted by name."""
        shapes: dict[str, tuple[int, ...]] = {
            "lm_head.weight": (self.vocab, self.hidden),
            "model.embed_tokens.weight": (self.vocab, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            shapes |= {f"{prefix}.self_attn.{p}_proj.weight": (self.hidden, self.hidden) for p in "qkvo"}
            shapes |= {f"{prefix}.mlp.{p}_proj.weight": (self.mlp, self.hidden) for p in ("gate", "up")}
            shapes[f"{prefix}.mlp.down_proj.weight"] = (self.hidden, self.mlp)
            shapes[f"{prefix}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{prefix}.post_attention_layernorm.weight"] = (self.hidden,)
        return dict(sorted(shapes.items()))

    def config(self) -> dict[str, object]:
        """What config.json says of a `LlamaForCausalLM` of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }

    def scaled(self, scale: float) -> LlamaShape:
        """The same model with as many layers as `scale` times its parameters take."""
        per_layer = LlamaShape(self.hidden, 1, self.mlp, self.heads, self.vocab).parameters
        outside = LlamaShape(self.hidden, 0, self.mlp, self.heads, self.vocab).parameters
        layers = round((scale * self.parameters - outside) / (per_layer - outside))
        return LlamaShape(self.hidden, max(1, layers), self.mlp, self.heads, self.vocab)


@dataclass(frozen=True)
class Models:
    """Folders of one base model and its experts."""

    base: Path
    experts: tuple[Path, ...]

    def weight_files(self) -> list[Path]:
        """The safetensors file of every model, base first."""
        return [folder / "model.safetensors" for folder in (self.base, *self.experts)]


@dataclass(frozen=True)
class _Block:
    """A run of elements of one tensor and its place in the file."""

    tensor: int
    number: int
    offset: int
    elements: int
    is_norm: bool

    def draws(self, seed: int, model: int) -> np.random.Generator:
        """The block's own random numbers, whoever writes it and when."""
        return np.random.Generator(np.random.SFC64([seed, model, self.tensor, self.number]))


def make_models(folder: Path, shape: LlamaShape, experts: int = 4, seed: int = 0) -> Models:
    """Make the base and its experts under `folder`, or find those made before.

    Args:
        folder: Where the model folders go; it is created.
        shape: Shape of all models.
        experts: How many experts.
        seed: Seed of every draw.

    Returns:
        The folders. Each holds config.json and model.safetensors.
    """
    stem = f"llama-v{FORMAT_VERSION}-{shape.hidden}x{shape.layers}-seed{seed}"
    models = Models(folder / f"{stem}-base", tuple(folder / f"{stem}-expert{k}" for k in range(1, experts + 1)))
    _make_model(models.base, shape, seed, model=0, base_file=None)
    for number, expert in enumerate(models.experts, start=1):
        _make_model(expert, shape, seed, model=number, base_file=models.base / "model.safetensors")
    return models


def _make_model(folder: Path, shape: LlamaShape, seed: int, model: int, base_file: Path | None) -> None:
    """Write one model beside its final name and rename it there, so that a half-written one is never reused."""
    if folder.exists():
        return
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    _write_weights(staging / "model.safetensors", shape, seed, model, base_file)
    staging.rename(folder)


def _write_weights(path: Path, shape: LlamaShape, seed: int, model: int, base_file: Path | None) -> None:
    header = _header(shape)
    out = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    base = None if base_file is None else os.open(base_file, os.O_RDONLY)

    def write(block: _Block) -> None:
        bits = _base_bits(block, seed) if base is None else _expert_bits(block, seed, model, base)
        _write_all(out, bits.tobytes(), block.offset)

    try:
        _write_all(out, header, 0)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(write, _blocks(shape, len(header))):
                pass
        os.fsync(out)
    finally:
        os.close(out)
        if base is not None:
            os.close(base)


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _header(shape: LlamaShape) -> bytes:
    """A safetensors header for tensors stored one after the other, padded to 64 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in shape.tensors().items():
        start, end = end, end + math.prod(dims) * BF16_BYTES
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _blocks(shape: LlamaShape, data_start: int) -> Iterator[_Block]:
    offset = data_start
    for tensor, dims in enumerate(shape.tensors().values()):
        left = math.prod(dims)
        for number in range(-(-left // BLOCK_ELEMENTS)):
            elements = min(BLOCK_ELEMENTS, left)
            yield _Block(tensor, number, offset, elements, is_norm=len(dims) == 1)
            left -= elements
            offset += elements * BF16_BYTES


def _base_bits(block: _Block, seed: int) -> Bits:
    normal = block.draws(seed, model=0).standard_normal(block.elements, dtype=np.float32)
    mean, std = (1.0, NORM_STD) if block.is_norm else (0.0, WEIGHT_STD)
    return _to_bf16(normal * np.float32(std) + np.float32(mean))


def _expert_bits(block: _Block, seed: int, model: int, base_file: int) -> Bits:
    base = np.frombuffer(os.pread(base_file, block.elements * BF16_BYTES, block.offset), np.uint16)
    draws = block.draws(seed, model)
    delta = draws.standard_normal(block.elements, dtype=np.float32)
    delta *= np.float32(DELTA_SHARE * (NORM_STD if block.is_norm else WEIGHT_STD))
    delta[draws.integers(0, 256, block.elements, dtype=np.uint8) < FROZEN_OF_256] = 0.0
    return _to_bf16(_from_bf16(base) + delta)


def _from_bf16(bits: Bits) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bf16(values: NDArray[np.float32]) -> Bits:
    """Round finite values to the nearest bf16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
