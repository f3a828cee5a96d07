"""fp8 weights times their scales, and quantized formats that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import assert_blocks_agree, read_model, same_bytes
from safetensors.torch import save_file

from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import StoredTensor
from cuvee.errors import CheckpointError

FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


def codes(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def expected(q: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """W = q · scale, the last blocks cut short."""
    full = scale.float().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return q.float() * full[..., : q.shape[-2], : q.shape[-1]]


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("shape", [(256, 384), (300, 200), (1, 129), (64, 64), (3, 200, 130)])
def test_blocks_are_multiplied_and_the_last_ones_cut_short(
    shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    q = codes(*shape, dtype=dtype)
    scale = torch.rand(*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128)) + 0.5
    folder = write(tmp_path, {"a.weight": q, "a.weight_scale_inv": scale, "norm.weight": torch.ones(3)}, BLOCKS)
    model = open_model(folder)
    got = read_model(model)
    assert set(got) == {"a.weight", "norm.weight"}
    assert same_bytes(got["a.weight"], expected(q, scale, (128, 128)))
    assert_blocks_agree(model.tensors["a.weight"], got["a.weight"])
    assert model.config is not None and "quantization_config" not in model.config


def test_the_configured_block_wins_over_a_guess_that_would_divide(tmp_path: Path) -> None:
    """200 rows in 2 blocks: of 128 rows by the config, not of 100."""
    q, scale = codes(200, 256), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model = open_model(write(tmp_path, {"a.weight": q, "a.weight_scale_inv": scale}, BLOCKS))
    assert same_bytes(read_model(model)["a.weight"], expected(q, scale, (128, 128)))


@pytest.mark.parametrize(
    ("scale_shape", "block"),
    [((), (6, 8)), ((1,), (6, 8)), ((1, 1), (6, 8)), ((6,), (1, 8)), ((6, 1), (1, 8)), ((6, 2), (1, 4))],
)
def test_scales_per_tensor_channel_and_group(
    scale_shape: tuple[int, ...], block: tuple[int, int], tmp_path: Path
) -> None:
    q, scale = codes(6, 8), torch.rand(scale_shape) + 0.5
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}}
    model = open_model(write(tmp_path, {"a.weight": q, "a.weight_scale": scale}, config))
    grid = scale.reshape(-1, 1) if scale.dim() < 2 else scale
    got = read_model(model)["a.weight"]
    assert same_bytes(got, expected(q, grid, block))
    assert_blocks_agree(model.tensors["a.weight"], got)


def test_config_of_the_text_part_is_read_and_cleaned(tmp_path: Path) -> None:
    q, scale = codes(10, 12), torch.rand(3, 2)
    part = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 8]}, "hidden_size": 4}
    model = open_model(write(tmp_path, {"a.weight": q, "a.weight_scale_inv": scale}, {"text_config": part}))
    assert same_bytes(read_model(model)["a.weight"], expected(q, scale, (4, 8)))
    assert model.config == {"text_config": {"hidden_size": 4}}


def test_block_structure_of_compressed_tensors_is_read(tmp_path: Path) -> None:
    q, scale = codes(10, 12), torch.rand(3, 2)
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [4, 8]}
    config = {
        "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    }
    model = open_model(write(tmp_path, {"a.weight": q, "a.weight_scale": scale}, config))
    assert same_bytes(read_model(model)["a.weight"], expected(q, scale, (4, 8)))


def test_every_code_has_the_value_that_torch_gives_it(tmp_path: Path) -> None:
    for dtype in FP8:
        q = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(16, 16)
        model = open_model(write(tmp_path, {"a.weight": q, "a.weight_scale": torch.ones(1)}))
        torch.testing.assert_close(read_model(model)["a.weight"], q.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_scales_that_are_exponents_are_powers_of_two(as_bytes: bool, tmp_path: Path) -> None:
    exponents = torch.tensor([[120, 127], [130, 0]], dtype=torch.uint8)
    q = codes(200, 200)
    scale = exponents if as_bytes else exponents.view(torch.float8_e8m0fnu)
    model = open_model(write(tmp_path, {"a.weight": q, "a.scale": scale}, BLOCKS))
    powers = (exponents.double() - 127).exp2().float()
    assert same_bytes(read_model(model)["a.weight"], expected(q, powers, (128, 128)))


def test_experts_may_have_a_scale_each(tmp_path: Path) -> None:
    q, scale = codes(3, 4, 6), torch.tensor([1.0, 2.0, 3.0])
    model = open_model(write(tmp_path, {"experts.up_proj": q, "experts.up_proj_scale_inv": scale.reshape(3, 1, 1)}))
    got = read_model(model)["experts.up_proj"]
    assert same_bytes(got, q.float() * scale[:, None, None])
    assert_blocks_agree(model.tensors["experts.up_proj"], got)


def test_scales_of_activations_are_left_out_and_said(tmp_path: Path) -> None:
    extra = {"a.input_scale": torch.ones(()), "a.weight_zero_point": torch.zeros(1), "k_scale": torch.ones(1)}
    model = open_model(write(tmp_path, {"a.weight": codes(4, 4), "a.weight_scale": torch.ones(1), **extra}))
    assert set(model.tensors) == {"a.weight"}
    assert any("activations" in note for note in model.notes)


def test_fp8_without_scales_stays_as_stored_for_the_planner_to_refuse(tmp_path: Path) -> None:
    model = open_model(
        write(tmp_path, {"a.weight": codes(4, 4), "b.weight": codes(4, 4), "b.weight_scale": torch.ones(1)})
    )
    assert isinstance(model.tensors["a.weight"], StoredTensor)
    assert model.tensors["a.weight"].dtype.kind == "scaled"
    assert model.tensors["b.weight"].dtype.name == "F32"


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (torch.ones(3, 3), "do not suit each other"),
        (torch.ones(2, 1), "do not suit each other"),
        (torch.ones(1, dtype=torch.int64), "scale is I64"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scale: torch.Tensor, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_model(write(tmp_path, {"a.weight": codes(200, 300), "a.weight_scale_inv": scale}, BLOCKS))


def test_zero_points_other_than_0_are_refused(tmp_path: Path) -> None:
    tensors = {"a.weight": codes(4, 4), "a.weight_scale": torch.ones(1), "a.weight_zero_point": torch.ones(1)}
    with pytest.raises(CheckpointError, match="zero point"):
        open_model(write(tmp_path, tensors))


INTS, BYTES = torch.ones(4, 4, dtype=torch.int32), torch.ones(4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        ({"q.qweight": INTS, "q.qzeros": INTS, "q.scales": torch.ones(4)}, "gptq", "GPTQ"),
        ({"q.qweight": INTS, "q.qzeros": INTS, "q.scales": torch.ones(4)}, "awq", "AWQ"),
        ({"q.weight": BYTES, "q.weight.absmax": torch.ones(4)}, "bitsandbytes", "bitsandbytes 4-bit"),
        ({"q.weight.quant_state.bitsandbytes__nf4": BYTES}, "bitsandbytes", "bitsandbytes 4-bit"),
        ({"q.weight": BYTES.to(torch.int8), "q.SCB": torch.ones(4)}, "bitsandbytes", "LLM.int8"),
        ({"q.weight_packed": INTS, "q.weight_scale": torch.ones(4, 1)}, "compressed-tensors", "compressed-tensors"),
        ({"q.weight": BYTES.to(torch.int8), "q.weight_scale": torch.ones(4, 1)}, "compressed-tensors", "8 bits"),
        ({"e.down_proj_blocks": BYTES, "e.down_proj_scales": BYTES}, "mxfp4", "MXFP4"),
        ({"q.W_q": BYTES, "q.scale": torch.ones(1)}, "hqq", "HQQ"),
        ({"q.codes": BYTES.to(torch.int16), "q.codebooks": torch.ones(2)}, "aqlm", "AQLM"),
        ({"q.weight": BYTES, "q.weight_scale": torch.ones(1)}, "some_new_one", "some_new_one"),
        ({"q.weight": BYTES}, None, "8 bits"),
    ],
)  # fmt: skip
def test_other_quantized_formats_are_refused_by_name(
    tensors: dict[str, torch.Tensor], config: str | None, said: str, tmp_path: Path
) -> None:
    settings = {"quantization_config": {"quant_method": config}} if config else {}
    with pytest.raises(CheckpointError, match=said) as caught:
        open_model(write(tmp_path, {**tensors, "norm.weight": torch.ones(4)}, settings))
    assert "dequantize()" in caught.value.right and str(tmp_path) in caught.value.where


def test_plain_weights_with_a_quantization_config_left_over_are_read(tmp_path: Path) -> None:
    """Merges were published so: the config of a parent that was quantized, and weights that are not."""
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "hidden_size": 4}
    model = open_model(write(tmp_path, {"a.weight": torch.ones(4, 4), "ids": torch.arange(4)}, config))
    assert model.config == {"hidden_size": 4}
    assert any("bitsandbytes" in note for note in model.notes)
