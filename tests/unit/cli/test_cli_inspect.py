"""`cuvee inspect`."""

from __future__ import annotations

import numpy as np
from tiny_models import LAYERS, ROWS, WIDTH, base_arrays, write_model


def test_a_model_is_described(run, models):
    outcome = run("inspect", models.base, columns=120)
    assert outcome.code == 0
    rows = [" ".join(line.split()) for line in outcome.out.split("\n")]
    assert f"layers {LAYERS} in model.layers" in rows
    assert "heads 2, each 4 wide" in rows
    assert any(row.startswith(f"attention_q {LAYERS} ") for row in rows)
    assert any(row.startswith("files model.safetensors ") for row in rows)
    assert "model.norm.weight" not in outcome.out


def test_tensors_are_listed_when_asked(run, models):
    out = run("inspect", models.base, "--tensors", columns=120).out
    rows = [" ".join(line.split()) for line in out.split("\n")]
    assert f"model.layers.1.mlp.up_proj.weight F32 {WIDTH} × {WIDTH} 1 mlp_up" in rows
    assert f"model.position_ids I64 {ROWS} other" in rows or f"model.position_ids I64 {ROWS} buffer" in rows


def test_json_has_counts_and_tensors(run, models):
    found = run("inspect", models.base, "--tensors", "--json").json
    arrays = base_arrays()
    assert found["parameters"] == sum(a.size for a in arrays.values())
    assert found["bytes"] == sum(a.nbytes for a in arrays.values())
    assert found["stacks"] == {"model.layers": LAYERS}
    assert {one["name"] for one in found["tensors"]} == set(arrays)
    assert sum(role["tensors"] for role in found["roles"].values()) == len(arrays)
    assert "tensors" not in run("inspect", models.base, "--json").json


def test_hostile_names_do_not_drive_the_terminal(run, tmp_path):
    name = "\x1b[2J[bold]layer\u202e\n"
    model = write_model(tmp_path / "hostile", {name: np.zeros((2, 2), np.float32)})
    outcome = run("inspect", model, "--tensors", columns=120)
    assert outcome.code == 0
    assert "\x1b" not in outcome.out
    assert "\u202e" not in outcome.out
    assert "\\x1b[2J[bold]layer\\u202e\\n" in outcome.out
    assert run("inspect", model, "--tensors", "--json").json["tensors"][0]["name"] == name


def test_nothing_there_is_a_user_error(run, tmp_path):
    outcome = run("inspect", tmp_path / "nowhere", "--offline")
    assert outcome.code == 2
    assert "nowhere" in outcome.err
