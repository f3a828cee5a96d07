"""Numbers that count layers, and numbers that do not."""

from __future__ import annotations

import pytest

from cuvee.architectures import Architecture, Role, describe

Shapes = dict[str, tuple[int, ...]]


def transformer(prefix: str, layers: int, width: int = 8) -> Shapes:
    """A stack of Llama's layers."""
    shapes: Shapes = {}
    for i in range(layers):
        for word in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}.{i}.self_attn.{word}.weight"] = (width, width)
        shapes[f"{prefix}.{i}.mlp.up_proj.weight"] = (2 * width, width)
        shapes[f"{prefix}.{i}.mlp.down_proj.weight"] = (width, 2 * width)
        shapes[f"{prefix}.{i}.input_layernorm.weight"] = (width,)
    return shapes


def layers_of(architecture: Architecture, shapes: Shapes) -> dict[str, int | None]:
    return {name: architecture.meaning(name).layer for name in shapes}


def test_position_runs_from_zero_to_one_over_the_stack() -> None:
    architecture = describe(transformer("model.layers", 5) | {"model.norm.weight": (8,)})
    assert [architecture.position(f"model.layers.{i}.mlp.up_proj.weight") for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert architecture.position("model.norm.weight") is None


def test_the_only_layer_of_a_stack_is_at_position_one() -> None:
    architecture = describe(transformer("h", 1))
    assert architecture.stacks == {"h": 1}
    assert architecture.position("h.0.mlp.up_proj.weight") == 1.0


def test_every_stack_has_its_own_count() -> None:
    shapes = transformer("encoder.layers", 4) | transformer("decoder.layers", 2) | transformer("vision.blocks", 3)
    architecture = describe(shapes)
    assert architecture.stacks == {"decoder.layers": 2, "encoder.layers": 4, "vision.blocks": 3}
    assert architecture.n_layers("encoder.layers.3.mlp.up_proj.weight") == 4
    assert architecture.position("decoder.layers.1.mlp.up_proj.weight") == 1.0


def test_expert_indices_are_no_layers() -> None:
    shapes = transformer("model.layers", 2)
    for layer in range(2):
        shapes[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = (7, 8)
        for expert in range(7):
            for word in ("w1", "w2", "w3"):
                shape = (8, 16) if word == "w2" else (16, 8)
                shapes[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{word}.weight"] = shape
    architecture = describe(shapes)
    meaning = architecture.meaning("model.layers.1.block_sparse_moe.experts.6.w1.weight")
    assert architecture.stacks == {"model.layers": 2}
    assert (meaning.layer, meaning.expert, meaning.role) == (1, 6, Role.MLP_GATE)
    roles = {
        w: architecture.meaning(f"model.layers.0.block_sparse_moe.experts.5.{w}.weight").role for w in ("w2", "w3")
    }
    assert roles == {"w2": Role.MLP_DOWN, "w3": Role.MLP_UP}
    assert architecture.meaning("model.layers.0.block_sparse_moe.gate.weight").role is Role.ROUTER


@pytest.mark.parametrize(
    ("tail", "expert"),
    [
        ("mlp.experts.12.up_proj.weight", 12),
        ("mlp.experts.expert_3.wi.weight", 3),
        ("ffn.experts.mlp.expert_w1.5", 5),
        ("mlp.experts.gate_up_proj", None),
        ("mlp.shared_experts.up_proj.weight", None),
        ("mlp.shared_expert.up_proj.weight", None),
        ("mlp.expert_gate.0.weight", None),
        ("mlp.up_proj.weight", None),
    ],
)
def test_expert_index_in_its_spellings(tail: str, expert: int | None) -> None:
    name = f"model.layers.1.{tail}"
    shapes = transformer("model.layers", 2) | {name: (4, 16, 8) if tail.endswith("gate_up_proj") else (16, 8)}
    assert describe(shapes).meaning(name).expert == expert


def test_lora_and_adapter_numerals_are_no_layers() -> None:
    shapes: Shapes = {}
    for layer in range(3):
        for word in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{word}"
            shapes[f"{name}.lora_A.1.weight"] = (4, 8)
            shapes[f"{name}.lora_B.1.weight"] = (8, 4)
    architecture = describe(shapes)
    assert architecture.stacks == {"base_model.model.model.layers": 3}
    meaning = architecture.meaning("base_model.model.model.layers.2.self_attn.q_proj.lora_B.1.weight")
    assert (meaning.layer, meaning.role, meaning.heads) == (2, Role.ATTENTION_Q, None)


def test_sub_blocks_of_t5_are_no_layers() -> None:
    shapes: Shapes = {}
    for block in range(3):
        for word in "qkvo":
            shapes[f"decoder.block.{block}.layer.0.SelfAttention.{word}.weight"] = (8, 8)
            shapes[f"decoder.block.{block}.layer.1.EncDecAttention.{word}.weight"] = (8, 8)
        shapes[f"decoder.block.{block}.layer.2.DenseReluDense.wi.weight"] = (16, 8)
        shapes[f"decoder.block.{block}.layer.2.DenseReluDense.wo.weight"] = (8, 16)
        for sub in range(3):
            shapes[f"decoder.block.{block}.layer.{sub}.layer_norm.weight"] = (8,)
    architecture = describe(shapes)
    assert architecture.stacks == {"decoder.block": 3}
    assert architecture.meaning("decoder.block.1.layer.2.DenseReluDense.wo.weight").layer == 1


def test_convolutions_and_heads_in_sequence_are_no_layers() -> None:
    outside = {
        "feature_extractor.conv_layers.0.conv.weight": (8, 1, 3),
        "feature_extractor.conv_layers.1.conv.weight": (8, 8, 3),
        "classifier.0.weight": (8, 8),
        "classifier.2.weight": (3, 8),
        "visual.merger.mlp.0.weight": (8, 8),
        "visual.merger.mlp.2.weight": (8, 8),
        "bbox_predictor.layers.0.weight": (8, 8),
        "bbox_predictor.layers.1.weight": (4, 8),
        "quantizer.layers.0.codebook.embed": (16, 8),
        "quantizer.layers.1.codebook.embed": (16, 8),
    }
    architecture = describe(transformer("encoder.layers", 2) | outside)
    assert architecture.stacks == {"encoder.layers": 2}
    assert set(layers_of(architecture, outside).values()) == {None}


def test_a_wrapper_with_a_number_in_front_is_no_layer_list() -> None:
    architecture = describe(transformer("0.auto_model.encoder.layer", 3) | {"2.linear.weight": (4, 8)})
    assert architecture.stacks == {"0.auto_model.encoder.layer": 3}


def test_members_of_an_ensemble_keep_their_own_stacks() -> None:
    architecture = describe(transformer("models.0.model.layers", 2) | transformer("models.1.model.layers", 3))
    assert architecture.stacks == {"models.0.model.layers": 2, "models.1.model.layers": 3}


def test_layers_may_differ_in_kind_and_shape() -> None:
    shapes = transformer("model.layers", 4)
    for word in ("q_proj", "k_proj", "v_proj", "o_proj"):
        del shapes[f"model.layers.2.self_attn.{word}.weight"]
    shapes["model.layers.1.mlp.up_proj.weight"] = (6, 8)
    shapes["model.layers.1.mlp.down_proj.weight"] = (8, 6)
    assert describe(shapes).stacks == {"model.layers": 4}


def test_an_unknown_list_that_is_most_of_the_model_counts() -> None:
    shapes = {name.replace("model.layers", "trunk.units"): s for name, s in transformer("model.layers", 3).items()}
    assert describe(shapes).stacks == {"trunk.units": 3}


def test_some_tensors_of_a_model_have_their_layers() -> None:
    shapes = {"model.layers.0.mlp.down_proj.weight": (8, 16), "model.layers.3.mlp.up_proj.weight": (16, 8)}
    assert describe(shapes).stacks == {"model.layers": 4}
    assert describe(shapes, {"num_hidden_layers": 6}).stacks == {"model.layers": 6}
    assert describe(transformer("model.layers", 2), {"num_hidden_layers": 6}).stacks == {"model.layers": 6}


def test_shared_layers_count_once() -> None:
    shapes = transformer("albert.encoder.albert_layer_groups.0.albert_layers", 1)
    architecture = describe(shapes, {"num_hidden_layers": 12, "num_hidden_groups": 1})
    assert list(architecture.stacks.values()) == [1]


def test_a_prediction_layer_behind_the_last_one_is_outside() -> None:
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    architecture = describe(transformer("model.layers", 4), config)
    assert architecture.stacks == {"model.layers": 3}
    meaning = architecture.meaning("model.layers.3.self_attn.q_proj.weight")
    assert (meaning.layer, meaning.stack, meaning.role) == (None, "", Role.ATTENTION_Q)


def test_a_name_that_was_not_described_is_read_by_the_same_rules() -> None:
    architecture = describe(transformer("model.layers", 3))
    assert architecture.meaning("model.layers.2.self_attn.q_proj.bias").layer == 2
    assert architecture.meaning("model.layers.2.self_attn.q_proj.bias").role is Role.ATTENTION_Q
    assert architecture.meaning("model.layers.3.self_attn.q_proj.bias").layer is None


def test_a_plain_network_of_numbered_layers_is_a_stack() -> None:
    shapes = {f"layer{i}.{leaf}": (8, 8) if leaf == "weight" else (8,) for i in range(4) for leaf in ("weight", "bias")}
    architecture = describe(shapes)
    assert architecture.stacks == {"layer": 4}
    assert architecture.position("layer3.weight") == 1.0


def test_names_without_numbers_have_no_layers() -> None:
    architecture = describe({"fc1.weight": (8, 4), "fc2.weight": (4, 8), "emb.weight": (10, 4)})
    assert architecture.stacks == {}
    assert architecture.position("fc1.weight") is None
