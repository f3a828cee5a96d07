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
    "lm": "cuvee.evaluation.suites.lm:SUITE",
    "lm-lora": "cuvee.evaluation.suites.lm:SUITE_LORA",
    "text-encoder": "cuvee.evaluation.suites.text_encoder:SUITE",
    "vision": "cuvee.evaluation.suites.vision:SUITE",
    "vision-resnet": "cuvee.evaluation.suites.vision:SUITE_RESNET",
    "pairs": "cuvee.evaluation.suites.pairs:SUITE",
    "pairs-seeds": "cuvee.evaluation.suites.pairs:SUITE_SEEDS",
    "pairs-chgnet": "cuvee.evaluation.suites.chgnet:SUITE",
}
"""Where each suite is; imported when it is asked for."""


def suite(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        ResourceError: there is none.
    """
    if name not in SUITES:
        raise ResourceError(f"there is no suite {name!r}", right=nearest(name, SUITES))
    module, _, place = SUITES[name].partition(":")
    found: Suite = getattr(importlib.import_module(module), place)
    return found
