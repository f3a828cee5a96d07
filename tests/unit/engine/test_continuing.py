"""Continued merges: one more expert into a published model gives the bytes of one merge of all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import contents, family, llama_shapes, write_model

import cuvee
from cuvee.engine.verifying import verify
from cuvee.errors import CheckpointError, RecipeError
from cuvee.recipes import Recipe, RecipeModel


@pytest.fixture
def models(workplace):
    base, experts = family(4, llama_shapes(), dtype=torch.bfloat16)
    for name, tensors in zip(("base", "a", "b", "c", "d"), (base, *experts), strict=True):
        write_model(Path(name), tensors)


def opcm(*models, **settings):
    return Recipe("opcm", models=models, base_model="base", parameters={"alpha": 0.4}, **settings)


def manifest(folder: str) -> dict:
    return json.loads(Path(folder, "cuvee.json").read_text())


def weights(folder: str) -> tuple[bytes, bytes]:
    return Path(folder, "model.safetensors").read_bytes(), Path(folder, "continual/model.safetensors").read_bytes()


def test_adding_experts_one_by_one_gives_the_bytes_of_merging_all_at_once(models):
    cuvee.merge(opcm("a", "b"), "out")
    cuvee.merge(opcm("a", "b", "c", "d"), "whole")
    for name in ("a", "b"):
        shutil.rmtree(name)
    assert cuvee.continue_merge("out", ["c"]).warnings == ()
    cuvee.continue_merge("out", ["d"])
    assert weights("out") == weights("whole")
    got, whole = manifest("out"), manifest("whole")
    assert got["continual"] == whole["continual"]
    assert got["recipe"] == whole["recipe"]
    assert verify(Path("out")).problems == ()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_several_experts_are_added_in_one_merge_after_those_that_were_put_in_order(models):
    ordered = [RecipeModel("a", {"order": 1}), RecipeModel("b", {"order": 0})]
    cuvee.merge(opcm(*ordered), "out")
    cuvee.merge(opcm("b", "a", "c", "d"), "whole")
    cuvee.continue_merge("out", ["c", "d"])
    assert weights("out") == weights("whole")
    assert [one["parameters"]["order"] for one in manifest("out")["recipe"]["models"]] == [1, 0, 2, 3]


def test_an_expert_that_is_in_the_model_is_not_merged_twice(models):
    cuvee.merge(opcm("a", "b"), "out")
    before = contents(Path("out"))
    for spoken in ("b", "./b/", Path("b").absolute()):
        with pytest.raises(RecipeError, match="b/?' is merged into this model already"):
            cuvee.continue_merge("out", [spoken])
    with pytest.raises(RecipeError, match="'base' is the base of this model, and adds nothing"):
        cuvee.continue_merge("out", ["base"])
    for one, again in (("c", "./c"), ("base+c", "./base/+./c")):
        with pytest.raises(RecipeError, match="is to be added twice"):
            cuvee.continue_merge("out", [one, again])
    with pytest.raises(RecipeError, match="no expert"):
        cuvee.continue_merge("out", [])
    assert contents(Path("out")) == before


def test_what_has_nothing_to_go_on_from_is_refused(models):
    cuvee.merge(Recipe("linear", models=["a", "b"]), "out")
    with pytest.raises(CheckpointError, match="merged by linear, which keeps nothing to go on from") as refused:
        cuvee.continue_merge("out", ["c"])
    assert "opcm" in refused.value.right
    cuvee.merge(opcm("a", "b", after=[{"lines": {"alpha": 0.2}}]), "refined")
    with pytest.raises(RecipeError, match="a merge with after cannot be continued"):
        cuvee.continue_merge("refined", ["c"])


def test_a_damaged_accumulation_and_another_base_are_named_and_the_model_stays(models):
    cuvee.merge(opcm("a", "b"), "out")
    before = weights("out")
    (base,), _ = family(1, llama_shapes(), dtype=torch.bfloat16, seed=5)[1], None
    shutil.rmtree("base")
    write_model(Path("base"), base)
    with pytest.raises(CheckpointError, match="of 'base' is not the one that was merged before"):
        cuvee.continue_merge("out", ["c"])
    assert weights("out") == before
    kept = Path("out/continual/model.safetensors")
    kept.write_bytes(before[1][:-1] + bytes([before[1][-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not what was published"):
        cuvee.continue_merge("out", ["c"])
    shutil.rmtree("out/continual")
    with pytest.raises(CheckpointError):
        cuvee.continue_merge("out", ["c"])


KILLED = """
import os, sys, cuvee
from cuvee.checkpoints import fs
name, last, calls, plain = sys.argv[1], int(sys.argv[2]), [], getattr(fs, sys.argv[1])
def dies(*arguments, **options):
    calls.append(name)
    if len(calls) == last:
        os.kill(os.getpid(), 9)
    return plain(*arguments, **options)
setattr(fs, name, dies)
cuvee.continue_merge("out", ["c"])
"""


@pytest.mark.slow
def test_a_continued_merge_that_is_killed_leaves_the_old_model_and_goes_on(models):
    cuvee.merge(opcm("a", "b"), "out")
    cuvee.merge(opcm("a", "b", "c"), "whole")
    before = contents(Path("out"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, number in (("pwrite", 1), ("pwrite", 25), ("append", 20), ("exchange", 1)):
        killed = subprocess.run([sys.executable, "-c", KILLED, name, str(number)], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL, (name, number)
        assert contents(Path("out")) == before
    cuvee.continue_merge("out", ["c"])
    assert weights("out") == weights("whole")
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_without_continual_only_the_model_is_published_and_it_is_the_same(models):
    cuvee.merge(opcm("a", "b"), "out")
    recipe = Recipe("opcm", models=("a", "b"), base_model="base", parameters={"alpha": 0.4, "continual": False})
    cuvee.merge(recipe, "alone")
    assert Path("alone/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    assert not Path("alone/continual").exists()
    assert "continual" not in manifest("alone")
    assert verify(Path("alone")).problems == ()
    with pytest.raises(CheckpointError, match="merged by opcm, with continual: false"):
        cuvee.continue_merge("alone", ["c"])
