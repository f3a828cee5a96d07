"""What a terminal gets beside plain text: a bar, colour, and no control characters of others."""

from __future__ import annotations

import io

import pytest

from cuvee.cli.progress import Bar
from cuvee.cli.screen import print_json, screen, show, styled, table
from cuvee.evaluation.bars import training_shown


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stdout and stderr count as terminals with colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("terminal")
def test_a_bar_shows_share_bytes_and_rate(capsys):
    with Bar() as bar:
        bar.show(0, 2e9, "merging")
        bar.show(5e8, 2e9, "merging")
        bar.show(1e9, 2e9, "merging")
        bar.show(2e9, 2e9, "publishing")
    said = capsys.readouterr().err
    assert "publishing" in said
    assert "100 % of 2.00 GB" in said


@pytest.mark.parametrize("wanted", [True, False])
def test_no_bar_is_drawn_into_a_file_or_when_not_wanted(capsys, monkeypatch, wanted):
    if not wanted:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Bar(wanted=wanted) as bar:
        bar.show(1, 2, "merging")
    assert capsys.readouterr().err == ""


def test_a_log_gets_a_line_a_minute(capsys, monkeypatch):
    monkeypatch.setattr("cuvee.cli.progress.LINE_EVERY_S", 0)
    with Bar() as bar:
        bar.show(0, 2e9, "measuring")
        bar.show(5e8, 2e9, "merging")
    with Bar(wanted=False) as bar:
        bar.show(1, 2, "merging")
    assert capsys.readouterr().err == "measuring\nmerging: 25 % of 2.00 GB\n"


def test_models_that_are_made_tell_a_log_how_far_they_are(capsys, monkeypatch):
    def train(**how):
        with training_shown(screen(stderr=True), **how) as progress:
            progress("base", 0, 0, "")  # made before
            progress("[b]", 2, 10, "2.31 bits")

    train()
    monkeypatch.setattr("cuvee.evaluation.bars.LINE_EVERY_S", 0)
    train(quiet=True)
    assert capsys.readouterr().err == ""
    train()
    assert capsys.readouterr().err == "make [b]: 2 of 10 steps, 2.31 bits\n"


@pytest.mark.usefixtures("terminal")
def test_errors_and_pages_are_coloured_in_a_terminal(run):
    outcome = run("methods", "tise")
    assert outcome.err.startswith("\x1b[1;31munknown merge method 'tise'\x1b[0m\n")
    assert "\x1b[1;36m" in run("methods").out


@pytest.mark.usefixtures("terminal")
def test_maps_are_blocks_of_colour_in_a_terminal_and_shades_without_colour(run, models, monkeypatch):
    assert "\x1b[48;2;253;231;37m" in run("compare", models.base, models.math).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "█" in run("compare", models.base, models.math).out


def test_files_get_no_colour_and_no_spaces_at_line_ends(run):
    for arguments in (("methods",), ("methods", "ties")):
        out = run(*arguments).out
        assert "\x1b" not in out
        assert not any(line.endswith(" ") for line in out.split("\n"))


def test_text_is_never_read_as_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    made = table("[bold]name[/bold]")
    made.add_row(styled("[red]layer[/red] :smile: \x1b[2J"))
    show(screen(), styled("[blink]"), made)
    out = capsys.readouterr().out
    assert "[blink]" in out
    assert "[bold]name[/bold]" in out
    assert "[red]layer[/red] :smile: \\x1b[2J" in out


def test_json_is_ascii_and_knows_no_nan(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    print_json({"name": "\u202e\x9bé", "nan": float("nan"), "list": (1.5, float("inf"), None, True)})
    assert out.getvalue().isascii()
    assert '"nan": null' in out.getvalue()
    assert "\x9b" not in out.getvalue()
