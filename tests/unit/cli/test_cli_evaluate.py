"""`cuvee evaluate` on tasks of lm-evaluation-harness; on suites it is in tests/e2e/test_bench_command.py."""

from __future__ import annotations

import importlib

import pytest
from harness_tasks import model, save, write_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("lm_eval", reason="pip install 'cuvee[eval]'")
    made = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(["math", "base", "code"]):
        save(model(seed), made / name)
    write_tasks(made / "tasks", model(0))
    (made / "mean.yml").write_text(
        f"merge_method: linear\nmodels: [{made}/math, {made}/code]\nparameters: {{weight: 1}}\n"
    )
    return made


@pytest.fixture
def score(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(importlib.import_module("datasets.config"), "HF_DATASETS_CACHE", tmp_path / "datasets")

    def call(name, *arguments):
        return run("evaluate", folder / name, "--include-path", folder / "tasks", *arguments)

    return call


def test_scores_are_a_table_with_base_and_best_expert(score, folder):
    outcome = score(
        "math",
        "--tasks",
        "pick,write",
        "--base",
        folder / "base",
        "--expert",
        folder / "math",
        "--expert",
        folder / "code",
    )
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines() if line.strip()]
    assert ["task", "metric", "model", "base", "expert", "normalised", "items"] in lines
    (written,) = (line for line in lines if line[0] == "write")
    assert written == ["write", "exact", "answers", "0.500", "±", "0.090", "0.062", "0.500", "100", "%", "32"]


def test_a_recipe_is_merged_and_scored_and_nothing_is_written(score, folder):
    before = sorted(folder.iterdir())
    outcome = score("mean.yml", "--tasks", "read", "pick", "--limit", "4", "--num-fewshot", "1", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    said = outcome.json
    assert sorted(folder.iterdir()) == before
    assert [(one["task"], one["key"], one["items"], one["num_fewshot"]) for one in said["tasks"]] == [
        ("read", "bits_per_byte,none", 4, 1),
        ("pick", "acc,none", 4, 1),
        ("pick", "acc_norm,none", 4, 1),
    ]
    (bits, *_) = said["tasks"]
    assert (bits["suite"], bits["metric"], bits["higher_is_better"], bits["base"]) == (
        None,
        "bits per byte",
        False,
        None,
    )
    assert score("mean.yml", "--tasks", "read", "--limit", "4", "--num-fewshot", "1", "--json").json["tasks"] == [bits]


def test_what_cannot_be_scored_is_one_sentence(score, run, folder):
    for arguments, words in [
        (("base", "--tasks", "pick", "--expert", folder / "nothing"), "there is no file or folder"),
        (("base", "--tasks", ","), "--tasks names no task"),
        (("base", "--tasks", "lm/python", "--base", folder / "base"), "a suite has its own"),
        (("base", "--tasks", "lmm/python"), "there is no suite 'lmm'"),
    ]:
        outcome = score(*arguments)
        assert outcome.code == 2
        assert words in outcome.err


def test_a_model_that_is_not_there_is_said_before_a_suite_is_made(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path / "home"))
    outcome = run("evaluate", tmp_path / "nothing", "--tasks", "lm/python")
    assert outcome.code == 2 and "there is no file or folder" in outcome.err
    assert not (tmp_path / "home" / "suites").exists()
