"""Expert suites: real bases, real experts and real tasks, one file a suite; built once and kept under `CUVEE_HOME`.

built = suite("lm").build(quick=True)
score = built.score(built.tensors(built.base), "python")
"""

from __future__ import annotations

import importlib

from cuvee.errors import ResourceError, nearest
from cuvee.evaluation.suites.suite import BASE, Built, Corruption, Progress, Score, Split, Suite, Task

__all__ = ["BASE", "SUITES", "Built", "Corruption", "Progress", "Score", "Split", "Suite", "Task", "suite"]

SUITES = {
    "lm": "cuvee.evaluation.suites.lm",
}
"""Modules by the name of the suite, each of which has it as `SUITE`; imported when asked for."""


def suite(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        ResourceError: there is none.
    """
    if name not in SUITES:
        raise ResourceError(f"there is no suite {name!r}", right=nearest(name, SUITES))
    found: Suite = importlib.import_module(SUITES[name]).SUITE
    return found
