"""Amounts in words."""

from __future__ import annotations

import math

import pytest

from cuvee.cli import amounts


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_999, "1.00 MB"), (123_456_789, "123 MB"), (5e9, "5.00 GB")],
)
def test_bytes(count, words):
    assert amounts.in_bytes(count) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (9999, "9999"), (16_384, "16.4 k"), (374_000_000, "374 M"), (7_240_000_000, "7.24 G")],
)
def test_numbers(count, words):
    assert amounts.in_number(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.004, "0.00 s"),
        (9.99, "9.99 s"),
        (12.3, "12 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_seconds(seconds, words):
    assert amounts.in_seconds(seconds) == words


def test_a_clock_that_runs_down_keeps_its_width():
    assert [amounts.in_clock(seconds) for seconds in (3, 43, 725, 3725)] == ["0:03", "0:43", "12:05", "1:02:05"]


def test_what_is_not_known_is_a_dash():
    assert {f(math.nan) for f in (amounts.in_share, amounts.in_short, amounts.in_cosine)} == {"–"}


def test_cosines_have_no_negative_zero():
    assert amounts.in_cosine(-0.0001) == "0.000"


def test_plurals():
    assert [amounts.plural(count, "tensor") for count in (0, 1, 2, 12345)] == [
        "0 tensors",
        "1 tensor",
        "2 tensors",
        "12 345 tensors",
    ]
