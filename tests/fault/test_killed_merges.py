"""kill -9, power loss and failing calls at any step: at the output's name lies nothing, the old model or the whole new one.

The same command then gives the same bytes. crashing.py does it, in one process that forks; here is what must hold.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
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
OVERWRITING = pytest.mark.parametrize("overwriting", [False, True], ids=["", "overwriting"])


@pytest.fixture
def place():
    """A folder in memory, where there is one: hundreds of merges wait for no disk."""
    memory = "/dev/shm"
    folder = tempfile.mkdtemp(prefix="cuvee-faults-", dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(folder)
    shutil.rmtree(folder)


def write_models(folder: Path, shapes) -> None:
    base, experts = family(2, shapes)
    for name, tensors in zip(("base", "math", "code"), (base, *experts), strict=True):
        write_model(
            folder / name,
            {**tensors, "steps": torch.arange(3)},
            {"model_type": "llama"},
            others={"tokenizer.json": "{}", "extra/notes.txt": "carried over"},
        )


def findings(folder: Path, scenario: str, overwriting: bool = False):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, here / "crashing.py", folder, scenario + (", overwriting" if overwriting else "")],
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
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found, *, overwriting: bool) -> None:
    assert found
    for one in found:
        assert one["found"] in (("old", "new") if overwriting else ("nothing", "new")), one
        if "again" in one:
            assert one["again"] in ("done", "already there"), one
            assert one["identical"], one
            assert one["left"] == [], one


def check_nothing_is_computed_twice(found) -> None:
    for one in found:
        if one["again"] == "done" and one["found"] != "new":
            assert one["resumed"] == one["promised"], one


@pytest.mark.slow
@OVERWRITING
def test_a_kill_before_or_within_any_step_leaves_nothing_or_all_and_is_resumed(place, overwriting):
    write_models(place, SHAPES)
    found = findings(place, "every step", overwriting)
    assert all(one["died"] == "killed" for one in found)
    last = "exchange" if overwriting else "rename"
    steps = {one["point"].split()[-1] for one in found}
    assert steps >= {"mkdir", "open", "pwrite", "write", "fsync", "unlink", "rmdir", last}
    check(found, overwriting=overwriting)
    check_nothing_is_computed_twice(found)
    assert len(found) > 70 and any(one["resumed"] for one in found)


@pytest.mark.slow
@OVERWRITING
def test_a_kill_at_a_random_time_leaves_nothing_or_all_and_is_resumed(place, overwriting):
    write_models(place, LARGE)
    found = findings(place, "random", overwriting)
    assert any(one["died"] == "killed" for one in found)
    assert all(one["found"] == "new" for one in found if one["died"] == "done")
    killed = [one for one in found if one["died"] == "killed"]
    check(killed, overwriting=overwriting)
    check_nothing_is_computed_twice(killed)


@pytest.mark.slow
def test_a_merge_killed_over_and_over_loses_nothing_and_comes_to_an_end(place):
    write_models(place, SHAPES)
    *steps, last = findings(place, "again and again")
    assert last["identical"]
    assert steps[-1]["died"] == "done"
    for one in steps[:-1]:
        assert one["after"] > one["before"], steps


@pytest.mark.slow
@OVERWRITING
def test_any_step_that_fails_once_or_for_ever_is_said_in_words_and_the_next_run_succeeds(place, overwriting):
    write_models(place, SHAPES)
    found = findings(place, "failing", overwriting)
    for one in found:
        # done: what failed came after the model had its name, and only left something behind
        assert one["died"] in ("failed", "done"), one
        assert one["died"] == "failed" or one["found"] == "new", one
        if one["died"] == "failed":
            assert "\n  where: " in one["before"] and "\n  right: " in one["before"], one
    check(found, overwriting=overwriting)
    assert len(found) > 40 and sum(one["died"] == "failed" for one in found) > 30


@pytest.mark.slow
def test_a_disk_that_gives_and_takes_a_few_bytes_at_a_time_and_signals_change_nothing(place):
    write_models(place, SHAPES)
    for one in findings(place, "short"):
        assert one["died"] == "done" and one["identical"], one


@pytest.mark.slow
@OVERWRITING
def test_a_power_loss_after_any_step_leaves_nothing_or_all_and_so_does_one_while_that_is_mended(place, overwriting):
    write_models(place, SHAPES)
    found = findings(place, "power", overwriting)
    assert len(found) > 400 and any("; then after" in one["point"] for one in found)
    check(found, overwriting=overwriting)
    assert {one["found"] for one in found} == {"new", "old" if overwriting else "nothing"}


@pytest.mark.slow
@OVERWRITING
def test_a_power_loss_after_a_kill_and_a_second_run_leaves_nothing_or_all(place, overwriting):
    """The second run must not touch what the first has exchanged, while a power loss may still take that back."""
    write_models(place, SHAPES)
    found = findings(place, "kill, power", overwriting)
    assert len(found) > 5000
    check(found, overwriting=overwriting)
    assert {one["found"] for one in found} == {"new", "old" if overwriting else "nothing"}
