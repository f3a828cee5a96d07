"""Whether experts descend from the base: a look at the first values of some matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cuvee.checkpoints.sources import Scratch, TensorSource, read_raw
from cuvee.engine.blocks import decode
from cuvee.engine.matching import BASE
from cuvee.engine.stages import is_ready
from cuvee.engine.tasks import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["kinship"]


def kinship(tasks: Sequence[Task], labels: Mapping[int, str]) -> list[str]:
    """Look at the first leaf of some large matrices, and say which experts do not descend from the base."""
    ready = (t for t in tasks if all(is_ready(one.source) for one in t.all_inputs))
    sampled = sorted((t for t in ready if t.base and len(t.layout.shape) > 1), key=lambda t: (-t.layout.numel, t.name))[
        :8
    ]
    sums: dict[int, list[float]] = {}
    scratch = Scratch()
    for task in sampled:
        assert task.base is not None
        stop = min(task.layout.numel, task.layout.leaf)
        base = _first_values(task.base.source, stop, scratch)
        for one in task.inputs:
            if one.is_delta:
                continue
            expert = _first_values(one.source, stop, scratch)
            found = sums.setdefault(one.model, [0.0, 0.0, 0.0])
            pairs = ((base, base), (base, expert), (expert, expert))
            with np.errstate(invalid="ignore"):  # NaN and Inf are named when they are read
                found[:] = [old + float((x * y).sum()) for old, (x, y) in zip(found, pairs, strict=True)]
    warnings = []
    for model, (bb, be, ee) in sums.items():
        cosine = be / math.sqrt(bb * ee) if bb * ee > 0 else 1.0
        distance = math.sqrt(max(bb - 2 * be + ee, 0.0) / bb) if bb > 0 else 0.0
        if cosine < 0.3 and distance > 0.5:
            warnings.append(
                f"{labels[model]} does not look like a fine-tune of {labels[BASE]}: cosine {cosine:.2f}, "
                f"‖delta‖ is {distance:.2f} of ‖base‖; a merge of unrelated models is noise"
            )
    return warnings


def _first_values(source: TensorSource, stop: int, scratch: Scratch) -> NDArray[np.float64]:
    values = np.empty(stop, np.float32)
    decode(read_raw(source, 0, stop, scratch, "sample"), source.dtype, None, values)
    return values.astype(np.float64)
