"""Names and configs that no model has: no error, and time linear in their length."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest

from cuvee.architectures import Role, TensorMeaning, describe

GOOD = {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(3)
    for name, shape in {"self_attn.q_proj": (8, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16)}.items()
}

HOSTILE_NAMES = [
    "",
    ".",
    "...",
    "0",
    "weight",
    "bias",
    "0.0.0.0",
    "model.layers",
    "model.layers.",
    "model.layers.99999999999.mlp.up_proj.weight",
    "model.layers.999999.mlp.up_proj.weight",
    "model.layers.-1.mlp.up_proj.weight",
    "model.layers.01.mlp.up_proj.weight",
    "model.layers.٣.mlp.up_proj.weight",
    "model.layers.²",
    "layer999999999999",
    "experts",
    "model.layers.1.experts.99999999999999",
    "lora_A",
    "model.layers.1.mlp.0",
    "model.layers.1.0",
    "\x00\n",
    "a" * 10_000,
    ".".join(["0"] * 5_000),
    ".".join(["layers", "0"] * 2_000),
    "layer" * 2_000,
    "_" * 10_000,
    "layers.1" + ".x" * 400,
    "layers.1" + ".attn_q" * 60,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
@pytest.mark.parametrize("shape", [(), (0,), (8,), (8, 8), (0, 0, 0), (1 << 62, 1 << 62), (1, 1, 2, 2), (1,) * 9])
def test_no_name_is_an_error_or_moves_the_others(name: str, shape: tuple[int, ...]) -> None:
    architecture = describe(GOOD | {name: shape})
    assert architecture.stacks == {"model.layers": 3}
    meaning = architecture.meaning(name)
    assert meaning.layer in (None, 1)
    assert architecture.position("model.layers.1.mlp.up_proj.weight") == 0.5
    alone = describe({name: shape})
    assert isinstance(alone.meaning(name), TensorMeaning)
    assert alone.position(name) is None or 0.0 <= alone.position(name) <= 1.0  # type: ignore[operator]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_hidden_layers": "three", "num_attention_heads": None, "hidden_size": [8], "head_dim": {}},
        {"num_hidden_layers": -1, "num_attention_heads": 0, "hidden_size": 0, "num_key_value_heads": -4},
        {"num_hidden_layers": True, "num_attention_heads": 2.0, "hidden_size": 10**40},
        {"tie_word_embeddings": "yes", "model_type": 7, "architectures": [None, 3]},
        {"architectures": "LlamaForCausalLM", "text_config": [1], "vision_config": "clip"},
        {1: 2, None: {}, ("a",): {"hidden_size": 8}},
        {"attn_config": 3, "encoder_layers": "x", "model_type": "llama"},
        [],
        "llama",
        3,
    ],
)
def test_no_config_is_an_error(config: Any) -> None:
    architecture = describe(GOOD | {"model.embed_tokens.weight": (60, 8)}, config)
    assert architecture.stacks == {"model.layers": 3}
    assert architecture.meaning("model.layers.2.mlp.up_proj.weight").role is Role.MLP_UP


def test_a_config_within_itself_is_read_no_deeper_than_it_makes_sense() -> None:
    config: dict[str, Any] = {"hidden_size": 8}
    config["text_config"] = config["vision_config"] = config
    assert describe(GOOD, config).stacks == {"model.layers": 3}


def test_long_names_cost_time_in_proportion() -> None:
    names = [".".join(["layers.0.attn_q"] * 20 + [str(i)]) for i in range(500)] + [
        "x" * 100_000 + str(i) for i in range(50)
    ]
    start = time.perf_counter()
    architecture = describe(dict.fromkeys(names, (8, 8)))
    for name in names:
        architecture.meaning(name)
    assert time.perf_counter() - start < 10


def test_an_empty_model_has_an_architecture() -> None:
    architecture = describe({})
    assert (architecture.stacks, architecture.tied, architecture.family, architecture.heads) == ({}, {}, None, None)
    assert architecture.meaning("model.norm.weight").role is Role.NORM


def test_an_architecture_travels_to_another_process() -> None:
    architecture = describe(GOOD, {"model_type": "llama"})
    copy = pickle.loads(pickle.dumps(architecture))
    assert copy == architecture
    assert copy.meaning("model.layers.2.mlp.up_proj.weight") == architecture.meaning(
        "model.layers.2.mlp.up_proj.weight"
    )


def test_the_order_of_names_does_not_matter() -> None:
    one, other = describe(GOOD), describe(dict(reversed(GOOD.items())))
    assert one == other
    assert all(one.meaning(name) == other.meaning(name) for name in GOOD)
