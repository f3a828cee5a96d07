"""`cuvee gc`."""

from __future__ import annotations

import os
import time

import pytest


@pytest.fixture
def place(tmp_path):
    """A folder with what a killed run towards `out` has left, two days ago, and a name that would drive a terminal."""
    for name in ("out", "o\x1b[2Jut"):
        folder = tmp_path / f".{name}.cuvee-0123456789ab"
        (folder / "model").mkdir(parents=True)
        for path in (folder / "model", folder):
            os.utime(path, (time.time() - 2 * 86_400,) * 2)
    return tmp_path


def test_nothing_is_removed_before_it_is_told_to(run, place):
    outcome = run("gc", place)
    assert outcome.code == 0, outcome.err
    assert "2 things to remove" in outcome.out and "--remove does it" in outcome.out and "\x1b" not in outcome.out
    assert len(os.listdir(place)) == 2
    removed = run("gc", place, "--remove")
    assert removed.out.startswith("removed 2 things")
    assert os.listdir(place) == []
    assert run("gc", place).out.startswith("nothing was left")


def test_what_is_too_young_is_kept_and_said(run, place):
    found = run("gc", place, "--remove", "--older-than", "7d", "--json").json
    assert [one["removed"] for one in found["leftovers"]] == [False, False]
    assert found["bytes_freed"] == 0
    assert "too young" in run("gc", place, "--older-than", "7d").out


@pytest.mark.parametrize("text", ["", "1", "d", "1 d", "1w"])
def test_a_time_that_is_none_is_refused(run, place, text):
    outcome = run("gc", place, "--older-than", text)
    assert outcome.code == 2 and "is not a time" in outcome.err and "--older-than" in outcome.err
