"""`cuvee bench run` as it is typed, on a suite small enough for a test."""

import json
import re
import signal

import pytest

from cuvee.cli.app import main
from cuvee.cli.stopping import Stopped
from cuvee.evaluation.model_folders import save_model
from cuvee.evaluation.suites import lm
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.evaluation.training import Training

FORM = lm.Form(
    shape=Shape(hidden=16, intermediate=24, layers=1, heads=2, key_value_heads=1, context=16),
    base=Training(steps=10, learning_rate=4e-3, muon_rate=0.02, warmup=1),
    expert=Training(steps=10, learning_rate=4e-3, warmup=1),
    train_bytes=8_000,
    held_out_bytes=600,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(lm, "QUICK", FORM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cuvee_line(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code or 0


def run(*arguments):
    return cuvee_line("bench", "run", *arguments)


@pytest.mark.slow
def test_a_run_leaves_its_files_and_a_second_run_the_same(home, capsys):
    arguments = ("lm", "--quick", "--seeds", "2", "--methods", "linear", "ties:density=0.5", "slerp")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "ties:density=0.5" in printed
    assert "exactly 2 models" in printed
    files = {path.name: path.read_bytes() for path in (home / "bench-lm-quick").iterdir()}
    assert set(files) == {"report.html", "results.csv", "results.json", "results.md"}
    found = json.loads(files["results.json"])
    assert [seed["seed"] for seed in found["seeds"]] == [0, 1]
    assert found["command"].startswith("cuvee bench run lm --quick --seeds 2")
    assert run(*arguments, "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert {path.name: path.read_bytes() for path in (home / "bench-lm-quick").iterdir()} == files


def test_json_alone_is_on_stdout(home, capsys):
    assert run("lm", "--quick", "--methods", "linear", "--limit", "3", "--out", "there", "--json") == 0
    assert json.loads(capsys.readouterr().out)["limit"] == 3
    assert (home / "there" / "results.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("lmm",), "lm"),
        (("lm", "--methods", "tiess"), "ties"),
        (("pairs-chgnet",), "nothing to score"),
        (("lm", "--methods", "ties:density=3"), "density"),
        (("lm", "--severity", "6"), "5"),
        (("lm", "--severity"), "--severity needs a value"),
        (("lm", "--methods", "--quick"), "--methods needs a value"),
        (("pairs", "--seeds", "9"), "there are 8 published members"),
    ],
)
def test_a_wrong_word_ends_it_before_anything_is_made(home, capsys, arguments, named):
    assert run(*arguments) == 2
    assert named in capsys.readouterr().err
    assert not (home / "home").exists()


@pytest.mark.slow
def test_a_model_is_scored_beside_the_base_and_the_expert(home, capsys):
    built = lm.SUITE.build(quick=True)
    assert cuvee_line("evaluate", built.experts["yaml"], "--tasks", "lm/yaml", "lm/english", "--quick", "--json") == 0
    yaml, english = json.loads(capsys.readouterr().out)["tasks"]
    assert yaml["model"] == yaml["expert"] == built.score(built.tensors(built.experts["yaml"]), "yaml").value
    assert yaml["base"] == built.score(built.tensors(built.base), "yaml").value
    assert english["expert"] is None
    items = built.score(built.tensors(built.experts["yaml"]), "yaml").items
    assert yaml["standard_error"] == pytest.approx(items.std(ddof=1) / len(items) ** 0.5, rel=1e-6)
    assert cuvee_line("evaluate", built.base, "--tasks", "lm", "--quick", "--limit", "2") == 0
    said = capsys.readouterr().out
    assert re.search(r"lm/yaml .* \d\.\d+ ± 0\.\d+ ", said) and "standard error" in said
    assert all(len(line) <= 80 for line in said.splitlines()[1:])  # the first has the path
    assert cuvee_line("evaluate", str(home / "nowhere"), "--tasks", "lm/yaml", "--quick") == 2


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (("lm/pyton", "--quick"), "did you mean 'python'?"),
        (("text-encoder/bibel",), "did you mean 'bible'?"),
        (("vision-resnet/lattin", "--quick"), "did you mean 'latin'?"),
        (("pairs/cx",), "did you mean 'ccx'?"),
        (("lm/french", "--quick"), "leave out --quick"),
        (("lm/yaml",), "add --quick"),
        (("lmm/yaml",), "did you mean 'lm'?"),
        (("pairs-chgnet",), "nothing to score"),
    ],
)
def test_a_wrong_task_is_told_before_anything_is_made(home, capsys, tasks, words):
    assert cuvee_line("evaluate", str(home), "--tasks", *tasks) == 2
    assert words in capsys.readouterr().err
    assert not (home / "home").exists()


@pytest.mark.parametrize(
    ("quick", "right"),
    [((), "add --quick: the model has the shape of the quick form"), (("--quick",), "a model of the suite's shape")],
)
def test_a_model_of_another_shape_is_told_before_anything_is_made(home, capsys, quick, right):
    shape = FORM.shape if not quick else Shape(hidden=8, intermediate=24, layers=1, heads=2, key_value_heads=1)
    save_model(TinyLlama(shape), home / "m")
    recipe = home / "m.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {home}/m, parameters: {{weight: 1.0}}}}]\n")
    for model in (home / "m", recipe):
        assert cuvee_line("evaluate", str(model), "--tasks", "lm/python", *quick) == 2
        said = capsys.readouterr().err
        assert "the suite lm cannot score this model: " in said and f"where: {model}" in said and right in said
    assert not (home / "home").exists()


def test_a_stopped_evaluation_says_that_the_same_command_goes_on(home, capsys, monkeypatch):
    def stopped(*_, **__):
        raise Stopped(signal.SIGINT)

    save_model(TinyLlama(FORM.shape), home / "m")
    monkeypatch.setattr("cuvee.cli.evaluate.suite_lines", stopped)
    assert cuvee_line("evaluate", str(home / "m"), "--tasks", "lm/python", "--quick") == 130
    assert "right: the same command again, which goes on where it stopped" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_expert_is_not_scored_and_the_command_that_is_named_mends_it(home, capsys):
    folder = lm.SUITE.build(quick=True).folder
    weights = folder / "yaml" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    for command in (("bench", "run", "lm", "--quick", "--methods", "linear"), ("evaluate", str(folder / "base"))):
        more = () if command[0] == "bench" else ("--tasks", "lm/yaml", "--quick")
        assert cuvee_line(*command, *more) == 2
        said = capsys.readouterr().err
        assert f"where: {weights}" in said and "right: cuvee bench build lm --quick, which makes it again" in said
    assert cuvee_line("bench", "build", "lm", "--quick") == 0
    assert weights.read_bytes() == whole


@pytest.mark.slow
def test_a_model_that_was_scored_before_is_not_scored_again(home, capsys, monkeypatch):
    built = lm.SUITE.build(quick=True)
    command = ("evaluate", built.experts["cpp"], "--tasks", "lm", "--quick", "--limit", "2", "--json")
    assert cuvee_line(*command) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(lm._Scorer, "__call__", None)  # nothing can be scored
    assert cuvee_line(*command) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 118, 140])
def test_a_table_of_several_severities_fits_the_window(home, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run("lm", "--quick", "--methods", "linear", "--limit", "2", "--severity", "5", "1", "3") == 0
    out = capsys.readouterr().out
    assert all(len(line) <= width for line in out.splitlines())
    (head,) = (line for line in out.splitlines() if line.strip().startswith("model"))
    assert head.split().count("shifted") == (0 if width == 80 else 3)
    assert ("memory" in head) == (width == 140)
    assert "merge" in head
    found = json.loads((home / "bench-lm-quick" / "results.json").read_text())
    assert found["severities"] == [1, 3, 5]
    assert found["command"].endswith("--severity 1 3 5 --methods linear")
