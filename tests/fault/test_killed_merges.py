"""kill -9 at any point: at the output's name lies nothing, or a whole model; the same command then gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import family, write_model

SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.mlp.up_proj.weight": (30, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.norm.weight": (16,),
    "other.scalar": (),
    "other.long": (1000,),
}
LARGE = {f"model.layers.{n}.mlp.up_proj.weight": (600, 512) for n in range(4)}


def write_models(folder: Path, shapes) -> None:
    base, experts = family(2, shapes)
    for name, tensors in zip(("base", "math", "code"), (base, *experts), strict=True):
        write_model(
            folder / name,
            {**tensors, "steps": torch.arange(3)},
            {"model_type": "llama"},
            others={"tokenizer.json": "{}", "extra/notes.txt": "carried over"},
        )


def findings(folder: Path, scenario: str):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, here / "crashing.py", folder, scenario],
        capture_output=True,
        text=True,
        timeout=250,
        env={
            **os.environ,
            "CUVEE_KERNELS": "0",
            "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here.parent)]),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(found, *, overwriting: bool) -> None:
    assert found
    for one in found:
        assert one["found"] in (("old", "new") if overwriting else ("nothing", "new")), one
        assert one["again"] in ("done", "already there"), one
        assert one["identical"], one
        assert one["left"] == [], one
        if one["again"] == "done" and one["found"] != "new":
            assert one["resumed"] == one["promised"], one


@pytest.mark.slow
@pytest.mark.parametrize("overwriting", [False, True], ids=["", "overwriting"])
def test_a_kill_before_or_within_any_file_call_leaves_nothing_or_all_and_is_resumed(tmp_path, overwriting):
    write_models(tmp_path, SHAPES)
    found = findings(tmp_path, "every call" + (", overwriting" if overwriting else ""))
    assert all(one["died"] == "killed" for one in found)
    assert {one["point"].split()[-1] for one in found} >= {
        "pwrite",
        "append",
        "fsync",
        "rename" if not overwriting else "exchange",
    }
    check(found, overwriting=overwriting)
    assert len(found) > 50 and any(one["resumed"] for one in found)


@pytest.mark.parametrize("overwriting", [False, True], ids=["", "overwriting"])
def test_a_kill_at_a_random_time_leaves_nothing_or_all_and_is_resumed(tmp_path, overwriting):
    write_models(tmp_path, LARGE)
    found = findings(tmp_path, "random" + (", overwriting" if overwriting else ""))
    assert any(one["died"] == "killed" for one in found)
    assert all(one["found"] == "new" for one in found if one["died"] == "done")
    check([one for one in found if one["died"] == "killed"], overwriting=overwriting)


def test_a_merge_killed_over_and_over_loses_nothing_and_comes_to_an_end(tmp_path):
    write_models(tmp_path, SHAPES)
    *steps, last = findings(tmp_path, "again and again")
    assert last["identical"]
    assert steps[-1]["died"] == "done"
    for one in steps[:-1]:
        assert one["after"] > one["before"], steps
