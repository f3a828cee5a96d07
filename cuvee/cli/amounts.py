"""Amounts in words: bytes, counts, seconds, shares."""

from __future__ import annotations

import math
import re

from cuvee.errors import RecipeError

__all__ = [
    "in_bytes",
    "in_clock",
    "in_cosine",
    "in_number",
    "in_seconds",
    "in_share",
    "in_short",
    "parse_seconds",
    "parse_share",
    "plural",
]

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def in_bytes(count: float) -> str:
    """Return `1.23 GB`; decimal units, as disks are sold."""
    for step, letter in _STEPS:
        if count >= step * 0.9995:
            return f"{_three_digits(count / step)} {letter}B"
    return f"{count:.0f} B"


def in_number(count: int) -> str:
    """Return `374 M` for a count of parameters; small counts as they are."""
    if count < 10_000:
        return f"{count}"
    for step, letter in _STEPS:
        if count >= step * 0.9995:
            return f"{_three_digits(count / step)} {letter}"
    return f"{count}"


def in_seconds(seconds: float) -> str:
    """Return `0.43 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def in_clock(seconds: float) -> str:
    """Return `0:43`, `12:05`, `1:02:05`, which keeps its width while it runs down."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def in_share(share: float) -> str:
    """Return `12.3 %`; nothing known (NaN) is a dash."""
    if math.isnan(share):
        return "–"
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 99.95 else f"{percent:.1f} %"


def in_short(value: float) -> str:
    """Return a number in four significant digits at most; nothing known (NaN) is a dash."""
    return "–" if math.isnan(value) else f"{value:.4g}"


def in_cosine(value: float) -> str:
    """Return a number between -1 and 1 with three decimals; nothing known (NaN) is a dash."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-0.000", "0.000")


def plural(count: int, noun: str) -> str:
    """Return `1 tensor`, `2 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}".replace(",", " ")


def parse_share(text: str, *, where: str) -> float:
    """Return the share, from 0 to 1, that `5%` or `0.05` means.

    Raises:
        RecipeError: it is none, or nothing.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if rest or not 0 < share <= 1:
        raise RecipeError(f"{text!r} is not a share", where=where, right="a number of percent, such as 5%")
    return share


def parse_seconds(text: str, *, where: str) -> float:
    """Return the seconds that `90s`, `30m`, `12h` or `2d` means.

    Raises:
        RecipeError: it is no time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise RecipeError(f"{text!r} is not a time", where=where, right="a number and s, m, h or d, such as 12h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
