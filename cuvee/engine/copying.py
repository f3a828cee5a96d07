"""Plans that only move tensors: copied, renamed, laid end to end, changed elementwise. Nothing is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blake3 import blake3

from cuvee._version import __version__
from cuvee.checkpoints.sidecars import Sidecar
from cuvee.checkpoints.sources import Model
from cuvee.checkpoints.writing import plan_shards
from cuvee.engine.budget import choose_budget
from cuvee.engine.plan import DEFAULT_SHARD_SIZE, Asked, Plan
from cuvee.engine.rounds import Tally
from cuvee.engine.tasks import Formula, Task
from cuvee.methods.registry import find_method

__all__ = ["plan_copies"]


def plan_copies(
    asked: Asked,
    models: Mapping[int, Model],
    tasks: Sequence[Task],
    *,
    config: Mapping[str, Any] | None,
    sidecars: Sequence[Sidecar] = (),
    roles: Mapping[int, str] = {},
    dropped: Mapping[str, str] = {},
    tokens: Mapping[str, Any] = {},
    warnings: Sequence[str] = (),
    digest: str = "",
    profile: str = "portable-1",
    memory: int | None = None,
    threads: int | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
) -> Plan:
    """Plan an output whose tensors are copies; `cuvee.run` carries it out like any other.

    Args:
        asked: with all that decides how inputs are changed: it is part of the plan's id.
        tasks: copies. An input whose model is not among `models` was computed, and leaves no trace but its values.
        digest: of what was computed for the inputs that no model holds.
        profile: where these computations give the same bytes; see `Plan`.

    Raises:
        ResourceError: `memory` is too little.
    """
    passthrough = find_method("passthrough")
    shards = plan_shards({task.name: (task.dtype, task.layout.shape) for task in tasks}, shard_size)
    content = {
        "version": __version__,
        "asked": asked.recipe,
        "digest": digest,
        "tasks": sorted(
            [t.name, list(t.layout.shape), t.dtype.name, [[one.model, one.name] for one in t.inputs]] for t in tasks
        ),
        "shards": [shard.file for shard in shards],
        "config": config,
        "sidecars": [sidecar.identity for sidecar in sidecars],
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return Plan(
        asked=asked,
        models=models,
        tasks=sorted(tasks, key=lambda task: (*task.inputs[0].source.place, task.name)),
        formula=Formula(passthrough),
        shards=shards,
        config=config,
        sidecars=sidecars,
        budget=choose_budget(tasks, Formula(passthrough), memory=memory, threads=threads, measures=False),
        bytes_read=sum(task.bytes_read for task in tasks),
        bytes_written=sum(task.bytes_written for task in tasks),
        tally=Tally(1, 1),
        plan_id=blake3(text.encode("utf-8", "surrogatepass")).hexdigest(),
        roles=roles,
        profile=profile,
        dropped=dropped,
        tokens=tokens,
        warnings=tuple(dict.fromkeys(warnings)),
    )
