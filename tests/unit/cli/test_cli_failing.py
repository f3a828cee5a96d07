"""What a failing command says, and its exit code."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from cuvee.cli import app
from cuvee.cli.failing import as_user_error
from cuvee.errors import CheckpointError, CuveeError, Problems


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every command raise an error."""

    def call(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(app, "_call", call)


def test_success_ends_with_0(run):
    assert run("methods").code == 0


def test_no_arguments_print_the_help(run):
    outcome = run()
    assert outcome.code == 0
    assert "Usage: cuvee COMMAND" in outcome.out


def test_an_error_of_the_users_ends_with_2_and_is_said_on_stderr(run):
    outcome = run("merge", "nowhere.yml", "out")
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err == (
        "the recipe cannot be read: No such file or directory\n  where: nowhere.yml\n  right: the path of a file\n"
    )


@pytest.mark.parametrize(
    ("arguments", "found", "right"),
    [
        (["mrege"], "unknown command 'mrege'", "did you mean 'merge'?"),
        (["merge", "r", "o", "--thread", "2"], "unknown option '--thread'", "did you mean '--threads'?"),
        (["merge", "r", "o", "--thread=2"], "unknown option '--thread'", "did you mean '--threads'?"),
        (["merge", "r", "o", "--threads", "x"], "--threads is 'x'", "--threads with a whole number"),
        (["merge", "r", "o", "--threads", "0"], "--threads is '0'", "--threads 1, or more"),
        (["merge", "r", "o", "--threads"], "--threads needs a value", "--threads with a whole number"),
        (["merge", "r", "o", "--device", "gpu"], "--device is 'gpu'", "--device cpu or --device cuda"),
        (["merge", "r", "o", "--memory", "2XB"], "'2XB' is not a size", "a number and a unit, such as 500MB or 2GB"),
        (["merge", "r", "o", "--seed", "1", "--seed", "2"], "--seed is given twice", "give it once"),
        (["merge", "r", "o", "p"], "one argument too many: 'p'", "see cuvee merge --help"),
        (["merge", "r"], "OUT is missing", "cuvee merge RECIPE OUT; see cuvee merge --help"),
        (["compare", "b"], "EXPERT is missing", "cuvee compare b EXPERT…"),
        (["methods", "tise"], "unknown merge method 'tise'", "did you mean 'ties'?"),
    ],
)
def test_a_wrong_command_line_is_a_user_error_that_says_what_would_be_right(run, arguments, found, right):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"{found}\n")
    assert f"  right: {right}\n" in outcome.err


def test_json_errors_are_an_object_on_stdout_too(run):
    outcome = run("methods", "tise", "--json")
    assert outcome.code == 2
    assert outcome.json == {
        "error": {
            "found": "unknown merge method 'tise'",
            "where": "cuvee methods tise",
            "right": "did you mean 'ties'?",
            "kind": "MethodError",
        }
    }
    assert outcome.err.startswith("unknown merge method 'tise'\n")


def test_json_of_a_wrong_command_line_is_an_object(run):
    assert run("merge", "--json").json["error"]["kind"] == "UsageError"


def test_several_errors_are_a_list_in_json_and_numbered_on_stderr(run, models):
    recipe = models.write_recipe("wrong.yml", "merge_method: tise\nmodels: [MATH, CODE]\ndtype: float17\n")
    outcome = run("plan", recipe, "--json")
    assert outcome.code == 2
    assert {error["kind"] for error in outcome.json["errors"]} == {"RecipeError", "MethodError"}
    assert {error["where"].split(":")[1] for error in outcome.json["errors"]} == {"1", "3"}
    assert outcome.err.startswith("2 problems\n1. ")
    assert "\n     where: " in outcome.err


def test_many_errors_are_cut_short_on_stderr_and_whole_in_json(run, monkeypatch):
    fails_with(monkeypatch, Problems([CuveeError(f"error {i}") for i in range(30)]))
    outcome = run("methods", "--json")
    assert len(outcome.json["errors"]) == 30
    assert "20. error 19" in outcome.err
    assert "error 20" not in outcome.err
    assert "and 10 more" in outcome.err


def test_a_bug_ends_with_1_and_keeps_its_traceback_in_a_file(run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUVEE_DEBUG", raising=False)
    fails_with(monkeypatch, KeyError("lost"))
    outcome = run("methods", "--json")
    assert outcome.code == 1
    assert outcome.err.startswith("cuvee failed, and the fault is cuvee's: KeyError: 'lost'\n")
    (report,) = tmp_path.iterdir()
    assert f"  where: {report}\n" in outcome.err
    assert "Traceback" in report.read_text()
    assert outcome.json["error"]["kind"] == "CuveeBug"


def test_a_bug_prints_its_traceback_when_asked(capsys, monkeypatch):
    monkeypatch.setenv("CUVEE_DEBUG", "1")
    fails_with(monkeypatch, KeyError("lost"))
    with pytest.raises(SystemExit) as ended:
        app.main(["methods"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_errors_of_the_system_and_of_memory_are_the_users():
    full = as_user_error(OSError(28, "No space left on device", "out/x"))
    assert full is not None
    assert (full.found, full.where) == ("no space left on device", "out/x")
    assert as_user_error(MemoryError()).found == "memory ran out"
    assert as_user_error(RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes")).found == "memory ran out"
    assert as_user_error(RuntimeError("else")) is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_unwinds_and_ends_with_its_code(run, monkeypatch, number, code):
    unwound = []

    def call(arguments: list[str]) -> None:
        try:
            signal.raise_signal(number)
        finally:
            unwound.append(True)

    before = signal.getsignal(number)
    monkeypatch.setattr(app, "_call", call)
    outcome = run("merge")
    assert outcome.code == code
    assert unwound == [True]
    assert outcome.err.startswith("stopped\n")
    assert signal.getsignal(number) is before


def test_names_in_errors_cannot_drive_the_terminal(run, monkeypatch):
    fails_with(
        monkeypatch, CheckpointError("tensor \x1b[2J[red]x[/red]\u202e is bad", where="\x07bell", right="\x9b1m")
    )
    outcome = run("methods", "--json")
    assert "\x1b" not in outcome.err + outcome.out
    assert "\u202e" not in outcome.err + outcome.out
    assert "\x9b" not in outcome.err + outcome.out
    assert "[red]x[/red]" in outcome.err
    assert json.loads(outcome.out)["error"]["found"] == "tensor \x1b[2J[red]x[/red]\u202e is bad"


def test_a_damaged_model_is_named(run, models, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((models.base / "model.safetensors").read_bytes()[:-1])
    outcome = run("inspect", broken)
    assert outcome.code == 2
    assert str(broken) in outcome.err


def test_a_file_in_the_way_is_said_before_anything_is_read(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    outcome = run("merge", Path("nowhere.yml"), tmp_path / "out")
    assert outcome.code == 2
    assert "not empty" in outcome.err
    assert "--overwrite" in outcome.err
