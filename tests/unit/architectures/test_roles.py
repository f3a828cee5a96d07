"""Roles that hang on a word's surroundings."""

from __future__ import annotations

import pytest

from cuvee.architectures import Role, describe

Shapes = dict[str, tuple[int, ...]]


def layer(**modules: tuple[int, ...]) -> Shapes:
    """Two layers with these modules ("__" for a dot)."""
    shapes: Shapes = {}
    for i in range(2):
        for name, shape in {"attn__q_proj": (8, 8), "attn__k_proj": (8, 8), **modules}.items():
            shapes[f"model.layers.{i}.{name.replace('__', '.')}.weight"] = shape
    return shapes


def role(shapes: Shapes, name: str) -> Role:
    return describe(shapes).meaning(name).role


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("attention.output.dense", Role.ATTENTION_O),
        ("output.dense", Role.MLP_DOWN),
        ("intermediate.dense", Role.MLP_UP),
        ("attention.self.query", Role.ATTENTION_Q),
        ("self_attn.out_proj", Role.ATTENTION_O),
        ("mamba.out_proj", Role.MIXER),
        ("mixer.in_proj", Role.MIXER),
        ("mlp.out_proj", Role.MLP_DOWN),
        ("attn.c_proj", Role.ATTENTION_O),
        ("mlp.c_proj", Role.MLP_DOWN),
        ("attention.wo", Role.ATTENTION_O),
        ("attention.wq", Role.ATTENTION_Q),
        ("mlp.wo", Role.MLP_DOWN),
        ("EncDecAttention.v", Role.ATTENTION_V),
        ("self_attn.gate_proj", Role.OTHER),
        ("mlp.gate_proj", Role.MLP_GATE),
        ("self_attn.q_norm", Role.NORM),
        ("norm1.linear", Role.CONDITIONING),
        ("self_attn.linear_pos", Role.POSITION),
        ("attn_q", Role.ATTENTION_Q),
        ("ffn_gate", Role.MLP_GATE),
        ("ffn_down", Role.MLP_DOWN),
        ("whatever.thing", Role.OTHER),
    ],
)
def test_role_of_a_module_in_a_layer(name: str, expected: Role) -> None:
    shape = (8,) if expected is Role.NORM else (8, 8)
    assert role(layer(**{name.replace(".", "__"): shape}), f"model.layers.1.{name}.weight") is expected


def test_a_gate_beside_experts_is_a_router_and_beside_up_and_down_is_a_gate() -> None:
    routed = layer(mlp__gate=(4, 8), mlp__experts__0__up_proj=(16, 8))
    assert role(routed, "model.layers.0.mlp.gate.weight") is Role.ROUTER
    gated = layer(mlp__gate=(16, 8), mlp__up=(16, 8), mlp__down=(8, 16))
    assert role(gated, "model.layers.0.mlp.gate.weight") is Role.MLP_GATE


def test_w1_is_the_gate_only_where_there_is_a_third() -> None:
    gated = layer(feed_forward__w1=(16, 8), feed_forward__w2=(8, 16), feed_forward__w3=(16, 8))
    plain = layer(feed_forward__w1=(16, 8), feed_forward__w2=(8, 16))
    assert role(gated, "model.layers.0.feed_forward.w1.weight") is Role.MLP_GATE
    assert role(gated, "model.layers.0.feed_forward.w3.weight") is Role.MLP_UP
    assert role(plain, "model.layers.0.feed_forward.w1.weight") is Role.MLP_UP
    assert role(plain, "model.layers.0.feed_forward.w2.weight") is Role.MLP_DOWN


def test_rwkv_calls_both_its_mixers_key_and_value() -> None:
    both = {
        f"{part}__{word}": (8, 8) for part in ("attention", "feed_forward") for word in ("key", "receptance", "value")
    }
    shapes = layer(**both)
    assert role(shapes, "model.layers.0.attention.key.weight") is Role.MIXER
    assert role(shapes, "model.layers.0.feed_forward.key.weight") is Role.MLP_UP
    assert role(shapes, "model.layers.0.feed_forward.value.weight") is Role.MLP_DOWN


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", Role.EMBEDDING),
        ("embeddings.position_embeddings.weight", Role.POSITION),
        ("model.norm.weight", Role.NORM),
        ("embeddings.LayerNorm.gamma", Role.NORM),
        ("embeddings.LayerNorm.beta", Role.NORM),
        ("embeddings.position_ids", Role.BUFFER),
        ("model.rotary_emb.inv_freq", Role.BUFFER),
        ("score.weight", Role.TASK_HEAD),
        ("classifier.dense.weight", Role.TASK_HEAD),
        ("classification_head.out_proj.bias", Role.TASK_HEAD),
        ("pooler.dense.bias", Role.POOLER),
        ("visual_projection.weight", Role.PROJECTOR),
        ("multi_modal_projector.linear_2.bias", Role.PROJECTOR),
        ("lm_head.weight", Role.HEAD),
        ("cls.predictions.transform.dense.bias", Role.HEAD),
        ("cls.seq_relationship.weight", Role.TASK_HEAD),
        ("logit_scale", Role.OTHER),
        ("completely.unknown", Role.OTHER),
    ],
)
def test_role_outside_the_blocks(name: str, expected: Role) -> None:
    shapes = layer() | {name: (8,) if "orm" in name or name.endswith("bias") else (8, 8)}
    assert role(shapes, name) is expected


def test_a_plain_head_is_the_language_models_where_it_has_a_row_per_token() -> None:
    shapes = layer() | {"embed.wte.weight": (60, 8)}
    assert role(shapes | {"head.weight": (60, 8)}, "head.weight") is Role.HEAD
    assert role(shapes | {"head.weight": (3, 8)}, "head.weight") is Role.TASK_HEAD


def test_a_vector_without_a_telling_word_is_a_norm() -> None:
    shapes = layer() | {"model.layers.0.extra.3.weight": (8,), "model.layers.0.extra.3.bias": (8,)}
    assert role(shapes, "model.layers.0.extra.3.weight") is Role.NORM
    assert role(shapes, "model.layers.0.extra.3.bias") is Role.NORM


def test_quantization_scales_have_the_role_of_their_matrix() -> None:
    shapes = layer() | {
        "model.layers.0.mlp.up_proj.weight_scale_inv": (1, 1),
        "model.layers.0.mlp.up_proj.weight": (8, 8),
    }
    assert role(shapes, "model.layers.0.mlp.up_proj.weight_scale_inv") is Role.MLP_UP


def test_projections_without_their_model_have_roles() -> None:
    shapes = {f"{word}.weight": (8, 8) for word in ("q_proj", "k_proj", "o_proj")} | {"mlp.up_proj.weight": (16, 8)}
    architecture = describe(shapes)
    assert architecture.meaning("k_proj.weight").role is Role.ATTENTION_K
    assert architecture.meaning("mlp.up_proj.weight").role is Role.MLP_UP
    assert architecture.meaning("k_proj.weight").layer is None
