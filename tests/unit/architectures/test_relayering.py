"""Layers numbered anew: names, ends, and what config.json says of them."""

from __future__ import annotations

import pytest

from cuvee.architectures import describe, is_after_layers, moves_with_its_layer, relayered_config, renumbered
from cuvee.errors import IncompatibleModels


def test_a_name_keeps_all_but_the_number_of_its_layer() -> None:
    assert renumbered("model.layers.3.mlp.experts.3.up_proj.weight", "model.layers", 12) == (
        "model.layers.12.mlp.experts.3.up_proj.weight"
    )
    with pytest.raises(IncompatibleModels, match="has no number of its own"):
        renumbered("layer1.conv.weight", "layer", 2)


@pytest.mark.parametrize(
    ("name", "is_after"),
    [
        ("model.embed_tokens.weight", False),
        ("model.norm.weight", True),
        ("lm_head.weight", True),
        ("transformer.ln_f.bias", True),
        ("transformer.wpe.weight", False),
        ("transformer.word_embeddings_layernorm.weight", False),
        ("gpt_neox.final_layer_norm.weight", True),
        ("embed_out.weight", True),
        ("score.weight", True),
        ("visual.blocks.0.attn.qkv.weight", False),
    ],
)
def test_norm_and_head_come_after_the_layers_and_the_rest_before(name: str, is_after: bool) -> None:
    shapes = {f"model.layers.{n}.mlp.{m}_proj.weight": (8, 8) for n in range(2) for m in ("up", "down")}
    assert is_after_layers(describe({**shapes, name: (8, 8)}), name) is is_after


def test_the_relative_positions_of_the_first_layer_stay_there() -> None:
    parts = ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o")
    shapes = {f"encoder.block.{n}.layer.0.{m}.weight": (8, 8) for n in range(2) for m in parts}
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found = describe({**shapes, bias: (32, 2)}, {"model_type": "t5", "num_layers": 2})
    assert not moves_with_its_layer(found, bias, {*shapes, bias})
    assert moves_with_its_layer(found, "encoder.block.0.layer.0.SelfAttention.q.weight", shapes)


CONFIG = {"text_config": {"num_hidden_layers": 4, "layer_types": list("abcd"), "cross_attention_layers": [1]}}


def test_the_part_of_the_config_that_speaks_of_the_layers_is_changed() -> None:
    config, warnings = relayered_config(CONFIG, ("text_config",), [(CONFIG, n) for n in (0, 1, 1, 2, 1)])
    assert config["text_config"] == {
        "num_hidden_layers": 5,
        "layer_types": list("abbcb"),
        "cross_attention_layers": [1, 2, 4],
    }
    assert warnings == []
    assert CONFIG["text_config"]["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("layers", "broken"), [([0, 1, 2, 3, 2, 3], False), ([0, 1, 1, 2], True), ([2, 3, 2], False), ([1, 2], True)]
)
def test_a_pattern_that_the_slices_break_up_is_said(layers: list[int], broken: bool) -> None:
    config = {"num_hidden_layers": 4, "decoder_sparse_step": 2}
    _, warnings = relayered_config(config, (), [(config, n) for n in layers])
    assert bool(warnings) is broken


def test_layers_of_another_kind_at_the_beginning_are_counted_anew() -> None:
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 1}
    assert relayered_config(config, (), [(config, n) for n in (0, 0, 1, 2)])[0]["first_k_dense_replace"] == 2
    assert relayered_config(config, (), [(config, n) for n in (1, 2)])[0]["first_k_dense_replace"] == 0
    assert relayered_config(config, (), [(config, n) for n in (1, 0)])[1]


@pytest.mark.parametrize("key", ["n_layer", "num_layers", "n_layers"])
def test_the_number_of_layers_has_many_names(key: str) -> None:
    assert relayered_config({key: 2}, (), [({}, 0)])[0] == {key: 1}


def test_a_config_that_counts_no_layers_is_left_alone_with_a_word() -> None:
    config, warnings = relayered_config({"model_type": "x"}, (), [({}, 0)])
    assert config == {"model_type": "x"}
    assert "does not say how many layers" in warnings[0]
