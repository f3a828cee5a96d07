"""How reports write numbers: as many digits as mean something, a true minus, a dash for what is not known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuvee.evaluation.measures import Interval
    from cuvee.reports.bench_rows import Row

__all__ = ["UNKNOWN", "chosen", "in_bytes", "plus_minus", "signed", "three_digits", "two_digits"]

UNKNOWN = "–"


def two_digits(value: float | None) -> str:
    """Return 0.87, −0.20, 0.0031: two digits after the point, or two that are not zero."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
    return text.replace("-", "−")


def three_digits(value: float | None) -> str:
    """Return 0.876."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "−")


def plus_minus(measure: Interval | None) -> str:
    """Return 0.876 ± 0.012; without the latter where nothing is known of it."""
    if measure is None or not math.isfinite(measure.mean):
        return UNKNOWN
    half = f" ± {measure.half:.3f}" if math.isfinite(measure.half) else ""
    return three_digits(measure.mean) + half


def signed(measure: Interval | None) -> str:
    """Return a change with its sign."""
    if measure is None or not math.isfinite(measure.mean):
        return UNKNOWN
    return f"{measure.mean:+.3f}".replace("-", "−")


def chosen(row: Row) -> str:
    """Return "scaling 0.3", or "scaling 0.3, 0.5" where seeds chose differently."""
    if row.coefficient is None:
        return UNKNOWN
    return f"{row.coefficient} " + ", ".join(f"{one:g}" for one in dict.fromkeys(row.chosen))


def in_bytes(size: float | None) -> str:
    """Return 1.4 MB."""
    if size is None:
        return UNKNOWN
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size:.0f} B"
