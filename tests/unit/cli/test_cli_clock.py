"""Time."""

from __future__ import annotations

import time

from cuvee.cli.clock import Clock, process_age


def test_a_process_is_older_than_its_clock():
    assert process_age() > 0
    clock = Clock(age=5.0)
    assert clock.total >= 5.0


def test_phases_add_up():
    clock = Clock()
    for _ in range(2):
        with clock.phase("plan"):
            time.sleep(0.01)
    assert 0.02 <= clock.phases["plan"] <= clock.total
