"""Stages: the output of one recipe as a model of another, read as it is computed or published beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import assert_equal, contents, read_folder, write_family

import cuvee
from cuvee.errors import ResourceError
from cuvee.recipes import Recipe, RecipeModel, Slice

CHAIN = """\
name: mean
merge_method: linear
models: [{{model: {0}/math}}, {{model: {0}/code}}]
parameters: {{weight: 1}}
dtype: bfloat16
---
name: trimmed
merge_method: ties
base_model: {0}/base
models: [{0}/math, {0}/chat]
parameters: {{density: 0.5}}
dtype: bfloat16
---
merge_method: {1}
base_model: {0}/base
models: [mean, trimmed]
parameters: {{{2}}}
dtype: float32
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_family(tmp_path)
    return tmp_path


def by_hand(folder: Path, method: str, **parameters: object) -> dict[str, torch.Tensor]:
    """Write each stage, then merge the folders."""
    models = {name: str(folder / name) for name in ("base", "math", "code", "chat")}
    stages = {
        "mean": Recipe("linear", models=[models["math"], models["code"]], parameters={"weight": 1}, dtype="bfloat16"),
        "trimmed": Recipe(
            "ties",
            models=[models["math"], models["chat"]],
            base_model=models["base"],
            parameters={"density": 0.5},
            dtype="bfloat16",
        ),
    }
    for name, recipe in stages.items():
        cuvee.merge(recipe, folder / "by_hand" / name)
    paths = [str(folder / "by_hand" / name) for name in stages]
    recipe = Recipe(method, models=paths, base_model=models["base"], parameters=parameters, dtype="float32")
    cuvee.merge(recipe, folder / "by_hand" / "out")
    return read_folder(folder / "by_hand" / "out")


@pytest.mark.parametrize(
    ("method", "settings"),
    [("task_arithmetic", {"weight": 0.5}), ("ties", {"density": 0.3}), ("dare_ties", {"density": 0.5})],
)
def test_stages_give_what_merging_written_models_gives(folder, method, settings):
    path = folder / "chain.yml"
    path.write_text(CHAIN.format(folder, method, ", ".join(f"{k}: {v}" for k, v in settings.items())))
    cuvee.merge(path, folder / "out")
    assert_equal(read_folder(folder / "out"), by_hand(folder, method, **settings))
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_a_stage_that_needs_no_measurement_touches_no_disk(folder, monkeypatch):
    from cuvee.engine import stages

    monkeypatch.setattr(stages.Stage, "read_from", lambda self, place: pytest.fail("the stage was written"))
    mean = Recipe("linear", models=[str(folder / "math"), str(folder / "code")], parameters={"weight": 1}, name="mean")
    out = Recipe("linear", models=[RecipeModel(mean, {"weight": 1}), RecipeModel(str(folder / "chat"), {"weight": 2})])
    cuvee.merge(out, folder / "out", threads=4)
    a, b, c = (read_folder(folder / name) for name in ("math", "code", "chat"))
    for name, got in read_folder(folder / "out").items():
        assert torch.allclose(got, ((a[name] + b[name]) / 2 + 2 * c[name]) / 3, atol=1e-6)


def test_stages_may_be_cut_into_slices(folder):
    mean = Recipe("linear", models=[str(folder / "math"), str(folder / "code")], parameters={"weight": 1}, name="mean")
    slices = [Slice([RecipeModel(mean, {}, (1, 2))]), Slice([RecipeModel(mean, {}, (0, 2))])]
    cuvee.merge(Recipe("passthrough", slices=slices), folder / "out")
    cuvee.merge(mean, folder / "mean")
    out, whole = read_folder(folder / "out"), read_folder(folder / "mean")
    for new, old in ((0, 1), (1, 0), (2, 1)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(out[name.format(new)], whole[name.format(old)])


def test_the_bytes_are_the_same_for_any_threads_and_memory(folder):
    path = folder / "chain.yml"
    path.write_text(CHAIN.format(folder, "task_arithmetic", "weight: 0.5"))
    for number, options in enumerate([{"threads": 1}, {"threads": 4}, {"threads": 2, "memory": 600 << 20}]):
        cuvee.merge(path, folder / f"out{number}", **options)
    first = contents(folder / "out0")
    for number in (1, 2):
        assert contents(folder / f"out{number}") == first


def test_stages_can_be_kept_and_are_taken_again_until_an_input_changes(folder):
    path = folder / "chain.yml"
    path.write_text(CHAIN.format(folder, "task_arithmetic", "weight: 0.5"))
    cuvee.merge(path, folder / "out", stages=folder / "stages")
    assert {p.name for p in (folder / "stages").iterdir()} == {"mean", "trimmed"}
    manifest = folder / "stages" / "mean" / "cuvee.json"
    written = manifest.stat().st_mtime_ns
    cuvee.merge(path, folder / "again", stages=folder / "stages")
    assert manifest.stat().st_mtime_ns == written
    (folder / "code" / "model.safetensors").touch()
    cuvee.merge(path, folder / "third", stages=folder / "stages")
    assert manifest.stat().st_mtime_ns > written
    assert_equal(read_folder(folder / "again"), read_folder(folder / "out"))


def test_a_folder_of_something_else_is_not_taken_for_a_stage(folder):
    path = folder / "chain.yml"
    path.write_text(CHAIN.format(folder, "task_arithmetic", "weight: 0.5"))
    (folder / "stages" / "mean").mkdir(parents=True)
    (folder / "stages" / "mean" / "notes.txt").write_text("mine")
    with pytest.raises(ResourceError, match="the folder of a stage holds something else"):
        cuvee.merge(path, folder / "out", stages=folder / "stages")
    assert (folder / "stages" / "mean" / "notes.txt").read_text() == "mine"
    assert not (folder / "out").exists()


def test_the_manifest_tells_what_the_stages_were_made_of(folder):
    path = folder / "chain.yml"
    path.write_text(CHAIN.format(folder, "task_arithmetic", "weight: 0.5"))
    cuvee.merge(path, folder / "out")
    manifest = json.loads((folder / "out" / "cuvee.json").read_text())
    assert [(one["name"], one["recipe"]["merge_method"]) for one in manifest["stages"]] == [
        ("mean", "linear"),
        ("trimmed", "ties"),
    ]
    assert [Path(label).name for label in manifest["stages"][0]["inputs"]] == ["math", "code"]
