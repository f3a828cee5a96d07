"""`cuvee plan`."""

from __future__ import annotations

import pytest
from tiny_models import LAYERS


@pytest.mark.parametrize("columns", [80, 120])
def test_a_plan_shows_the_formula_with_the_recipes_numbers(run, models, columns):
    outcome = run("plan", models.recipe, columns=columns)
    assert outcome.code == 0, outcome.err
    out = outcome.out
    assert "\n  s = sgn Σ weight_i τ̂_i\n" in out
    rows = [line.split() for line in out.split("\n")]
    assert columns == 80 or [str(models.math), "0.5", "0.5"] in rows  # long paths are folded in a narrow window
    assert "[0.2, 0.8]" in out
    assert "mlp: 0.25; else 0.75" in out
    assert ["scaling", "0.5"] in rows
    assert "by default: normalize true" in out
    assert all(len(line) <= columns + 2 for line in out.split("\n"))


def test_a_plan_shows_tensors_with_their_resolved_values(run, models):
    out = run("plan", models.recipe, columns=120).out
    examples = [line.split() for line in out.split("For example")[1].split("\n")]
    assert ["2", "model.layers.0.mlp.down_proj.weight", "0.5,", "0.2", "0.5,", "0.25"] in examples
    assert ["3", "model.layers.1.input_layernorm.weight", "0.5,", "0.5", "0.5,", "0.75"] in examples


def test_equal_values_for_all_tensors_need_no_examples(run, models):
    recipe = models.write_recipe("even.yml", "merge_method: linear\nmodels: [MATH, CODE]\n")
    assert "For example" not in run("plan", recipe).out


def test_a_plan_says_what_it_takes_and_what_is_left_out(run, models):
    out = run("plan", models.recipe, columns=120).out
    rows = [" ".join(line.split()) for line in out.split("\n")]
    merged = 2 + 5 * LAYERS
    assert f"tensors {merged} merged, 2 copied" in rows
    assert "1 tensor, whole numbers are not merged; from " + str(models.base) in rows
    assert "lm_head.weight" in rows
    assert "files tokenizer.json" in rows
    (time,) = (row for row in rows if row.startswith("time "))
    assert "estimate" in time


def test_json_of_a_plan(run, models):
    found = run("plan", models.recipe, "--json", "--threads", 1, "--shard-size", "2kB").json
    assert found["method"] == "ties"
    assert found["base"] == str(models.base)
    assert found["models"] == {"0": str(models.math), "1": str(models.code)}
    assert found["threads"] == 1
    assert found["visits"] >= 2
    assert found["rounds"] == 1
    assert len(found["shards"]) > 1
    assert sum(shard["tensors"] for shard in found["shards"]) == sum(found["tensors"].values())
    assert set(found["left_out"]) == {"lm_head.weight", "model.position_ids"}
    assert found["estimate"]["seconds"] >= 0
    assert {"import", "plan", "total"} <= set(found["seconds"])


def test_seed_and_compat_of_the_command_line_hold(run, models):
    recipe = models.write_recipe("dare.yml", "merge_method: dare_linear\nbase_model: BASE\nmodels: [MATH, CODE]\n")
    plain, seeded = (run("plan", recipe, "--json", *more).json for more in ((), ("--seed", 7)))
    assert plain["plan"] != seeded["plan"]
    refused = run("plan", recipe, "--compat", "mergekit")
    assert refused.code == 2
    assert "compat: mergekit" in refused.err


def test_too_little_memory_is_refused_with_the_amount(run, models):
    outcome = run("plan", models.recipe, "--memory", "1MB")
    assert outcome.code == 2
    assert "right: --memory " in outcome.err


def test_a_plan_writes_nothing(run, models):
    before = sorted(models.folder.rglob("*"))
    run("plan", models.recipe)
    assert sorted(models.folder.rglob("*")) == before


def test_cuda_is_refused_in_one_sentence_where_there_is_none(run, models, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = run("plan", models.recipe, "--device", "cuda")
    assert outcome.code == 2
    assert "finds no CUDA device here\n  right: --device cpu\n" in outcome.err
