"""Vision and diffusion models by the names of torchvision, timm, open_clip, diffusers and ldm, written by hand."""

from __future__ import annotations

import pytest

from cuvee.architectures import Fused, Part, Role, describe

Shapes = dict[str, tuple[int, ...]]


def resnet50() -> Shapes:
    shapes: Shapes = {"conv1.weight": (8, 3, 7, 7), "bn1.weight": (8,), "bn1.bias": (8,), "bn1.running_mean": (8,)}
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            for i in (1, 2, 3):
                shapes[f"layer{stage}.{block}.conv{i}.weight"] = (8, 8, 3, 3)
                shapes[f"layer{stage}.{block}.bn{i}.weight"] = (8,)
                shapes[f"layer{stage}.{block}.bn{i}.running_var"] = (8,)
                shapes[f"layer{stage}.{block}.bn{i}.num_batches_tracked"] = ()
        shapes[f"layer{stage}.0.downsample.0.weight"] = (8, 8, 1, 1)
        shapes[f"layer{stage}.0.downsample.1.weight"] = (8,)
        shapes[f"layer{stage}.0.downsample.1.bias"] = (8,)
    return shapes | {"fc.weight": (10, 8), "fc.bias": (10,)}


def spatial_transformer(prefix: str, width: int) -> Shapes:
    block = f"{prefix}.transformer_blocks.0"
    shapes: Shapes = {f"{prefix}.norm.weight": (width,), f"{prefix}.proj_in.weight": (width, width, 1, 1)}
    for attention, context in (("attn1", width), ("attn2", 24)):
        shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
        shapes[f"{block}.{attention}.to_k.weight"] = (width, context)
        shapes[f"{block}.{attention}.to_v.weight"] = (width, context)
        shapes[f"{block}.{attention}.to_out.0.weight"] = (width, width)
        shapes[f"{block}.{attention}.to_out.0.bias"] = (width,)
    shapes[f"{block}.ff.net.0.proj.weight"] = (8 * width, width)
    shapes[f"{block}.ff.net.2.weight"] = (width, 4 * width)
    shapes[f"{block}.norm1.weight"] = (width,)
    return shapes


def diffusers_resnet(prefix: str, width: int) -> Shapes:
    return {
        f"{prefix}.norm1.weight": (width,),
        f"{prefix}.conv1.weight": (width, width, 3, 3),
        f"{prefix}.time_emb_proj.weight": (width, 32),
        f"{prefix}.conv2.weight": (width, width, 3, 3),
        f"{prefix}.conv2.bias": (width,),
    }


def diffusers_unet() -> Shapes:
    shapes: Shapes = {"conv_in.weight": (8, 4, 3, 3), "time_embedding.linear_1.weight": (32, 8)}
    for side in ("down_blocks", "up_blocks"):
        for i in range(4):
            for j in range(2):
                shapes |= diffusers_resnet(f"{side}.{i}.resnets.{j}", 8)
                if i < 3:
                    shapes |= spatial_transformer(f"{side}.{i}.attentions.{j}", 8)
    for j in range(2):
        shapes |= diffusers_resnet(f"mid_block.resnets.{j}", 8)
    shapes |= spatial_transformer("mid_block.attentions.0", 8)
    return shapes | {"conv_norm_out.weight": (8,), "conv_out.weight": (4, 8, 3, 3)}


def ldm_resnet(prefix: str) -> Shapes:
    return {
        f"{prefix}.in_layers.0.weight": (8,),
        f"{prefix}.in_layers.2.weight": (8, 8, 3, 3),
        f"{prefix}.emb_layers.1.weight": (8, 32),
        f"{prefix}.out_layers.0.weight": (8,),
        f"{prefix}.out_layers.3.weight": (8, 8, 3, 3),
    }


def ldm_unet() -> Shapes:
    root = "model.diffusion_model"
    shapes: Shapes = {f"{root}.time_embed.0.weight": (32, 8), f"{root}.input_blocks.0.0.weight": (8, 4, 3, 3)}
    for i in range(1, 12):
        if i in (3, 6, 9):
            shapes[f"{root}.input_blocks.{i}.0.op.weight"] = (8, 8, 3, 3)
            continue
        shapes |= ldm_resnet(f"{root}.input_blocks.{i}.0")
        if i < 9:
            shapes |= spatial_transformer(f"{root}.input_blocks.{i}.1", 8)
    shapes |= ldm_resnet(f"{root}.middle_block.0") | ldm_resnet(f"{root}.middle_block.2")
    shapes |= spatial_transformer(f"{root}.middle_block.1", 8)
    for i in range(12):
        shapes |= ldm_resnet(f"{root}.output_blocks.{i}.0")
        if i > 2:
            shapes |= spatial_transformer(f"{root}.output_blocks.{i}.1", 8)
    for i in range(2):
        for word in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"cond_stage_model.transformer.text_model.encoder.layers.{i}.self_attn.{word}.weight"] = (8, 8)
    for i in range(4):
        for j in range(2):
            for conv in ("conv1", "conv2"):
                shapes[f"first_stage_model.encoder.down.{i}.block.{j}.{conv}.weight"] = (8, 8, 3, 3)
    return shapes


def timm_blocks(layers: int) -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, 12), "pos_embed": (1, 5, 12), "patch_embed.proj.weight": (12, 3, 4, 4)}
    for i in range(layers):
        for name, shape in {
            "norm1.weight": (12,),
            "attn.qkv.weight": (36, 12),
            "attn.qkv.bias": (36,),
            "attn.proj.weight": (12, 12),
            "ls1.gamma": (12,),
            "norm2.weight": (12,),
            "mlp.fc1.weight": (48, 12),
            "mlp.fc2.weight": (12, 48),
        }.items():
            shapes[f"blocks.{i}.{name}"] = shape
    return shapes | {"norm.weight": (12,), "head.weight": (10, 12), "head.bias": (10,)}


def test_resnet_blocks_are_counted_through_all_stages() -> None:
    architecture = describe(resnet50())
    assert architecture.stacks == {"layer": 16}
    assert architecture.family == "torchvision_resnet"
    firsts = [architecture.meaning(f"layer{stage}.0.conv1.weight").layer for stage in (1, 2, 3, 4)]
    assert firsts == [0, 3, 7, 13]
    assert architecture.position("layer4.2.conv3.weight") == 1.0
    assert architecture.meaning("conv1.weight").layer is None


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("conv1.weight", Role.CONV),
        ("bn1.bias", Role.NORM),
        ("bn1.running_mean", Role.NORM_STATISTIC),
        ("layer2.1.bn3.running_var", Role.NORM_STATISTIC),
        ("layer2.1.bn3.num_batches_tracked", Role.BUFFER),
        ("layer1.0.downsample.0.weight", Role.CONV),
        ("layer1.0.downsample.1.weight", Role.NORM),
        ("layer1.0.downsample.1.bias", Role.NORM),
        ("fc.weight", Role.TASK_HEAD),
        ("fc.bias", Role.TASK_HEAD),
    ],
)
def test_resnet_roles(name: str, role: Role) -> None:
    assert describe(resnet50()).meaning(name).role is role


def test_unet_of_diffusers_counts_its_blocks() -> None:
    architecture = describe(diffusers_unet())
    assert architecture.family == "sd_unet"
    assert architecture.stacks == {"down_blocks": 4, "mid_block": 1, "up_blocks": 4}
    meaning = architecture.meaning("down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight")
    assert (meaning.layer, meaning.stack, meaning.role) == (0, "down_blocks", Role.ATTENTION_K)
    assert architecture.meaning("mid_block.resnets.1.conv1.weight").layer == 0
    assert architecture.meaning("conv_out.weight").layer is None


@pytest.mark.parametrize(
    ("tail", "role"),
    [
        ("resnets.0.conv1.weight", Role.CONV),
        ("resnets.0.conv2.bias", Role.CONV),
        ("resnets.0.time_emb_proj.weight", Role.CONDITIONING),
        ("attentions.0.transformer_blocks.0.attn1.to_out.0.bias", Role.ATTENTION_O),
        ("attentions.0.transformer_blocks.0.ff.net.0.proj.weight", Role.MLP_GATE_UP),
        ("attentions.0.transformer_blocks.0.ff.net.2.weight", Role.MLP_DOWN),
        ("attentions.0.transformer_blocks.0.norm1.weight", Role.NORM),
        ("attentions.0.proj_in.weight", Role.CONV),
    ],
)
def test_unet_roles(tail: str, role: Role) -> None:
    assert describe(diffusers_unet()).meaning(f"down_blocks.1.{tail}").role is role


def test_geglu_has_its_gate_behind() -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    assert describe(diffusers_unet()).meaning(name).fused == Fused(1, (Part(Role.MLP_UP, 32), Part(Role.MLP_GATE, 32)))


def test_whole_stable_diffusion_checkpoint_has_every_stack_apart() -> None:
    assert describe(ldm_unet()).stacks == {
        "cond_stage_model.transformer.text_model.encoder.layers": 2,
        "first_stage_model.encoder.down": 8,
        "model.diffusion_model.input_blocks": 12,
        "model.diffusion_model.middle_block": 1,
        "model.diffusion_model.output_blocks": 12,
    }


def test_sub_blocks_of_ldm_are_no_layers() -> None:
    architecture = describe(ldm_unet())
    root = "model.diffusion_model"
    layers = {
        f"{root}.input_blocks.0.0.weight": 0,
        f"{root}.input_blocks.3.0.op.weight": 3,
        f"{root}.input_blocks.8.1.transformer_blocks.0.attn1.to_q.weight": 8,
        f"{root}.middle_block.1.transformer_blocks.0.attn1.to_q.weight": 0,
        f"{root}.output_blocks.11.1.proj_in.weight": 11,
        f"{root}.time_embed.0.weight": None,
        "first_stage_model.encoder.down.1.block.0.conv1.weight": 2,
    }
    assert {name: architecture.meaning(name).layer for name in layers} == layers


def test_timm_vision_transformer() -> None:
    architecture = describe(timm_blocks(3))
    assert (architecture.family, architecture.stacks, architecture.hidden_size) == ("timm_vit", {"blocks": 3}, 12)
    roles = {
        "cls_token": Role.EMBEDDING,
        "pos_embed": Role.POSITION,
        "patch_embed.proj.weight": Role.EMBEDDING,
        "blocks.0.attn.qkv.bias": Role.ATTENTION_QKV,
        "blocks.0.attn.proj.weight": Role.ATTENTION_O,
        "blocks.0.ls1.gamma": Role.LAYER_SCALE,
        "blocks.0.mlp.fc1.weight": Role.MLP_UP,
        "head.weight": Role.TASK_HEAD,
        "head.bias": Role.TASK_HEAD,
    }
    assert {name: architecture.meaning(name).role for name in roles} == roles


def test_dit_has_its_modulation() -> None:
    shapes = timm_blocks(2) | {f"blocks.{i}.adaLN_modulation.1.weight": (72, 12) for i in range(2)}
    shapes |= {"t_embedder.mlp.0.weight": (12, 8), "final_layer.adaLN_modulation.1.weight": (24, 12)}
    architecture = describe(shapes)
    assert architecture.family == "dit"
    for name in shapes:
        if "adaLN" in name or "t_embedder" in name:
            assert architecture.meaning(name).role is Role.CONDITIONING


def test_open_clip_towers_and_the_projections_of_torch_attention() -> None:
    shapes: Shapes = {"positional_embedding": (7, 12), "visual.conv1.weight": (12, 3, 4, 4), "logit_scale": ()}
    for prefix in ("transformer.resblocks", "visual.transformer.resblocks"):
        for i in range(2):
            block = f"{prefix}.{i}"
            shapes[f"{block}.attn.in_proj_weight"] = (36, 12)
            shapes[f"{block}.attn.in_proj_bias"] = (36,)
            shapes[f"{block}.attn.out_proj.weight"] = (12, 12)
            shapes[f"{block}.mlp.c_fc.weight"] = (48, 12)
            shapes[f"{block}.mlp.c_proj.weight"] = (12, 48)
            shapes[f"{block}.ln_1.weight"] = (12,)
            shapes[f"{block}.ln_2.weight"] = (12,)
    architecture = describe(shapes)
    assert architecture.stacks == {"transformer.resblocks": 2, "visual.transformer.resblocks": 2}
    assert architecture.family == "open_clip"
    meaning = architecture.meaning("transformer.resblocks.1.attn.in_proj_bias")
    parts = tuple(Part(role, 12) for role in (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V))
    assert (meaning.role, meaning.fused) == (Role.ATTENTION_QKV, Fused(1, parts))


def test_flux_blocks_that_hold_attention_and_mlp_at_once_are_not_taken_for_an_mlp() -> None:
    shapes: Shapes = {}
    for i in range(2):
        shapes[f"double_blocks.{i}.img_attn.qkv.weight"] = (36, 12)
        shapes[f"double_blocks.{i}.img_attn.proj.weight"] = (12, 12)
        shapes[f"double_blocks.{i}.img_mlp.0.weight"] = (48, 12)
        shapes[f"double_blocks.{i}.img_mlp.2.weight"] = (12, 48)
        shapes[f"double_blocks.{i}.img_mod.lin.weight"] = (72, 12)
        shapes[f"single_blocks.{i}.linear1.weight"] = (36 + 48, 12)
        shapes[f"single_blocks.{i}.linear2.weight"] = (12, 12 + 48)
        shapes[f"single_blocks.{i}.modulation.lin.weight"] = (36, 12)
    architecture = describe(shapes)
    assert architecture.stacks == {"double_blocks": 2, "single_blocks": 2}
    assert architecture.meaning("single_blocks.0.linear1.weight").role is Role.OTHER
    assert architecture.meaning("double_blocks.1.img_mlp.0.weight").role is Role.MLP_UP
    assert architecture.meaning("double_blocks.1.img_attn.proj.weight").role is Role.ATTENTION_O
    assert architecture.meaning("double_blocks.1.img_mod.lin.weight").role is Role.CONDITIONING
