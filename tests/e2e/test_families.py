"""Families of models, merged from files: every tensor is right, and what is published loads in transformers and computes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import HINTED, UNSEEN, Case
from models import Tensors, read_folder

import cuvee
from cuvee.recipes import Recipe

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

FEW_EXPERTS = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
CASES = {
    name: replace(case, settings={**case.settings, **FEW_EXPERTS}) if "moe" in name or "deepseek" in name else case
    for name, case in (HINTED | UNSEEN).items()
}
FAMILIES = {
    **CASES,
    **{
        f"{name}, {'un' if case.tied else ''}tied": replace(
            case, settings={**case.settings, "tie_word_embeddings": not case.tied}
        )
        for name, case in CASES.items()
        if name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "cohere", "gpt2", "gpt_neox", "olmo2", "mixtral")
    },
}
WEIGHTS, DENSITY, T = (0.25, 0.75), 0.5, 0.4


def build(case: Case) -> Any:
    """Return a model of small random weights."""

    def made(settings: Any) -> dict[str, Any]:
        return {k: part(*v) if isinstance(v, tuple) else v for k, v in settings.items()}

    def part(name: str, settings: Any) -> Any:
        return getattr(transformers, name)(**made(settings))

    if not hasattr(transformers, case.config) or not hasattr(transformers, case.model):
        pytest.skip(f"transformers {transformers.__version__} has no {case.model}")
    torch.manual_seed(0)
    return getattr(transformers, case.model)(part(case.config, case.settings)).eval()


def write_family(model: Any, folder: Path) -> list[str]:
    """Write a model and two that were moved a little from it."""
    paths = []
    for seed, name in enumerate(("base", "one", "two")):
        moved = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in moved.parameters():
                if seed and value.is_floating_point():
                    value += 0.05 * torch.randn(value.shape, generator=generator)
        moved.save_pretrained(folder / name)
        paths.append(str(folder / name))
    return paths


# ---- the methods in a few lines, whole tensors in float64


def linear(base: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return WEIGHTS[0] * one + WEIGHTS[1] * two


def slerp(base: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    cosine = torch.dot(one.flatten(), two.flatten()) / (one.norm() * two.norm()).clamp_min(1e-300)
    if abs(cosine) > 0.9995:
        return (1 - T) * one + T * two
    angle = torch.arccos(cosine)
    return (torch.sin((1 - T) * angle) * one + torch.sin(T * angle) * two) / torch.sin(angle)


def ties(base: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    def trimmed(delta: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(delta.numel(), dtype=torch.bool)
        kept[delta.abs().flatten().argsort(descending=True, stable=True)[: int(DENSITY * delta.numel())]] = True
        return torch.where(kept.reshape(delta.shape), delta, 0.0)

    deltas = torch.stack([trimmed((expert.float() - base.float()).double()) for expert in (one, two)])
    agree = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    return base + (deltas * agree).sum(0) / agree.sum(0).clamp_min(1)


METHODS = {"linear": (linear, {}), "slerp": (slerp, {"t": T}), "ties": (ties, {"density": DENSITY})}


def recipe(method: str, paths: list[str]) -> Recipe:
    base, *experts = paths
    settings = {"weight": list(WEIGHTS)} if method == "linear" else METHODS[method][1]
    return Recipe(method, models=experts, base_model=base if method == "ties" else None, parameters=settings)


# ---- what a model is given to compute on


def inputs(model: Any) -> dict[str, torch.Tensor]:
    config, wanted = model.config, model.main_input_name
    text = {"input_ids": torch.tensor([[1, 5, 9, 2]])}
    if wanted == "input_features":
        given = {wanted: torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions)}
    elif wanted == "input_values":
        given = {wanted: torch.randn(1, 4000)}
    elif wanted == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 32)
        size = size if isinstance(size, int) else size[0]
        given = {wanted: torch.randn(1, getattr(vision, "num_channels", 3), size, size)}
    else:
        given = dict(text)
    if config.is_encoder_decoder:
        given["decoder_input_ids"] = text["input_ids"]
    if config.model_type in ("clip", "siglip"):
        size = config.vision_config.image_size
        given = {**text, "pixel_values": torch.randn(1, 3, size, size)}
    return given


def floats(output: Any) -> Iterator[torch.Tensor]:
    for value in output.to_tuple():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            yield value


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_merged_tensor_by_tensor_and_computes(name, tmp_path):
    model = build(FAMILIES[name])
    paths = write_family(model, tmp_path)
    base, one, two = (read_folder(Path(path)) for path in paths)
    for method, (formula, _) in METHODS.items():
        out = tmp_path / method
        plan = cuvee.plan(recipe(method, paths), threads=1)
        cuvee.run(plan, out)
        merged = read_folder(out)
        accounted(plan, merged, base, one, two, formula)
    loaded, said = type(model).from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"], said
    with torch.no_grad():
        assert all(torch.isfinite(value).all() for value in floats(loaded.eval()(**inputs(loaded))))
    manifest = json.loads((out / "cuvee.json").read_text())
    assert set(manifest["output"]["tensors"]) == set(merged)


def accounted(plan: Any, merged: Tensors, base: Tensors, one: Tensors, two: Tensors, formula: Any) -> None:
    """Hold every tensor of the models against the output: merged, carried over, or dropped and named so."""
    assert set(merged) | set(plan.dropped) == set(one)
    for name, got in merged.items():
        if name in plan.left_out:
            assert torch.equal(got, base[name]) or torch.equal(got, one[name]), name
            continue
        right = formula(base[name].double(), one[name].double(), two[name].double())
        assert got.shape == right.shape and got.dtype == one[name].dtype, name
        assert (got.double() - right).abs().max() <= 2e-6 * max(1.0, right.abs().max()), name
