"""Matrix methods keep their promise of memory under a limit of the system, and decompositions kept in a folder are safe."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from models import write_model
from safetensors.torch import load_file, save_file
from test_memory import measured

import cuvee
from cuvee.errors import ResourceError

NAME = "model.layers.0.mlp.up_proj.weight"
METHODS = {
    "tsv_m": {},
    "iso_c": {},
    "wudi_merging": {},
    "opcm": {},
    "ortho_merge": {"residual": "ties"},
    "bayesian_model_merging": {"gram": "data"},
    "mats": {"gram": "data", "iterations": 3},
    "della": {"ranks": "tensor", "density": 0.5},
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base and three experts whose one matrix is 16 MB in float32."""
    root = tmp_path_factory.mktemp("matrices")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4096, 1024, generator=generator)
    for name in ("base", "math", "code", "chat"):
        delta = 0.0 if name == "base" else 0.02 * torch.randn(base.shape, generator=generator)
        tensors = {NAME: (base + delta).bfloat16(), "model.norm.weight": torch.ones(1024).bfloat16()}
        write_model(root / name, tensors)
        inputs = torch.randn(64, 1024, generator=generator)
        save_file({f"gram/{NAME}": inputs.mT @ inputs / 64}, root / f"{name}.st")
    return root


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon and RLIMIT_DATA are Linux's")
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_method_runs_in_the_least_memory_that_is_accepted_and_names_what_needs_it(large, method, monkeypatch):
    monkeypatch.chdir(large)
    names = ["math", "code", "chat"]
    told = [f"{name}.st" for name in names] if "gram" in METHODS[method] else None
    models = [cuvee.RecipeModel(name, statistics=f"{name}.st" if told else None) for name in names]
    recipe = cuvee.Recipe(method, models=models, base_model="base", parameters=METHODS[method])
    with pytest.raises(ResourceError, match="is too little") as refused:
        cuvee.plan(recipe, memory=1)
    assert repr(NAME) in refused.value.where
    least = int(refused.value.right.removeprefix("--memory ").removesuffix("MB")) * 10**6
    found = measured(large, method, method, limit=least, options={"memory": least}, statistics=told, **METHODS[method])
    assert found["peak"] < least


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon and RLIMIT_DATA are Linux's")
@pytest.mark.slow
def test_of_many_experts_in_one_tensor_one_is_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, shape = "model.layers.0.mlp.experts.gate_up_proj", (64, 512, 1024)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).bfloat16()
    for folder in ("base", "math", "code", "chat"):
        delta = 0.0 if folder == "base" else 0.02 * torch.randn(shape, generator=generator)
        write_model(tmp_path / folder, {name: base + delta}, {"model_type": "mixtral", "hidden_size": 1024})
    recipe = cuvee.Recipe("iso_c", models=["math", "code", "chat"], base_model="base")
    with pytest.raises(ResourceError, match="is too little") as refused:
        cuvee.plan(recipe, memory=1)
    assert repr(f"{name}[0]") in refused.value.where
    least = int(refused.value.right.removeprefix("--memory ").removesuffix("MB")) * 10**6
    found = measured(tmp_path, "iso_c", "out", limit=least, options={"memory": least})
    assert found["peak"] < least


@pytest.mark.slow
def test_kept_decompositions_give_the_same_bytes_sooner_and_a_damaged_one_is_made_again(large, monkeypatch):
    monkeypatch.chdir(large)

    def merge(out: str, **settings) -> tuple[float, bytes]:
        recipe = cuvee.Recipe("tsv_m", models=["math", "code", "chat"], base_model="base", parameters=settings)
        begin = time.process_time()
        cuvee.merge(recipe, out, decompositions="known")
        return time.process_time() - begin, Path(out, "model.safetensors").read_bytes()

    plain = cuvee.Recipe("tsv_m", models=["math", "code", "chat"], base_model="base")
    cuvee.merge(plain, "plain")
    first, made = merge("first")
    second, found = merge("second")
    assert made == found == Path("plain", "model.safetensors").read_bytes()
    assert second < first / 2
    kept = sorted(Path("known").iterdir())
    before = {path: path.read_bytes() for path in kept}
    kept[0].write_bytes(before[kept[0]][:-9] + b"\x00garbage\x00")
    kept[1].write_bytes(b"")
    assert merge("third")[1] == made
    assert {path: path.read_bytes() for path in sorted(Path("known").iterdir())} == before
    merge("other", scaling=0.5)
    halves = [load_file(f"{name}/model.safetensors")[NAME].float() for name in ("base", "plain", "other")]
    torch.testing.assert_close(halves[2], (halves[0] + halves[1]) / 2, atol=0.02, rtol=0.01)
    assert sorted(Path("known").iterdir()) == kept
