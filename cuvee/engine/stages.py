"""Stages: what one recipe makes is a model of another, computed block by block as it is read, or published first.

Where each block of the stage's output can be computed alone, it never touches the disk. Where something must be measured
over a tensor (a trim, an angle), the stage is run and published beside the output, read from there, and removed at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import Model, Scratch, as_tensor, read_raw
from cuvee.engine.blocks import Worker, compute_block
from cuvee.engine.tasks import Task
from cuvee.tensors.dtypes import DType

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from cuvee.engine.plan import MergePlan

__all__ = ["Stage", "StageTensor", "describe_stages", "is_ready", "stage_model", "stages_of"]


@dataclass
class Stage:
    """One stage.

    Attributes:
        name: by which the recipe calls it.
        plan: what makes it.
        opened: the model as published; None while it is computed as it is read, or not made yet.
    """

    name: str
    plan: MergePlan
    opened: Model | None = None
    _workers: WeakKeyDictionary[Scratch, Worker] = field(default_factory=WeakKeyDictionary, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def is_streamed(self) -> bool:
        """True when every block can be computed alone."""
        is_whole = any(self.plan.formula.needs_whole(task) for task in self.plan.tasks)
        return self.plan.tally.visits == 1 and self.plan.tally.rounds == 1 and not is_whole

    @property
    def is_ready(self) -> bool:
        """True when its tensors can be read."""
        if self.opened is not None:
            return True
        return self.is_streamed and all(stage.is_ready for stage in stages_of(self.plan.models.values()))

    def read_from(self, folder: Path) -> None:
        """Read it from a folder, where it was published."""
        self.opened = open_model(folder)

    def worker(self, scratch: Scratch) -> Worker:
        """Return the buffers of the thread that a scratch belongs to."""
        with self._lock:
            return self._workers.setdefault(scratch, Worker())


@dataclass(frozen=True)
class StageTensor:
    """One tensor that a stage makes, rounded to the stage's dtype."""

    stage: Stage
    task: Task

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.task.layout.shape

    @property
    def dtype(self) -> DType:
        """As the stage would write it."""
        return self.task.dtype

    @property
    def place(self) -> tuple[str, int]:
        """Where the first input lies."""
        return self.task.all_inputs[0].source.place

    @property
    def rows(self) -> int:
        """Blocks in float32 that computing it takes."""
        return 0 if self.stage.opened is not None else 2 * len(self.task.all_inputs) + 8

    def read_raw(self, start: int, stop: int, scratch: Scratch, slot: object) -> NDArray[np.uint8]:
        """Return the bytes of the flat elements `[start, stop)`; whole leaves are cheapest."""
        if self.stage.opened is not None:
            return read_raw(self.stage.opened.tensors[self.task.name], start, stop, scratch, slot)
        layout = self.task.layout
        first, last = start // layout.leaf * layout.leaf, min(-(-stop // layout.leaf) * layout.leaf, layout.numel)
        place = self.task.place(first, last)
        formula = self.stage.plan.formula
        block = compute_block(self.task, formula, formula.call(place, {}, {}), self.stage.worker(scratch))
        width = self.dtype.itemsize
        out = scratch.take_raw(slot, (stop - start) * width)
        out[:] = block.raw[(start - first) * width : (stop - first) * width]
        return out

    def read(self, start: int, stop: int, scratch: Scratch, slot: object) -> torch.Tensor:
        """Return the flat elements `[start, stop)`."""
        return as_tensor(self.read_raw(start, stop, scratch, slot), self.dtype)


def stage_model(name: str, plan: MergePlan) -> Model:
    """Return a stage as a model: its files are those of its inputs, watched as the others are."""
    stage = Stage(name, plan)
    reference = plan.models.get(-1, plan.models[0])
    return Model(
        name,
        {task.name: StageTensor(stage, task) for task in plan.tasks},
        dict(plan.config) if plan.config is not None else None,
        reference.folder,
        tuple(plan.files),
        tuple(plan.warnings),
        {commit: of for model in plan.models.values() for commit, of in model.commits.items()},
        sidecars=tuple(plan.sidecars),
    )


def stages_of(models: Iterable[Model]) -> list[Stage]:
    """Return the stages that models are made by, and those that these need first, each once."""
    found: dict[int, Stage] = {}
    for stage in _direct(models):
        for one in (*stages_of(stage.plan.models.values()), stage):
            found.setdefault(id(one), one)
    return list(found.values())


def _direct(models: Iterable[Model]) -> Iterator[Stage]:
    for model in models:
        for source in model.tensors.values():
            if (stage := next(_beneath(source), None)) is not None:
                yield stage
                break


def _beneath(source: Any) -> Iterator[Stage]:
    """Yield the stages that a tensor is made from, its own before those that lend it rows of a vocabulary."""
    if isinstance(source, StageTensor):
        yield source.stage
        return
    inner = [getattr(source, key, None) for key in ("base", "source")]
    for one in (*inner, *getattr(source, "sources", ())):
        if one is not None:
            yield from _beneath(one)


def is_ready(source: Any) -> bool:
    """False for values that a stage has yet to make."""
    return all(stage.is_ready for stage in _beneath(source))


def describe_stages(models: Mapping[int, Model]) -> list[dict[str, Any]]:
    """Return what the manifest says of the stages: recipe and inputs of each."""
    return [
        {
            "name": stage.name,
            "plan": stage.plan.plan_id,
            "recipe": stage.plan.asked.recipe,
            "inputs": [model.label for model in stage.plan.models.values()],
        }
        for stage in stages_of(models.values())
    ]
