"""How long the command takes: from the start of its process, and by phase."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Clock", "process_age"]

_FIRST_SEEN = time.perf_counter()
_MOST_START_UP = 600.0


def process_age() -> float:
    """Return the seconds since this process began; where the system does not say, since this module was imported."""
    since_import = time.perf_counter() - _FIRST_SEEN
    try:
        # Field 22 of proc(5): ticks after boot. The name in field 2 may hold spaces and brackets.
        fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, IndexError, AttributeError):
        return since_import
    return age if since_import <= age <= since_import + _MOST_START_UP else since_import


class Clock:
    """Seconds by phase and in total."""

    def __init__(self, *, age: float = 0.0) -> None:
        self._begin = time.perf_counter() - age
        self.phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - begin

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begin
