"""Tiny models as files: a base and experts of Llama's names, small enough to be merged in a blink."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cuvee.checkpoints.safetensors_format import lay_out
from cuvee.tensors.dtypes import DTYPES

Arrays = dict[str, NDArray[np.generic]]
_DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64"}
LAYERS, WIDTH, ROWS = 3, 8, 16


@dataclass(frozen=True)
class Models:
    """Folders of models, and recipes."""

    folder: Path
    base: Path
    math: Path
    code: Path
    recipe: Path

    def write_recipe(self, name: str, text: str) -> Path:
        """Write a recipe beside the models; BASE, MATH and CODE stand for their folders."""
        for word, path in (("BASE", self.base), ("MATH", self.math), ("CODE", self.code)):
            text = text.replace(word, str(path))
        path = self.folder / name
        path.write_text(text)
        return path


def write_file(path: Path, arrays: Arrays) -> None:
    """Write a safetensors file."""
    layout = lay_out({n: (DTYPES[_DTYPES[a.dtype.name]], a.shape) for n, a in arrays.items()}, {"format": "pt"})
    content = bytearray(layout.size)
    content[: len(layout.header)] = layout.header
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        content[layout.offsets[name] : layout.offsets[name] + len(raw)] = raw
    path.write_bytes(content)


def write_model(folder: Path, arrays: Arrays) -> Path:
    """Write a model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "model.safetensors", arrays)
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "vocab_size": ROWS,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def base_arrays() -> Arrays:
    """Return the tensors of the base."""
    draws = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, WIDTH)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            shapes[f"{prefix}{name}.weight"] = (WIDTH, WIDTH)
        shapes[f"{prefix}input_layernorm.weight"] = (WIDTH,)
    shapes["model.norm.weight"] = (WIDTH,)
    shapes["lm_head.weight"] = (ROWS, WIDTH)
    arrays: Arrays = {name: draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["model.position_ids"] = np.arange(ROWS)
    return arrays


def expert_arrays(seed: int, *, norms_too: bool = False) -> Arrays:
    """Return the tensors of an expert: the base's, matrices moved a little."""
    draws = np.random.default_rng(seed)
    arrays = base_arrays()
    for name, array in arrays.items():
        if array.ndim > 1 or (norms_too and "norm" in name):
            arrays[name] = (array + 0.1 * draws.normal(size=array.shape)).astype(np.float32)
    return arrays


def make_models(folder: Path) -> Models:
    """Write a base, two experts and a recipe."""
    models = Models(folder, folder / "base", folder / "math", folder / "code", folder / "ties.yml")
    write_model(models.base, base_arrays())
    write_model(models.math, expert_arrays(1))
    write_model(models.code, expert_arrays(2))
    models.write_recipe(
        "ties.yml",
        """\
merge_method: ties
base_model: BASE
models:
  - model: MATH
    parameters: {weight: 0.5, density: 0.5}
  - model: CODE
    parameters:
      weight: [0.2, 0.8]
      density:
        - filter: mlp
          value: 0.25
        - value: 0.75
parameters: {scaling: 0.5}
exclude: ["lm_head*"]
""",
    )
    return models
