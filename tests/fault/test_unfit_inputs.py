"""Models that do not fit: NaN and Inf, missing and extra tensors, other shapes, strangers. Each named, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import LLAMA, family, llama_shapes, read_folder, write_model

import cuvee
from cuvee.errors import CheckpointError, IncompatibleModels, NonFinite, Problems
from cuvee.recipes import Recipe

UP = "model.layers.0.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"


@pytest.fixture
def models(workplace):
    """A base and two experts in memory, to be spoilt and written."""
    base, experts = family(2, llama_shapes())
    return {"base": base, "math": experts[0], "code": experts[1]}


def merge(models, method="ties", out="out", *, threads=2, options=None, **settings):
    for name, tensors in models.items():
        if not Path(name).exists():
            write_model(Path(name), tensors, LLAMA)
    base = "base" if method != "linear" else None
    recipe = Recipe(method, models=["math", "code"], base_model=base, **settings)
    return cuvee.merge(recipe, out, threads=threads, **(options or {}))


def nothing_was_written() -> bool:
    return not Path("out").exists() and not any(path.name.endswith(".safetensors") for path in Path().glob(".out*/*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("owner", ["base", "math", "code"])
def test_values_that_are_not_finite_are_named_with_model_tensor_and_count(owner, value, models):
    models[owner][UP][3, :5] = value
    with pytest.raises(NonFinite) as caught:
        merge(models)
    assert caught.value.found == f"tensor {UP!r} of {owner!r} holds NaN or infinite values: 5 of 640"
    assert caught.value.where == f"{owner}/model.safetensors"
    assert "--allow-nan" in caught.value.right
    assert not Path("out").exists()


def test_a_count_covers_all_blocks_of_a_tensor(models):
    shape = (300_000,)
    for name in models:
        models[name] = {"w": torch.zeros(shape)}
    models["math"]["w"][::100_000] = float("nan")
    with pytest.raises(NonFinite, match="holds NaN or infinite values: 3 of 300000"):
        merge(models, "linear")


def test_values_that_are_not_finite_pass_when_allowed_and_are_in_the_manifest(models):
    models["math"][UP][3, :5] = float("nan")
    report = merge(models, "linear", options={"allow_nan": True})
    assert dict(report.non_finite) == {UP: 5}
    merged = read_folder(Path("out"))
    assert int(merged[UP].isnan().sum()) == 5
    assert all(torch.isfinite(tensor).all() for name, tensor in merged.items() if name != UP)
    assert json.loads(Path("out/cuvee.json").read_text())["non_finite"] == {UP: 5}


def test_infinite_values_of_a_trimmed_task_vector_are_its_largest(models):
    models["math"][UP][0, 0] = float("inf")
    merge(models, parameters={"density": 0.1}, options={"allow_nan": True})
    assert read_folder(Path("out"))[UP][0, 0].item() == float("inf")


def test_a_merge_that_was_not_allowed_nan_is_not_resumed_by_one_that_is(models):
    models["math"][UP][0, 0] = float("nan")
    with pytest.raises(NonFinite):
        merge(models, "linear", threads=1)
    assert merge(models, "linear", threads=1, options={"allow_nan": True}).resumed == 0


def test_an_output_that_overflows_its_dtype_is_named(models):
    for tensors in models.values():
        tensors[UP] = tensors[UP] * 0 + 60000.0
    with pytest.raises(NonFinite) as caught:
        merge(models, "linear", parameters={"normalize": False}, out_dtype="float16")
    assert caught.value.found == f"the merge makes values of tensor {UP!r} NaN or infinite: 640 of 640, in F16"
    assert "bfloat16" in caught.value.right
    assert not Path("out").exists()


def test_missing_tensors_are_named_by_model_in_one_error(models):
    del models["math"][UP], models["math"]["model.norm.weight"]
    with pytest.raises(IncompatibleModels) as caught:
        merge(models)
    assert caught.value.found.startswith("'math' lacks 2 tensors that 'base', 'code' have: ")
    assert UP in caught.value.found and "model.norm.weight" in caught.value.found
    assert caught.value.where == "math"
    assert "exclude:" in caught.value.right
    assert nothing_was_written()


def test_extra_tensors_are_missing_from_the_others_and_all_are_said_together(models):
    models["code"]["extra.weight"] = torch.zeros(3)
    with pytest.raises(Problems) as caught:
        merge(models)
    for name, error in zip(("base", "math"), caught.value.errors, strict=True):
        assert error.found.startswith(f"{name!r} lacks 1 tensor") and "'extra.weight'" in error.found


def test_what_is_missing_may_be_left_out_and_is_carried_from_who_has_it(models):
    extra = models["code"]["extra.weight"] = torch.arange(3.0)
    merge(models, exclude=["extra.*"])
    assert torch.equal(read_folder(Path("out"))["extra.weight"], extra)
    left_out = json.loads(Path("out/cuvee.json").read_text())["left_out"]
    assert left_out == {"extra.weight": "exclude: extra.*; from code"}


def test_tensors_left_out_come_from_the_base(models):
    merge(models, exclude=["*.mlp.*"])
    merged = read_folder(Path("out"))
    for name, tensor in models["base"].items():
        assert torch.equal(merged[name], tensor) == (".mlp." in name)


def test_without_a_base_tensors_left_out_come_from_the_first_model(models):
    merge(models, "linear", only=["*.mlp.*"])
    merged = read_folder(Path("out"))
    for name, tensor in models["math"].items():
        assert torch.equal(merged[name], tensor) == (".mlp." not in name)


def test_other_shapes_are_said_side_by_side_with_what_to_do(models):
    models["math"][UP] = torch.zeros(39, 16)
    models["code"][EMBED] = torch.zeros(50, 16)
    with pytest.raises(Problems) as caught:
        merge(models)
    said = {error.found: error for error in caught.value.errors}
    up = said[f"tensor {UP!r} is (40, 16) in 'base' and (39, 16) in 'math' and (40, 16) in 'code'"]
    assert up.where == ", ".join(f"{name}/model.safetensors" for name in ("base", "math", "code"))
    assert f'exclude: ["{UP}"]' in up.right and "embed_mismatch" not in up.right
    embed = said[f"tensor {EMBED!r} is (48, 16) in 'base' and (48, 16) in 'math' and (50, 16) in 'code'"]
    assert "embed_mismatch: common_submatrix" in embed.right
    assert nothing_was_written()


def test_cropped_vocabularies_are_written_and_config_says_so(models):
    for name in (EMBED, "lm_head.weight"):
        models["code"][name] = torch.cat([models["code"][name], torch.ones(3, 16)])
    merge(models, parameters={"embed_mismatch": "common_submatrix"})
    merged = read_folder(Path("out"))
    assert merged[EMBED].shape == (48, 16)
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 48
    assert torch.equal(
        merged[EMBED],
        cuvee.merge_tensors("ties", [models["math"], {**models["code"], EMBED: models["code"][EMBED][:48],
                            "lm_head.weight": models["code"]["lm_head.weight"][:48]}], models["base"])[EMBED],
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_values_without_their_scales_are_named_and_refused(dtype, models):
    models["math"][UP] = models["math"][UP].to(dtype)
    with pytest.raises(CheckpointError, match=f"tensor {UP!r} is stored as F8_"):
        merge(models)
    assert nothing_was_written()


def test_a_model_that_is_no_fine_tune_of_the_base_is_warned_of(models):
    stranger, _ = family(0, llama_shapes(), seed=9)
    models["code"] = stranger
    report = merge(models)
    (warning,) = report.warnings
    assert warning.startswith("code does not look like a fine-tune of base: cosine ")
    assert "‖delta‖ is 1." in warning
    assert json.loads(Path("out/cuvee.json").read_text())["warnings"] == [warning]


def test_fine_tunes_of_the_base_are_not_warned_of(models):
    assert merge(models).warnings == ()


def test_a_pattern_that_matches_nothing_is_warned_of(models):
    report = merge(models, exclude=["*.mpl.*"])
    assert any("'*.mpl.*' matches no tensor" in warning for warning in report.warnings)


def test_what_is_left_out_keeps_its_bits(models):
    models["math"][UP][0, :3] = torch.tensor([-0.0, 1e-45, 3e38])
    merge(models, "linear", only=[EMBED])
    merged = read_folder(Path("out"))[UP]
    assert torch.equal(merged.view(torch.int32), models["math"][UP].view(torch.int32))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is cut short"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes that belong to no tensor"),
        (lambda path: path.write_bytes(b"\xff" * 40), "the header says it has"),
        (lambda path: path.write_bytes(b""), "a safetensors file has at least 8"),
        (lambda path: path.unlink(), "weights|no such|there is no|no model"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_written(spoil, words, models):
    for name, tensors in models.items():
        write_model(Path(name), tensors, LLAMA)
    spoil(Path("math/model.safetensors"))
    with pytest.raises(CheckpointError, match=words) as caught:
        merge(models)
    assert "math" in str(caught.value)
    assert nothing_was_written()


def test_errors_of_several_models_are_said_together(models):
    for name, tensors in models.items():
        write_model(Path(name), tensors, LLAMA)
    Path("math/model.safetensors").write_bytes(b"")
    Path("code/model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(Problems) as caught:
        merge(models)
    assert [error.where for error in caught.value.errors] == [f"{n}/model.safetensors" for n in ("math", "code")]


def test_too_little_memory_is_refused_with_the_tensor_and_the_amount(models):
    with pytest.raises(cuvee.CuveeError, match=r"--memory 10 MB is too little: this merge needs \d+ MB") as caught:
        merge(models, options={"memory": 10_000_000})
    assert "tensor" in caught.value.where and "--memory" in caught.value.right
    assert nothing_was_written()
