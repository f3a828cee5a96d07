"""Bounded memory: models of 1.2 GB are merged within a limit of 450 MB that the system enforces."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import assert_same_bytes, contents, family, write_model

import cuvee
from cuvee.checkpoints.safetensors_format import lay_out
from cuvee.errors import ResourceError
from cuvee.recipes import Recipe
from cuvee.tensors.dtypes import DTYPES

PROMISE = 450_000_000
ROWS, COLUMNS = 8192, 2048


def write_large(folder: Path, seed: int, tensors: int) -> None:
    """Write a bfloat16 model of `tensors` matrices of 33 MB and some vectors, without holding one."""
    folder.mkdir()
    names = {f"model.layers.{n}.mlp.up_proj.weight": (ROWS, COLUMNS) for n in range(tensors)}
    shapes = {**names, "model.norm.weight": (COLUMNS,), "model.layers.0.long.bias": (1_000_001,)}
    layout = lay_out({name: (DTYPES["BF16"], shape) for name, shape in shapes.items()}, {"format": "pt"})
    draws = np.random.default_rng(seed)
    # bfloat16 of about ±0.1: the upper halves of float32 numbers
    pattern = (draws.normal(scale=0.1, size=1 << 20).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(layout.header)
        left = (layout.size - len(layout.header)) // 2
        while left:
            file.write(pattern[:left].tobytes())
            left -= min(left, len(pattern))
            pattern = np.roll(pattern, 977)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base and three experts of 0.3 GB each."""
    root = tmp_path_factory.mktemp("large")
    for seed, name in enumerate(("base", "math", "code", "chat")):
        write_large(root / name, seed, 9)
    assert sum(path.stat().st_size for path in root.rglob("*.safetensors")) > 1_200_000_000
    yield root
    shutil.rmtree(root)


def measured(
    folder: Path, method: str, out: str, *, limit: int | None = None, options=None, statistics=None, **parameters
):
    here = Path(__file__).parent
    request = {"method": method, "models": ["math", "code", "chat"], "out": out, "parameters": parameters,
               "base": None if method == "linear" else "base", "options": options or {}, "statistics": statistics}  # fmt: skip
    done = subprocess.run(
        [sys.executable, here / "measured_merge.py", folder, json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(here.parents[1])},
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))) if limit else None,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon and RLIMIT_DATA are Linux's")


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parameters"), [("linear", {}), ("ties", {"density": 0.4}), ("della", {"density": 0.5})]
)
def test_1200_megabytes_are_merged_within_450(large, method, parameters):
    bound = measured(large, method, "bound", limit=PROMISE, options={"memory": PROMISE}, **parameters)
    assert bound["read"] >= (900_000_000 if method == "linear" else 1_200_000_000)
    assert bound["peak"] < PROMISE
    if method == "ties":
        free = measured(large, method, "free", **parameters)
        assert free["peak"] < 600_000_000
        assert_same_bytes(contents(large / "bound"), contents(large / "free"))
        shutil.rmtree(large / "free")
    shutil.rmtree(large / "bound")


@linux_only
@pytest.mark.slow
def test_memory_does_not_grow_with_the_models(tmp_path):
    peaks = []
    for tensors in (1, 2, 4):
        folder = tmp_path / str(tensors)
        folder.mkdir()
        for seed, name in enumerate(("base", "math", "code", "chat")):
            write_large(folder / name, seed, tensors)
        peaks.append(measured(folder, "ties", "out", density=0.4)["peak"])
        shutil.rmtree(folder)
    assert max(peaks) < 600_000_000
    assert max(peaks) - min(peaks) < 30_000_000, peaks


@linux_only
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_tensors(tmp_path):
    """A trim over the whole model counts digits in a table of half a megabyte: one for all tensors, not one for each."""
    for seed, name in enumerate(("base", "math", "code", "chat")):
        shapes = {f"model.layers.{n}.input_layernorm.weight": (16,) for n in range(500)}
        _, (tensors,) = family(1, shapes, seed=seed)
        write_model(tmp_path / name, tensors)
    peak = measured(tmp_path, "ties", "out", density=0.4, trim_scope="model", tie_sign="global_majority")["peak"]
    assert peak < 300_000_000, peak


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("ties", {"density": 0.4, "trim_scope": "model", "tie_sign": "global_majority"}),
        ("della", {"density": 0.5}),
    ],
)
def test_the_least_memory_that_is_accepted_is_kept(large, method, parameters, monkeypatch):
    monkeypatch.chdir(large)
    base = None if method == "linear" else "base"
    recipe = Recipe(method, models=["math", "code", "chat"], base_model=base, parameters=parameters)
    with pytest.raises(ResourceError, match="is too little") as refused:
        cuvee.plan(recipe, memory=1)
    least = int(refused.value.right.removeprefix("--memory ").removesuffix("MB")) * 10**6
    found = measured(large, method, "least", options={"memory": least, "threads": 12}, **parameters)
    assert found["peak"] < least
    shutil.rmtree(large / "least")
