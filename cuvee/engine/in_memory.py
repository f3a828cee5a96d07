"""Merging in memory: the engine's rounds without a disk to write to, of tensors that are there, or of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.checkpoints.sources import MemoryTensor, Model, as_tensor
from cuvee.engine.adapters import check_adapters
from cuvee.engine.blocks import Computed
from cuvee.engine.given import DirectStatistics, beside_factors, check_stacks
from cuvee.engine.keeping import KeptInMemory
from cuvee.engine.matching import BASE
from cuvee.engine.models import model_from_values
from cuvee.engine.parts import match_recipe
from cuvee.engine.plan import MergePlan, formula_of
from cuvee.engine.recording import FiniteRecord
from cuvee.engine.rounds import Handler, run_rounds
from cuvee.engine.stages import stages_of
from cuvee.engine.tasks import Task
from cuvee.errors import raise_all
from cuvee.methods.calls import Decompositions
from cuvee.methods.registry import ADAPTERS
from cuvee.recipes import Recipe, prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["compute", "merge_tensors"]


class _Collecting(Handler):
    """Keeps the output in memory.

    Args:
        labels: of the models, by number; without them nobody looks for NaN and Inf.
    """

    def __init__(self, labels: Mapping[int, str] | None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._raw: dict[str, NDArray[np.uint8]] = {}
        self._labels = labels
        self._records: dict[str, FiniteRecord] = {}

    def observer(self, task: Task) -> FiniteRecord | None:
        return self._records.get(task.name)

    def observed(self, task: Task) -> None:
        if task.name in self._records:
            self._records[task.name].check_inputs()

    def begin(self, task: Task) -> None:
        if self._labels is not None:
            self._records[task.name] = FiniteRecord(
                task, self._labels, False, "allow_nan=True (cuvee merge --allow-nan)"
            )
        self._raw[task.name] = np.empty(task.bytes_written, np.uint8)

    def deliver(self, task: Task, start: int, block: Computed) -> None:
        at = start * task.dtype.itemsize
        self._raw[task.name][at : at + block.raw.size] = block.raw
        if task.name in self._records:
            self._records[task.name].computed(start, block)

    def finish(self, task: Task) -> None:
        if task.name in self._records:
            self._records.pop(task.name).check_output()
        self.tensors[task.name] = as_tensor(self._raw.pop(task.name), task.dtype).reshape(task.layout.shape)


def merge_tensors(
    method: str,
    models: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    /,
    *,
    statistics: Mapping[str, Tensor] | None = None,
    before: Sequence[Mapping[str, Mapping[str, Any]]] = (),
    after: Sequence[Mapping[str, Mapping[str, Any]]] = (),
    exclude: Sequence[str] = (),
    only: Sequence[str] | None = None,
    compat: str | None = None,
    seed: int = 0,
    context: Mapping[str, Any] | None = None,
    compute_dtype: str = "float32",
    block_elements: int | None = None,
    decompositions: Decompositions | None = None,
    allow_nan: bool = False,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge models that are in memory.

    Args:
        method: its name.
        models: K maps from names to tensors, or modules.
        base: the same, where the method has one.
        statistics: data beside the models, keys as `mask/model0/<tensor>`.
        before, after, exclude, only, compat, seed: as in `Recipe`.
        context: what config.json would say (layers, heads, ties); inferred from names when None.
        compute_dtype: "float32" or "float64".
        block_elements: about how many elements are worked on at once; None: whole tensors.
        decompositions: where those of matrices are kept from merge to merge, such as `cuvee.KeptDecompositions()`.
        allow_nan: let NaN and Inf through.
        parameters: the method's; a per-model one is a number or K entries.

    Returns:
        name -> tensor, on the CPU, in the dtype of the base or of the first model.

    Raises:
        NonFinite: a tensor of a model, or of the output, holds NaN or Inf.
        CuveeError: all else that is wrong, said together.
    """
    recipe = Recipe(
        method,
        models=models,
        base_model=base,
        parameters=parameters,
        before=before,
        after=after,
        exclude=exclude,
        only=only,
        compat=compat,
        seed=seed,
        compute_dtype=compute_dtype,
    )
    prepared = prepare(recipe)
    opened = {n: _model(one, f"model{n}", context) for n, one in enumerate(prepared.models)}
    if prepared.base is not None:
        opened[BASE] = _model(prepared.base, "base", context)
    matched = match_recipe(recipe, prepared, opened)
    raise_all(matched.errors)
    if prepared.method.on is ADAPTERS:
        check_adapters(opened, matched.tasks)
    plain = formula_of(recipe, prepared, matched, "cpu")
    formula = replace(
        plain,
        statistics=beside_factors(opened) if prepared.method.on is ADAPTERS else DirectStatistics(statistics or {}),
        device=_device(opened.values()),
        kept=KeptInMemory(),
        decompositions=decompositions,
    )
    shapes = {name: (name.split("/", 2)[-1], tuple(given.shape)) for name, given in (statistics or {}).items()}
    check_stacks(formula, shapes, matched.tasks)
    handler = _Collecting(None if allow_nan else {number: model.label for number, model in opened.items()})
    largest = max((task.layout.numel for task in matched.tasks), default=1)
    run_rounds(matched.tasks, formula, handler, threads=1, block_elements=block_elements or max(1, largest))
    return {name: handler.tensors[name] for name in sorted(handler.tensors)}


def compute(plan: MergePlan, *, allow_nan: bool = False) -> dict[str, Tensor]:
    """Carry out a plan in memory.

    Stages that cannot be computed as they are read are computed first, and held.

    Args:
        plan: of the merge.
        allow_nan: let NaN and Inf through.

    Returns:
        name -> tensor, on the CPU: those that `run` would publish, bit for bit.

    Raises:
        NonFinite: a tensor of a model, or of the output, holds NaN or Inf.
    """
    for stage in stages_of(plan.models.values()):
        if not stage.is_ready:
            made = compute(stage.plan, allow_nan=allow_nan)
            stage.opened = Model(stage.name, {n: MemoryTensor(made[n], rank) for rank, n in enumerate(made)})
    handler = _Collecting(None if allow_nan else plan.labels)
    run_rounds(
        plan.tasks,
        replace(plan.formula, kept=KeptInMemory()),
        handler,
        threads=plan.budget.threads,
        block_elements=plan.budget.block_elements,
        whole_elements=plan.budget.whole_elements,
    )
    return {name: handler.tensors[name] for name in sorted(handler.tensors)}


def _model(values: Any, label: str, context: Mapping[str, Any] | None) -> Model:
    model = values if isinstance(values, Model) else model_from_values(values, label)
    if context is not None:
        model.config = dict(context)
    return model


def _device(models: Any) -> str:
    for model in models:
        for source in model.tensors.values():
            values = getattr(source, "values", None)
            if values is not None and values.device.type != "cpu":
                return str(values.device.type)
    return "cpu"
