"""Heads of tensors, and how fused ones split."""

from __future__ import annotations

from typing import Any

import pytest

from cuvee.architectures import Fused, Part, Role, describe

Shapes = dict[str, tuple[int, ...]]
Q, K, V = Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V
GATE, UP = Role.MLP_GATE, Role.MLP_UP


def attention(q: int, kv: int, width: int = 32, layers: int = 2, **extra: tuple[int, ...]) -> Shapes:
    """Llama's attention with an MLP, and extra tensors of the attention."""
    shapes: Shapes = {}
    for i in range(layers):
        here = f"model.layers.{i}"
        for word, shape in {
            "q_proj.weight": (q, width),
            "q_proj.bias": (q,),
            "k_proj.weight": (kv, width),
            "v_proj.weight": (kv, width),
            "o_proj.weight": (width, q),
            "o_proj.bias": (width,),
            **{name.replace("__", "."): value for name, value in extra.items()},
        }.items():
            shapes[f"{here}.self_attn.{word}"] = shape
        shapes[f"{here}.mlp.up_proj.weight"] = (64, width)
        shapes[f"{here}.mlp.down_proj.weight"] = (width, 64)
    return shapes


def heads_of(shapes: Shapes, config: dict[str, Any] | None) -> dict[str, int | None]:
    architecture = describe(shapes, config)
    names = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.weight", "o_proj.weight", "o_proj.bias")
    return {name: architecture.meaning(f"model.layers.1.self_attn.{name}").heads for name in names}


CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}


def test_key_value_heads_of_keys_and_values() -> None:
    heads = heads_of(attention(q=32, kv=8), CONFIG)
    assert heads == {
        "q_proj.weight": 8,
        "q_proj.bias": 8,
        "k_proj.weight": 2,
        "v_proj.weight": 2,
        "o_proj.weight": 8,
        "o_proj.bias": None,
    }


def test_declared_head_dim_beats_the_width() -> None:
    heads = heads_of(attention(q=128, kv=32), {**CONFIG, "head_dim": 16})
    assert (heads["q_proj.weight"], heads["k_proj.weight"], heads["o_proj.weight"]) == (8, 2, 8)


def test_without_a_config_heads_are_unknown() -> None:
    assert set(heads_of(attention(q=32, kv=8), None).values()) == {None}


def test_a_norm_over_heads_forces_their_number() -> None:
    shapes = attention(q=32, kv=8, q_norm__weight=(4,), k_norm__weight=(4,))
    heads = heads_of(shapes, None)
    assert (heads["q_proj.weight"], heads["k_proj.weight"], heads["o_proj.weight"]) == (8, 2, 8)
    architecture = describe(shapes)
    assert (architecture.hidden_size, architecture.heads, architecture.kv_heads, architecture.head_dim) == (32, 8, 2, 4)


def test_a_norm_over_all_heads_at_once_forces_nothing() -> None:
    shapes = attention(q=32, kv=8, q_norm__weight=(32,), k_norm__weight=(8,))
    assert set(heads_of(shapes, None).values()) == {None}


def test_attention_sinks_force_the_heads() -> None:
    assert heads_of(attention(q=32, kv=32, sinks=(8,)), None)["q_proj.weight"] == 8


def test_pruned_layers_count_the_heads_they_have() -> None:
    shapes = attention(q=32, kv=8)
    shapes["model.layers.1.self_attn.q_proj.weight"] = (16, 32)
    shapes["model.layers.1.self_attn.o_proj.weight"] = (32, 16)
    heads = heads_of(shapes, CONFIG)
    assert (heads["q_proj.weight"], heads["o_proj.weight"], heads["k_proj.weight"]) == (4, 4, 2)


def test_output_gates_beside_the_queries_are_no_heads() -> None:
    heads = heads_of(attention(q=64, kv=8), CONFIG)
    assert heads["q_proj.weight"] == 8


def test_layers_may_have_more_key_value_heads_than_declared() -> None:
    heads = heads_of(attention(q=32, kv=16), CONFIG)
    assert (heads["k_proj.weight"], heads["v_proj.weight"]) == (4, 4)


def test_linear_attention_has_heads_of_its_own() -> None:
    assert set(heads_of(attention(q=32, kv=8, A_log=(5,)), CONFIG).values()) == {None}


def test_heads_that_do_not_fit_are_unknown() -> None:
    heads = heads_of(attention(q=31, kv=7), CONFIG)
    assert (heads["q_proj.weight"], heads["k_proj.weight"]) == (None, None)


def test_every_tower_has_the_heads_of_its_own_config() -> None:
    text = attention(q=32, kv=8)
    vision = {
        n.replace("model.layers", "vision_tower.encoder.layers"): s for n, s in attention(24, 24, width=24).items()
    }
    config = {
        "text_config": CONFIG,
        "vision_config": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    }
    architecture = describe(text | vision, config)
    assert architecture.meaning("vision_tower.encoder.layers.0.self_attn.k_proj.weight").heads == 3
    assert architecture.meaning("model.layers.0.self_attn.k_proj.weight").heads == 2
    assert (architecture.hidden_size, architecture.heads, architecture.kv_heads) == (32, 8, 2)


def fused(config: dict[str, Any], name: str, rows: int, *, transposed: bool = False) -> Shapes:
    shapes: Shapes = {}
    for i in range(2):
        here = f"transformer.h.{i}"
        shapes[f"{here}.{name}.weight"] = (32, rows) if transposed else (rows, 32)
        shapes[f"{here}.{name}.bias"] = (rows,)
        shapes[f"{here}.mlp.dense_h_to_4h.weight"] = (64, 32)
        shapes[f"{here}.mlp.dense_4h_to_h.weight"] = (32, 64)
    return shapes


def qkv(groups: int, rows: tuple[int, int, int], heads: tuple[int, int, int]) -> Fused:
    return Fused(groups, tuple(Part(role, r, h) for role, r, h in zip((Q, K, V), rows, heads, strict=True)))


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "name", "rows", "expected"),
    [
        ({"model_type": "gpt_neox"}, "attention.query_key_value", 96, qkv(4, (8, 8, 8), (1, 1, 1))),
        ({"model_type": "bloom"}, "self_attention.query_key_value", 96, qkv(4, (8, 8, 8), (1, 1, 1))),
        (
            {"model_type": "falcon", "multi_query": True},
            "self_attention.query_key_value",
            48,
            qkv(1, (32, 8, 8), (4, 1, 1)),
        ),
        (
            {"model_type": "falcon", "new_decoder_architecture": True, "multi_query": True, "num_kv_heads": 2},
            "self_attention.query_key_value",
            64,
            qkv(2, (16, 8, 8), (2, 1, 1)),
        ),
        ({"model_type": "phi3", "num_key_value_heads": 2}, "self_attn.qkv_proj", 64, qkv(1, (32, 16, 16), (4, 2, 2))),
        ({"model_type": "chatglm", "multi_query_group_num": 2}, "self_attention.query_key_value", 64,
         qkv(1, (32, 16, 16), (4, 2, 2))),
        ({"model_type": "gpt_bigcode", "multi_query": True}, "attn.c_attn", 48, qkv(1, (32, 8, 8), (4, 1, 1))),
        ({"model_type": "internlm2", "num_key_value_heads": 2}, "attention.wqkv", 64, qkv(2, (16, 8, 8), (2, 1, 1))),
        ({"model_type": "somethingnew"}, "attn.qkv", 96, qkv(1, (32, 32, 32), (4, 4, 4))),
        ({"model_type": "somethingnew"}, "self_attention.query_key_value", 96, None),
        ({"model_type": "gpt_neox"}, "attention.query_key_value", 95, None),
    ],
)  # fmt: skip
def test_order_of_queries_keys_and_values(config: dict[str, Any], name: str, rows: int, expected: Fused | None) -> None:
    architecture = describe(fused(config, name, rows), {**SIZES, **config})
    for leaf in ("weight", "bias"):
        meaning = architecture.meaning(f"transformer.h.1.{name}.{leaf}")
        assert (meaning.role, meaning.heads, meaning.fused) == (Role.ATTENTION_QKV, None, expected)


def test_codegen_keeps_its_four_parts() -> None:
    meaning = describe(fused({}, "attn.qkv_proj", 96), {**SIZES, "model_type": "codegen"}).meaning(
        "transformer.h.0.attn.qkv_proj.weight"
    )
    assert meaning.fused == Fused(4, (Part(Q, 8, 1), Part(V, 8, 1), Part(K, 8, 1)))


def gpt2(bias: bool = True) -> Shapes:
    shapes: Shapes = {"wte.weight": (60, 32), "wpe.weight": (16, 32)}
    matrices = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128), "mlp.c_proj": (128, 32)}
    for i in range(2):
        for name, shape in matrices.items():
            shapes[f"h.{i}.{name}.weight"] = shape
            if bias:
                shapes[f"h.{i}.{name}.bias"] = shape[1:]
        shapes[f"h.{i}.attn.bias"] = (1, 1, 16, 16)
        shapes[f"h.{i}.attn.masked_bias"] = ()
        shapes[f"h.{i}.ln_1.weight"] = shapes[f"h.{i}.ln_2.weight"] = (32,)
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("config", [None, {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4}])
def test_gpt2_matrices_are_stored_transposed(bias: bool, config: dict[str, Any] | None) -> None:
    architecture = describe(gpt2(bias), config)
    assert architecture.family == "gpt2"
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert architecture.meaning(f"h.1.{name}.weight").transposed
    assert not architecture.meaning("wte.weight").transposed
    split = architecture.meaning("h.0.attn.c_attn.weight").fused
    assert split is not None
    assert [part.rows for part in split.parts] == [32, 32, 32]
    assert architecture.meaning("h.0.attn.c_proj.weight").heads == (4 if config else None)
    assert architecture.hidden_size == 32


def test_the_same_names_with_plain_linear_layers_are_not_transposed() -> None:
    shapes = {
        name: shape[::-1] if len(shape) == 2 and name.startswith("h") else shape for name, shape in gpt2().items()
    }
    architecture = describe(shapes, {"model_type": "gpt_bigcode", "n_embd": 32, "n_layer": 2, "n_head": 4})
    assert not architecture.meaning("h.0.mlp.c_fc.weight").transposed


def test_masks_are_buffers() -> None:
    architecture = describe(gpt2())
    assert architecture.meaning("h.0.attn.bias").role is Role.BUFFER
    assert architecture.meaning("h.0.attn.masked_bias").role is Role.BUFFER


def moe(gate_up: tuple[int, ...], down: tuple[int, ...], *, bias: bool = False) -> Shapes:
    shapes = attention(q=32, kv=8)
    for i in range(2):
        here = f"model.layers.{i}.mlp"
        shapes |= {
            f"{here}.gate.weight": (6, 32),
            f"{here}.experts.gate_up_proj": gate_up,
            f"{here}.experts.down_proj": down,
        }
        if bias:
            shapes |= {f"{here}.experts.gate_up_proj_bias": (6, 40), f"{here}.experts.down_proj_bias": (6, 32)}
    return shapes


def test_packed_experts_of_transformers_5() -> None:
    architecture = describe(moe((6, 40, 32), (6, 32, 20)), {**CONFIG, "model_type": "mixtral"})
    meaning = architecture.meaning("model.layers.0.mlp.experts.gate_up_proj")
    assert (meaning.role, meaning.expert, meaning.packed_experts, meaning.transposed) == (
        Role.MLP_GATE_UP,
        None,
        6,
        False,
    )
    assert meaning.fused == Fused(1, (Part(GATE, 20), Part(UP, 20)))
    assert architecture.meaning("model.layers.0.mlp.experts.down_proj").packed_experts == 6
    assert architecture.meaning("model.layers.0.mlp.gate.weight").role is Role.ROUTER


def test_gpt_oss_alternates_gate_and_up_and_stores_them_transposed() -> None:
    architecture = describe(moe((6, 32, 40), (6, 20, 32), bias=True), {**CONFIG, "model_type": "gpt_oss"})
    for name in ("gate_up_proj", "gate_up_proj_bias"):
        meaning = architecture.meaning(f"model.layers.0.mlp.experts.{name}")
        assert (meaning.role, meaning.packed_experts) == (Role.MLP_GATE_UP, 6)
        assert meaning.fused == Fused(20, (Part(GATE, 1), Part(UP, 1)))
    assert architecture.meaning("model.layers.0.mlp.experts.gate_up_proj").transposed
    assert architecture.meaning("model.layers.0.mlp.experts.down_proj").transposed


@pytest.mark.parametrize(
    ("up", "down", "rows", "roles"),
    [
        ("mlp.gate_up_proj", "mlp.down_proj", 128, (GATE, UP)),
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", 128, (GATE, UP)),
        ("mlp.Wi", "mlp.Wo", 128, (GATE, UP)),
        ("ff.net.0.proj", "ff.net.2", 128, (UP, GATE)),
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", 64, None),
        ("mlp.fc1", "mlp.fc2", 64, None),
    ],
)
def test_an_up_projection_twice_as_wide_as_the_down_projection_holds_the_gate(
    up: str, down: str, rows: int, roles: tuple[Role, Role] | None
) -> None:
    shapes: Shapes = {}
    for i in range(2):
        shapes[f"layers.{i}.{up}.weight"] = (rows, 32)
        shapes[f"layers.{i}.{up}.bias"] = (rows,)
        shapes[f"layers.{i}.{down}.weight"] = (32, 64)
    architecture = describe(shapes)
    for leaf in ("weight", "bias"):
        meaning = architecture.meaning(f"layers.0.{up}.{leaf}")
        assert meaning.role is (Role.MLP_GATE_UP if roles else Role.MLP_UP)
        assert meaning.fused == (Fused(1, tuple(Part(role, 64) for role in roles)) if roles else None)
    assert architecture.meaning(f"layers.0.{down}.weight").role is Role.MLP_DOWN


def test_latent_attention_splits_keys_from_values_per_head() -> None:
    shapes: Shapes = {}
    for i in range(2):
        here = f"model.layers.{i}.self_attn"
        shapes |= {
            f"{here}.q_a_proj.weight": (12, 32),
            f"{here}.q_b_proj.weight": (4 * 12, 12),
            f"{here}.kv_a_proj_with_mqa.weight": (14, 32),
            f"{here}.kv_b_proj.weight": (4 * 14, 10),
            f"{here}.o_proj.weight": (32, 4 * 6),
        }
    config = {**SIZES, "model_type": "deepseek_v3", "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
    architecture = describe(shapes, config)
    assert architecture.meaning("model.layers.0.self_attn.q_b_proj.weight").heads == 4
    assert architecture.meaning("model.layers.0.self_attn.o_proj.weight").heads == 4
    assert architecture.meaning("model.layers.0.self_attn.q_a_proj.weight").heads is None
    assert architecture.meaning("model.layers.0.self_attn.kv_b_proj.weight").fused == Fused(
        4, (Part(K, 8, 1), Part(V, 6, 1))
    )
