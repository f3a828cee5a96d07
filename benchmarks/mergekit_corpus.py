"""Recipes for mergekit and Cuvée: those of its examples and documentation in small, and generated ones.

The models are Llamas of four layers, made from seeds: a base and three fine-tunes of it in float32 (`base`, `a`, `b`, `c`),
the same in bfloat16 (`base16`, …), `wide` with two more tokens, `tied` and `tied2` with one matrix at both ends. With
tokenizers: `words` and two fine-tunes of it, `chat` with three more tokens and a row of padding, `odd` with its tokens in
another order, one of them missing and one more. `t5a` and `t5b` are T5s of three layers on each side.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8,
    "vocab_size": 48,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


@dataclass(frozen=True)
class Case:
    """One recipe; `group` says what it is about."""

    name: str
    group: str
    recipe: dict[str, Any]

    def text(self, models: Path) -> str:
        """Return the YAML, models named by their folders."""
        return str(yaml.safe_dump(_placed(self.recipe, models), sort_keys=False))


NAMES = {
    "base",
    "a",
    "b",
    "c",
    "base16",
    "a16",
    "b16",
    "c16",
    "wide",
    "tied",
    "tied2",
    "words",
    "chat",
    "odd",
    "t5a",
    "t5b",
}


def _placed(value: Any, models: Path, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _placed(one, models, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_placed(one, models, key) for one in value]
    is_word = key in ("source", "tokenizer_source") and value == "base"
    return str(models / value) if value in NAMES and not is_word else value


def write_models(folder: Path) -> None:
    """Write the models of the corpus."""
    generator = torch.Generator().manual_seed(1)
    shapes = _shapes(CONFIG)
    base = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    for name in ("base", "a", "b", "c"):
        delta = {
            n: torch.randn(t.shape, generator=generator) * (0.05 if name != "base" else 0.0) for n, t in base.items()
        }
        model = {n: base[n] + delta[n] for n in base}
        _write(folder / name, model, CONFIG)
        _write(folder / f"{name}16", {n: t.bfloat16() for n, t in model.items()}, {**CONFIG, "torch_dtype": "bfloat16"})
        if name == "b":
            wide = {
                n: torch.cat((t, 0.1 * t[:2])) if t.shape[0] == CONFIG["vocab_size"] else t for n, t in model.items()
            }
            _write(folder / "wide", wide, {**CONFIG, "vocab_size": 50})
        if name in ("a", "b"):
            tied = {n: t for n, t in model.items() if n != "lm_head.weight"}
            _write(folder / ("tied" if name == "a" else "tied2"), tied, {**CONFIG, "tie_word_embeddings": True})

    _write_worded(folder, base, generator)
    t5 = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in _t5_shapes().items()}
    for name in ("t5a", "t5b"):
        _write(folder / name, {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in t5.items()}, T5)


def _write_worded(folder: Path, base: dict[str, torch.Tensor], generator: torch.Generator) -> None:
    """Write the models with tokenizers."""
    words = ["<unk>", "<s>", "</s>", *(chr(0x61 + n) for n in range(26)), *(chr(0x41 + n) for n in range(19))]
    odd = [words[n] for n in torch.randperm(len(words), generator=generator).tolist() if words[n] != "Q"] + ["0"]
    for name, own, more in (("words", words, []), ("chat", words, ["<|x|>", "<|y|>", "<|z|>"]), ("odd", odd, [])):
        rows = len(own) + len(more) + (name == "chat")
        moved = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        for end in ("model.embed_tokens.weight", "lm_head.weight"):
            moved[end] = 0.2 * torch.randn((rows, CONFIG["hidden_size"]), generator=generator)
        _write(folder / name, moved, {**CONFIG, "vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2})
        _write_tokenizer(folder / name, own, more)


def _write_tokenizer(folder: Path, words: list[str], more: list[str]) -> None:
    ids = {word: place for place, word in enumerate(words)}
    added = [
        {
            "id": place,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for word, place in {
            **{w: ids[w] for w in ("<unk>", "<s>", "</s>")},
            **{w: len(words) + n for n, w in enumerate(more)},
        }.items()
    ]
    tokenizer = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")),
        "added_tokens": sorted(added, key=lambda one: one["id"]),
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": ids, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden // 2, hidden) for name in "kv"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (words, hidden)}


def _t5_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (48, 16)}
    for side, attentions in (("encoder", ("Self",)), ("decoder", ("Self", "EncDec"))):
        for layer in range(3):
            prefix = f"{side}.block.{layer}.layer."
            for number, kind in enumerate(attentions):
                shapes |= {f"{prefix}{number}.{kind}Attention.{m}.weight": (16, 16) for m in "qkvo"}
            last = f"{prefix}{len(attentions)}.DenseReluDense."
            shapes |= {f"{last}wi_0.weight": (32, 16), f"{last}wi_1.weight": (32, 16), f"{last}wo.weight": (16, 32)}
            shapes |= {f"{prefix}{number}.layer_norm.weight": (16,) for number in range(len(attentions) + 1)}
        shapes[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (8, 4)
        shapes[f"{side}.final_layer_norm.weight"] = (16,)
    return shapes


def _write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


# ---- recipes


def model(name: str, **parameters: Any) -> dict[str, Any]:
    return {"model": name, "parameters": parameters} if parameters else {"model": name}


def source(name: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    return {**model(name, **parameters), "layer_range": [first, end]}


def recipe(method: str, models: list[Any], base: str | None = None, **rest: Any) -> dict[str, Any]:
    """Return a recipe; keys besides dtype, out_dtype and slices are parameters of all models."""
    top = {key: rest.pop(key) for key in ("dtype", "out_dtype") if key in rest}
    top.setdefault("dtype", "float32")
    said: dict[str, Any] = {"merge_method": method, "models": models}
    if base:
        said["base_model"] = base
    return {**said, **({"parameters": rest} if rest else {}), **{k: v for k, v in top.items() if v}}


def sliced(method: str, slices: list[Any], base: str | None = None, **rest: Any) -> dict[str, Any]:
    said = recipe(method, [], base, **rest)
    del said["models"]
    return {**said, "slices": [one if isinstance(one, dict) else {"sources": one} for one in slices]}


FIVE = [0, 0.5, 0.3, 0.7, 1]
BLOCKS = [{"filter": "self_attn", "value": FIVE}, {"filter": "mlp", "value": FIVE[::-1]}, {"value": 0.5}]


def cases() -> list[Case]:
    """Return the corpus: at least 150 recipes, each of its own name."""
    found = [
        Case(f"{group}-{number:02d}", group, one)
        for group, recipes in _groups().items()
        for number, one in enumerate(recipes)
    ]
    assert len({case.name for case in found}) == len(found) >= 150
    return found


def _groups() -> dict[str, list[dict[str, Any]]]:
    return {
        "examples": list(_examples()),
        "linear": list(_linear()),
        "slerp": list(_slerp()),
        "nuslerp": list(_nuslerp()),
        "sphere": list(_sphere()),
        "task_arithmetic": list(_task_arithmetic()),
        "ties": list(_ties()),
        "dare": list(_dare()),
        "della": list(_della()),
        "breadcrumbs": list(_breadcrumbs()),
        "others": list(_others()),
        "passthrough": list(_passthrough()),
        "slices": list(_slices()),
        "dtypes": list(_dtypes()),
        "vocabularies": list(_vocabularies()),
        "tied": list(_tied()),
        "settings": list(_settings()),
        "tokenizers": list(_tokenizers()),
        "modules": list(_modules()),
    }


def _examples() -> Iterator[dict[str, Any]]:
    """The shapes of the recipes in mergekit's examples folder and README."""
    yield recipe(
        "ties", [model("a", density=0.53, weight=0.4), model("b", density=0.53, weight=0.3)], "base", int8_mask=True
    )
    ends = [source("a", 0, 4), source("b", 0, 4)]
    yield sliced("slerp", [ends], "a", t=BLOCKS)
    yield recipe("linear", [model("a", weight=1.0), model("b", weight=0.3), model("c", weight=0.5)])
    yield sliced("passthrough", [[source("a", 0, 3)], [source("b", 1, 4)]])
    yield sliced("passthrough", [[source("a", 0, 2)], [source("b", 1, 3)], [source("a", 2, 4)]])
    yield recipe(
        "ties",
        [
            model("a", density=[1, 0.7, 0.1], weight=1.0),
            model("b", density=0.5, weight=[0, 0.3, 0.7, 1]),
            model("c", density=0.33, weight=[{"filter": "mlp", "value": 0.5}, {"value": 0}]),
        ],
        "base",
        normalize=True,
        int8_mask=True,
    )
    yield recipe(
        "dare_ties",
        [model("base"), model("a", density=0.53, weight=0.4), model("b", density=0.53, weight=0.6)],
        "base",
        int8_mask=True,
    )
    yield recipe("model_stock", [model("a"), model("b"), model("c")], "base")
    yield recipe("task_arithmetic", [model("a", weight=0.35), model("b", weight=-0.2)], "base")
    yield recipe("sce", [model("a"), model("b"), model("c")], "base", select_topk=0.1)
    yield recipe("nuslerp", [model("a", weight=0.5), model("b", weight=0.5)])
    yield recipe("karcher", [model("a"), model("b")], max_iter=20)


def _linear() -> Iterator[dict[str, Any]]:
    for weights in ((1, 1), (0.3, 0.7), (2, -0.5), (1, 0), (0.2, 0.2)):
        for normalize in (True, False):
            yield recipe(
                "linear", [model(m, weight=w) for m, w in zip("ab", weights, strict=True)], normalize=normalize
            )
    yield recipe("linear", [model("a"), model("b")], weight=0.5)
    yield recipe("linear", [model("a", weight=0.2), model("base", weight=0.8)], "base")
    yield recipe("linear", [model("a", weight=[0, 1]), model("b", weight=[1, 0])])


def _slerp() -> Iterator[dict[str, Any]]:
    for t in (0, 0.25, 0.5, 1, [0, 1], [1, 0.5, 0], BLOCKS):
        yield recipe("slerp", [model("a"), model("b")], "a", t=t)
    yield recipe("slerp", [model("a"), model("b")], "b", t=0.3)
    yield recipe("slerp", [model("b")], "a", t=0.3)
    yield recipe("slerp", [model("base"), model("a")], "base", t=[{"filter": "layernorm", "value": 1}, {"value": 0.2}])


def _nuslerp() -> Iterator[dict[str, Any]]:
    for flatten, row_wise, base in itertools.product((True, False), (True, False), (None, "base")):
        models = [model("a", weight=0.3), model("b", weight=0.9)]
        yield recipe("nuslerp", models, base, nuslerp_flatten=flatten, nuslerp_row_wise=row_wise)
    yield recipe("nuslerp", [model("a", weight=0.5), model("b", weight=-0.5)])
    yield recipe("nuslerp", [model("a", weight=[0, 1]), model("b", weight=[1, 0])])


def _sphere() -> Iterator[dict[str, Any]]:
    for weights, normalize in itertools.product(((1, 1, 1), (0.2, 0.5, 0.3)), (True, False)):
        models = [model(m, weight=w) for m, w in zip("abc", weights, strict=True)]
        yield recipe("multislerp", models, normalize_weights=normalize)
    yield recipe("multislerp", [model("a", weight=1), model("b", weight=2)], "base")
    yield recipe("karcher", [model("a"), model("b"), model("c")])
    yield recipe("karcher", [model("a"), model("b")], "base")
    yield recipe("karcher", [model("a"), model("b"), model("c")], max_iter=2, tol=1e-3)


def _task_arithmetic() -> Iterator[dict[str, Any]]:
    for weights in ((1, 1), (0.4, -0.3), (0, 1)):
        for settings in ({}, {"lambda": 0.5}, {"normalize": True}):
            yield recipe(
                "task_arithmetic", [model(m, weight=w) for m, w in zip("ab", weights, strict=True)], "base", **settings
            )
    yield recipe("task_arithmetic", [model("a", weight=1)], "base", **{"lambda": [0, 1]})
    yield recipe("task_arithmetic", [model("a"), model("b"), model("c")], "base", weight=0.3)


def _ties() -> Iterator[dict[str, Any]]:
    for density, normalize in itertools.product((1.0, 0.5, 0.2), (True, False)):
        models = [model(m, density=density, weight=w) for m, w in zip("abc", (1, 0.5, 0.25), strict=True)]
        yield recipe("ties", models, "base", normalize=normalize)
    pair = [model("a", density=0.7, weight=0.6), model("b", density=0.4, weight=0.4)]
    for settings in ({"lambda": 0.7}, {"int8_mask": True}, {"rescale": True}, {"rescale": True, "lambda": 1.5}):
        yield recipe("ties", pair, "base", **settings)
    yield recipe("ties", [*pair, model("base")], "base")
    yield recipe("ties", [model("a", density=0.5, weight=1), model("b", density=0.5, weight=-0.5)], "base")
    yield recipe("ties", [model("a", weight=1), model("b", weight=1)], "base", density=[0.2, 0.8])
    yield recipe("ties", [model("a", weight=1)], "base", density=0.05)
    yield recipe("ties", pair[:1], "base")


def _dare() -> Iterator[dict[str, Any]]:
    for method, density, rescale in itertools.product(("dare_linear", "dare_ties"), (0.3, 0.8), (True, False)):
        models = [model("a", density=density, weight=0.6), model("b", density=density, weight=0.5)]
        yield recipe(method, models, "base", rescale=rescale)
    yield recipe(
        "dare_ties", [model("a", density=0.5, weight=1), model("b", density=1, weight=1)], "base", normalize=True
    )
    yield recipe("dare_linear", [model("a", density=[1, 0.1], weight=1)], "base", **{"lambda": 0.8})


def _della() -> Iterator[dict[str, Any]]:
    for method, density, epsilon in itertools.product(("della", "della_linear"), (0.3, 0.7), (0.05, 0.2)):
        models = [model("a", density=density, weight=0.6, epsilon=epsilon), model("b", density=density, weight=0.5)]
        yield recipe(method, models, "base", epsilon=0.1)
    yield recipe("della", [model("a", density=0.5, weight=1), model("b", density=0.5, weight=1)], "base", rescale=False)
    yield recipe("della_linear", [model("a", density=0.9, weight=1)], "base")  # 0.9 + 0.15 > 1: refused by both


def _breadcrumbs() -> Iterator[dict[str, Any]]:
    for method, density, gamma in itertools.product(("breadcrumbs", "breadcrumbs_ties"), (0.4, 0.9), (0.01, 0.1)):
        models = [model("a", density=density, weight=0.6), model("b", density=density, weight=0.5)]
        yield recipe(method, models, "base", gamma=gamma)
    yield recipe("breadcrumbs", [model("a", density=0.9, weight=1, gamma=0.3)], "base")
    yield recipe("breadcrumbs", [model("a", density=1.0, weight=1)], "base", normalize=True)


def _others() -> Iterator[dict[str, Any]]:
    for topk in (1.0, 0.5, 0.1):
        yield recipe("sce", [model("a"), model("b")], "base", select_topk=topk)
    for filter_wise, names in itertools.product((True, False), ("ab", "abc")):
        yield recipe("model_stock", [model(m) for m in names], "base", filter_wise=filter_wise)
    for t in (0.001, 0.05, [0.01, 0.1]):
        yield recipe("nearswap", [model("a"), model("b")], "a", t=t)
    yield recipe("arcee_fusion", [model("a")], "base")
    yield recipe("arcee_fusion", [model("a"), model("base")], "base")
    yield recipe("ram", [model("a"), model("b"), model("c")], "base")
    yield recipe("ramplus_tl", [model("a"), model("b")], "base", r=0.2, alpha=0.3)


def _passthrough() -> Iterator[dict[str, Any]]:
    yield recipe("passthrough", [model("a")])
    yield recipe("passthrough", [model("a", scale=0.5)])
    scale = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    growth = [[source("a", 0, 4)], [source("a", 3, 4, scale=scale)]]
    yield sliced("passthrough", growth)
    for cut in (1, 2, 3):
        yield sliced("passthrough", [[source("a", 0, cut)], [source("a", 4 - cut, 4)]])
    yield sliced("passthrough", [[source("a", n, n + 1)] for n in (0, 1, 1, 2, 2, 3)])
    yield sliced("passthrough", [[source("a", 0, 2)], [source("b", 2, 4)]], "c")
    yield sliced("passthrough", [[source("b", 0, 0)], [source("a", 0, 4)]])
    yield sliced("passthrough", [[source("a", 0, 4, scale=[0, 1])]])


def _slices() -> Iterator[dict[str, Any]]:
    ab = [source("a", 0, 3, weight=0.3), source("b", 1, 4, weight=0.9)]
    for normalize in (True, False):
        yield sliced("linear", [ab], normalize=normalize)
    shifted = [{"filter": "layers.1.", "value": 2.0}, {"filter": ".0.", "value": 5.0}, {"value": 1.0}]
    yield sliced("linear", [[source("a", 0, 3, weight=shifted), source("b", 1, 4, weight=shifted)]])
    yield sliced(
        "linear", [[source("a", 0, 3, weight=[0, 1]), source("b", 1, 4, weight=[1, 0.2, 0.6, 0])]], normalize=False
    )
    yield sliced(
        "linear", [[source("a", 0, 2, weight=1)], [source("a", 2, 4, weight=0.5), source("b", 2, 4, weight=0.5)]]
    )
    yield sliced(
        "linear", [[source("a", 0, 2, weight=0.5), source("b", 0, 2, weight=0.5)], [source("a", 2, 4, weight=1)]]
    )
    yield sliced("linear", [[source("a", 0, 2, weight=0.25), source("a", 2, 4, weight=0.75)]])
    layer_swap = [
        [source("a", 0, 1, weight=1), source("b", 0, 1, weight=0)],
        [source("a", 1, 3, weight=0.5), source("b", 1, 3, weight=0.5)],
        [source("a", 3, 4, weight=1), source("b", 3, 4, weight=0)],
    ]
    yield sliced("linear", layer_swap)
    for t in (0.4, [0, 1], BLOCKS, [{"filter": "layers.0.", "value": 0.9}, {"value": 0.1}]):
        yield sliced(
            "slerp", [[source("a", 0, 2), source("b", 0, 2)], [source("a", 2, 4), source("b", 1, 3)]], "a", t=t
        )
    levels = [
        {"sources": [source("a", 0, 2), source("b", 0, 2)], "parameters": {"t": 0.2}},
        [source("a", 2, 4), source("b", 2, 4)],
    ]
    yield sliced("slerp", levels, "a", t=0.8)
    tied = [
        source("base", 0, 3),
        source("a", 0, 3, weight=0.5, density=0.6),
        source("b", 0, 3, weight=0.5, density=[0.3, 0.9]),
    ]
    yield sliced("ties", [tied, [source("base", 1, 4), source("a", 1, 4, weight=1, density=0.5)]], "base")
    yield sliced(
        "task_arithmetic", [[source("base", 0, 4), source("a", 0, 4, weight=[0, 1])]], "base", **{"lambda": [1, 0.5]}
    )
    other = {"sources": [source("a", 0, 2), source("b", 0, 2)], "base_model": "b", "parameters": {"t": 0.3}}
    yield sliced("slerp", [other, [source("a", 2, 4), source("b", 2, 4)]], "a", t=0.3)
    yield sliced("dare_linear", [[source("base", 0, 2), source("a", 2, 4, weight=0.5, density=0.5)]], "base")


def _dtypes() -> Iterator[dict[str, Any]]:
    pair = [model("a", weight=0.3), model("b", weight=0.9)]
    for out_dtype in ("bfloat16", "float16"):
        yield recipe("linear", pair, out_dtype=out_dtype)
        yield recipe("ties", pair, "base", density=0.5, out_dtype=out_dtype)
        yield recipe("slerp", [model("a"), model("b")], "a", t=0.4, out_dtype=out_dtype)
    for dtype in ("bfloat16", "float16", None):
        yield recipe("linear", pair, dtype=dtype)
        yield recipe("task_arithmetic", pair, "base", dtype=dtype)
        yield recipe("slerp", [model("a"), model("b")], "a", t=0.4, dtype=dtype)
    pair16 = [model("a16", weight=0.3), model("b16", weight=0.9)]
    for dtype in ("float32", "bfloat16", None):
        yield recipe("linear", pair16, dtype=dtype)
        yield recipe("slerp", [model("a16"), model("b16")], "a16", t=0.4, dtype=dtype)
        yield recipe("passthrough", [model("a16")], dtype=dtype)
    for method, settings in {
        "ties": {"density": 0.5},
        "breadcrumbs": {"density": 0.6, "gamma": 0.1},
        "sce": {"select_topk": 0.4},
    }.items():
        models = [model("a16", weight=1), model("b16", weight=1)] if method != "sce" else [model("a16"), model("b16")]
        yield recipe(method, models, "base16", out_dtype="bfloat16", **settings)
    yield recipe("linear", [model("a", weight=1), model("b16", weight=1)], dtype=None)


def _vocabularies() -> Iterator[dict[str, Any]]:
    yield recipe("linear", [model("a", weight=1), model("wide", weight=1)])
    yield recipe("slerp", [model("a"), model("wide")], "a", t=0.5)
    yield recipe("task_arithmetic", [model("wide", weight=1), model("a", weight=1)], "base")
    yield recipe("ties", [model("wide", weight=1, density=0.5)], "base")
    yield recipe("task_arithmetic", [model("a", weight=1)], "wide")
    yield recipe("nuslerp", [model("a", weight=1), model("wide", weight=1)])
    yield recipe("model_stock", [model("a"), model("wide")], "base")
    yield sliced("passthrough", [[source("a", 0, 2)], [source("wide", 2, 4)]])


def _tied() -> Iterator[dict[str, Any]]:
    yield recipe("linear", [model("tied", weight=1), model("tied2", weight=1)])
    yield recipe("slerp", [model("tied"), model("tied2")], "tied", t=0.4)
    yield recipe("linear", [model("tied", weight=1), model("b", weight=1)])
    yield recipe("task_arithmetic", [model("tied", weight=1)], "base")
    yield recipe("ties", [model("a", weight=1, density=0.5)], "tied")
    yield sliced("passthrough", [[source("tied", 0, 4)], [source("tied", 2, 4)]])
    yield sliced("passthrough", [[source("tied", 0, 2)], [source("tied2", 2, 4)]])


def _settings() -> Iterator[dict[str, Any]]:
    """Value forms, filters and where a value is looked up."""
    for weight in (
        [{"filter": "*", "value": 0.3}, {"value": 9}],
        [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 2}, {"value": 0.5}],
        [{"value": 0.5}, {"filter": "mlp", "value": 2}],
        [{"filter": "layers.2.", "value": 3}, {"value": 1}],
        [{"filter": "proj.weight", "value": [0.1, 0.9, 0.1]}, {"value": [5, 1]}],
        [1],
        [1, 2, 3, 4, 5, 6, 7],
    ):
        yield recipe("linear", [model("a", weight=weight), model("b", weight=1)])
    yield recipe("linear", [model("a", weight=[{"filter": "mlp", "value": 3}]), model("b")], weight=0.25)
    yield recipe("linear", [model("a", weight=1), model("b", weight=2)], normalize=[True, False])
    yield recipe(
        "linear",
        [model("a", weight=1), model("b", weight=2)],
        normalize=[{"filter": "mlp", "value": False}, {"value": True}],
    )
    yield recipe("linear", [model("a", weight=1, normalize=False), model("b", weight=2)])
    yield recipe(
        "ties",
        [model("a", weight=1, density=0.5), model("b", weight=1, density=0.5)],
        "base",
        **{"lambda": [{"filter": "mlp", "value": 0.5}, {"value": 1}]},
    )
    yield recipe("linear", [model("a", weight=1), model("b", weight=1)], unknown_thing=3)
    yield recipe("task_arithmetic", [model("a"), model("b", weight=1)], "base")  # a weight is missing
    yield recipe("linear", [model("a", weight=1)], "base")  # the base is added without a weight


def _tokenizers() -> Iterator[dict[str, Any]]:
    """Vocabularies that differ, made one."""
    pairs = [model("words", weight=0.4), model("chat", weight=0.6)]
    for tokenizer_source in ("base", "union", "chat"):
        yield {**recipe("linear", pairs, "words"), "tokenizer_source": tokenizer_source}
        yield {**recipe("task_arithmetic", [model("chat", weight=0.6)], "words"), "tokenizer_source": tokenizer_source}
        yield {**recipe("slerp", [model("words"), model("chat")], "words", t=0.3), "tokenizer_source": tokenizer_source}
    for other in ("odd", "chat"):
        yield {**recipe("linear", [model("words", weight=1), model(other, weight=1)]), "tokenizer_source": "union"}
        yield {**recipe("ties", [model(other, weight=1, density=0.5)], "words"), "tokenizer": {"source": "base"}}
    three = [model("words", weight=1), model("chat", weight=1), model("odd", weight=1)]
    yield {**recipe("linear", three), "tokenizer": {"source": "union"}}
    for said in ({"source": "words"}, {"source": "chat", "force": True}, {"source": {"kind": "zero"}}):
        yield {**recipe("linear", pairs, "words"), "tokenizer": {"source": "union", "tokens": {"<|x|>": said}}}
    yield {**recipe("linear", pairs, "words"), "tokenizer": {"source": "union", "pad_to_multiple_of": 16}}
    ends = [[source("words", 0, 2)], [source("chat", 2, 4)]]
    yield {**sliced("passthrough", ends, "words"), "tokenizer_source": "union"}


def _modules() -> Iterator[dict[str, Any]]:
    """Models of two sides."""

    def sides(encoder: Any, decoder: Any, shared: Any) -> dict[str, Any]:
        return {"encoder": encoder, "decoder": decoder, "shared": shared}

    def both(first: Any, second: Any) -> dict[str, Any]:
        return {"models": [model("t5a", weight=first), model("t5b", weight=second)]}

    pair = [model("t5a"), model("t5b")]
    linear = {"merge_method": "linear", "dtype": "float32"}
    yield recipe("linear", [model("t5a", weight=0.3), model("t5b", weight=0.7)])
    yield recipe("slerp", pair, "t5a", t=[0, 1])
    yield {**linear, "modules": sides(both(0.2, 0.8), both(0.7, 0.3), both(0.5, 0.5))}
    yield {**linear, "modules": sides(both([0, 1], 1), both(1, [1, 0]), both(1, 1)), "parameters": {"normalize": False}}
    yield {
        "merge_method": "slerp",
        "base_model": "t5a",
        "dtype": "float32",
        "modules": sides(
            {"models": pair, "parameters": {"t": [0, 1]}}, {"models": pair}, {"models": pair, "parameters": {"t": 0.9}}
        ),
        "parameters": {"t": 0.25},
    }
    cut = {"slices": [{"sources": [source("t5a", 0, 2)]}, {"sources": [source("t5b", 1, 3)]}]}
    one = {"models": [model("t5a")]}
    yield {"merge_method": "passthrough", "dtype": "float32", "modules": sides(one, cut, one)}
    yield {"merge_method": "passthrough", "dtype": "float32", "modules": sides(cut, one, one)}
    # Listed alone, the decoder brings T5's `shared` with it here, and not in mergekit, where the model is then broken.
    yield {**linear, "modules": {"decoder": both(0.5, 0.5), "shared": both(0.5, 0.5)}}
