"""The plan: what a recipe will read, write and need, known before the first weight is read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee._version import __version__
from cuvee.checkpoints import fs
from cuvee.checkpoints.opening import open_adapter_alone, open_model
from cuvee.checkpoints.sidecars import Sidecar, merged_config, sidecars_of
from cuvee.checkpoints.sources import Model, ModelFile
from cuvee.checkpoints.writing import Shard, plan_shards
from cuvee.engine.adapters import adapter_shards, check_adapters
from cuvee.engine.budget import Budget, choose_budget
from cuvee.engine.given import (
    GivenStatistics,
    beside_factors,
    check_statistics,
    header_of,
    open_statistics,
)
from cuvee.engine.keeping import ResultsInFolder
from cuvee.engine.kinship import kinship
from cuvee.engine.matching import BASE, Matched
from cuvee.engine.models import open_models
from cuvee.engine.parts import match_recipe
from cuvee.engine.retokenizing import Retokenized, check_memory, retokenize
from cuvee.engine.rounds import Tally
from cuvee.engine.stages import stage_model
from cuvee.engine.tasks import Formula, Task
from cuvee.engine.trial import try_out
from cuvee.errors import IncompatibleModels, ResourceError, raise_all
from cuvee.methods.calls import CONTINUAL
from cuvee.methods.parameters import Patterns
from cuvee.methods.registry import ADAPTERS
from cuvee.recipes import Prepared, Recipe, prepare
from cuvee.recipes.describing import describe_recipe
from cuvee.recipes.parts import is_same
from cuvee.tensors import c_library, kernels
from cuvee.tensors.devices import free_bytes, need_device
from cuvee.tensors.dtypes import DTYPES
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from os import PathLike


__all__ = [
    "DEFAULT_SHARD_SIZE",
    "Asked",
    "MergePlan",
    "Plan",
    "formula_of",
    "plan",
    "runs_on_arrays",
    "slowness",
]

DEFAULT_SHARD_SIZE = 5 * 10**9


@dataclass(frozen=True)
class Asked:
    """What the user asked for, for the record: it goes into the manifest and onto the model card.

    Attributes:
        recipe: as plain values.
        text: as written, empty where it was not.
        by: what makes the output, in Markdown: "**ties** (arXiv 2306.01708)".
    """

    recipe: Mapping[str, Any]
    text: str
    by: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done; `cuvee.run` does it.

    Attributes:
        asked: what the user asked for.
        models: the open inputs, the base under -1.
        tasks: one for each output tensor.
        formula: the computation.
        shards: the output's files.
        continual: files in the folder `continual` of the output, for a method that can be continued.
        expected: the digest that a tensor of a model must have, by the model's number and name.
        replaces: the published model that this one continues, and may replace though it is an input.
        config: the output's config.json, None where the models have none.
        sidecars: the other files, carried over or written.
        budget: threads, blocks and memory.
        bytes_read: of weights, once.
        bytes_written: of weights.
        tally: visits of a tensor and rounds over the model, by a trial on a few elements.
        plan_id: equal for equal outputs of equal inputs' headers.
        left_out: name -> why a tensor was not merged and whose it is.
        dropped: name -> why a tensor is not in the output.
        roles: what a model is called in the manifest, where it is neither the base nor a method's.
        tokens: what was done to the vocabulary, for the manifest; empty where nothing was.
        profile: where the same plan gives the same bytes: `portable-1` everywhere, `torch:…` with that torch on one machine.
        statistics: what data say of the models, by the model's number.
        warnings: for the user.
    """

    asked: Asked
    models: Mapping[int, Model]
    tasks: Sequence[Task]
    formula: Formula
    shards: Sequence[Shard]
    config: Mapping[str, Any] | None
    sidecars: Sequence[Sidecar]
    budget: Budget
    bytes_read: int
    bytes_written: int
    tally: Tally
    plan_id: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[int, str] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "portable-1"
    continual: Sequence[Shard] = ()
    expected: Mapping[tuple[int, str], str] = field(default_factory=dict)
    replaces: Path | None = None
    statistics: Mapping[int, Model] = field(default_factory=dict)
    warnings: Sequence[str] = field(default=())

    @property
    def labels(self) -> dict[int, str]:
        """How the user named the models."""
        return {number: model.label for number, model in self.models.items()}

    @property
    def files(self) -> list[ModelFile]:
        """All files that are read, each once: those of the models and of their statistics."""
        models = (*self.models.values(), *self.statistics.values())
        return list({id(file): file for model in models for file in model.files}.values())

    @property
    def is_wide(self) -> bool:
        """True when something is measured over several tensors."""
        return self.tally.rounds > 1


@dataclass(frozen=True, kw_only=True)
class MergePlan(Plan):
    """The plan of a recipe.

    Attributes:
        recipe: what was asked.
        prepared: what that means: method, models, edits.
    """

    recipe: Recipe
    prepared: Prepared


def plan(
    recipe: Recipe | str | PathLike[str],
    *,
    memory: int | None = None,
    threads: int | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    device: str = "cpu",
    offline: bool = False,
    token: str | None = None,
    decompositions: str | PathLike[str] | None = None,
    _stages: dict[int, Model] | None = None,
) -> MergePlan:
    """Plan a merge: open the models' headers, match their tensors, lay out the output.

    Args:
        recipe: a `Recipe`, or the path of a YAML file.
        memory: the most anonymous memory to use, in bytes; None: what full speed needs.
        threads: None: one for each core.
        shard_size: the most bytes of tensors in one output file.
        device: "cpu" or "cuda".
        offline: never ask the hub.
        token: for the hub.
        decompositions: a folder in which those of matrices are kept: the next merge of the same models, with other
            coefficients, costs only products.

    Raises:
        Problems: all that is wrong with recipe and models, said together; or the one error that is.
    """
    from cuvee.recipes import load_recipe

    if not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe))
    need_device(device)
    prepared = prepare(recipe)
    options = {"memory": memory, "threads": threads, "shard_size": shard_size, "device": device}
    stages = {} if _stages is None else _stages
    statistics = open_statistics(recipe, prepared)
    models = _open_models(prepared, offline=offline, token=token, stages=stages, **options)
    retokenized = _retokenized(recipe, prepared, models, memory=memory, offline=offline, token=token)
    if retokenized is not None:
        models = dict(retokenized.models)
    matched = match_recipe(recipe, prepared, models)
    raise_all(matched.errors)
    if not matched.tasks:
        raise IncompatibleModels("the models have no tensors", right="models with weights")
    tasks = matched.tasks
    formula = _with_data(formula_of(recipe, prepared, matched, device), prepared, models, statistics, decompositions)
    shards = _shards(tasks, prepared, shard_size)
    tally = try_out(tasks, formula)
    config, sidecars, notes = _beside(matched, models.get(BASE, models[0]), retokenized)
    method = prepared.method
    return MergePlan(
        asked=Asked(describe_recipe(recipe), recipe.text, f"**{method.name}** ({method.paper})"),
        recipe=recipe,
        prepared=prepared,
        models=models,
        tasks=tasks,
        formula=formula,
        shards=shards,
        continual=_continual_files(tasks, formula),
        config=config,
        sidecars=sidecars,
        budget=choose_budget(
            tasks,
            formula,
            memory=memory,
            threads=threads,
            device=device,
            device_bytes=free_bytes(device),
            measures=tally.visits > 1,
            decodes=tally.decodes or not formula.on_arrays,
        ),
        bytes_read=sum(task.bytes_read for task in tasks),
        bytes_written=sum(task.bytes_written for task in tasks),
        tally=tally,
        plan_id=_plan_id(recipe, prepared, matched, formula, shards, config, sidecars, statistics),
        statistics=statistics,
        tokens={} if retokenized is None else retokenized.report,
        profile=_profile(tasks, formula),
        left_out=matched.left_out,
        dropped=matched.dropped,
        warnings=tuple(dict.fromkeys([*_warnings(prepared, models, matched, formula, statistics), *notes])),
    )


def _warnings(
    prepared: Prepared,
    models: Mapping[int, Model],
    matched: Matched,
    formula: Formula,
    statistics: Mapping[int, Model],
) -> Iterator[str]:
    """Yield what the user should know before the merge."""
    tasks = matched.tasks
    if prepared.method.on is ADAPTERS:
        yield from check_adapters(models, tasks)
    yield from prepared.warnings
    yield from matched.warnings
    yield from slowness(formula.device)
    yield from check_statistics(formula, statistics, tasks)
    yield from _unmatched(prepared, tasks)
    for model in models.values():
        yield from (f"{model.label}: {note}" for note in model.notes)
    yield from kinship(tasks, {number: model.label for number, model in models.items()})


def _unmatched(prepared: Prepared, tasks: Sequence[Task]) -> Iterator[str]:
    """Say which patterns among the parameters match no tensor."""
    settings = [("", task.arguments or {}) for task in tasks]
    settings += [(f"{edit.name}.", values) for edit, values in (*prepared.before, *prepared.after)]
    written = {
        (f"{owner}{name}", pattern): Patterns((pattern,))
        for owner, values in settings
        for name, value in values.items()
        if isinstance(value, Patterns)
        for pattern in value.patterns
    }
    for (name, pattern), one in written.items():
        if not any(task.name in one for task in tasks):
            yield f"{name}: {pattern!r} matches no tensor"


def _with_data(
    formula: Formula,
    prepared: Prepared,
    models: Mapping[int, Model],
    statistics: Mapping[int, Model],
    decompositions: str | PathLike[str] | None,
) -> Formula:
    """Return the formula with what it is given beside the models."""
    if prepared.method.on is ADAPTERS:
        formula = dataclasses.replace(formula, statistics=beside_factors(models))
    elif statistics:
        formula = dataclasses.replace(formula, statistics=GivenStatistics(statistics))
    if decompositions is None:
        return formula
    if fs.exists(Path(decompositions)) and not fs.is_folder(Path(decompositions)):
        raise ResourceError(
            "decompositions are kept in a folder, and this is none", where=str(decompositions), right="another name"
        )
    return dataclasses.replace(formula, decompositions=ResultsInFolder(Path(decompositions), "decomposition"))


def _shards(tasks: Sequence[Task], prepared: Prepared, shard_size: int) -> list[Shard]:
    if prepared.method.on is ADAPTERS:
        return adapter_shards(tasks)
    return plan_shards({task.name: (task.dtype, task.layout.shape) for task in tasks}, shard_size)


def _beside(
    matched: Matched, reference: Model, retokenized: Retokenized | None
) -> tuple[dict[str, Any] | None, list[Sidecar], list[str]]:
    """Return the output's config.json, its other files beside the weights, and warnings."""
    sidecars, refused = sidecars_of(reference)
    notes = [f"{name} was not carried over: it is a link that leads out of its folder" for name in refused]
    if retokenized is None:
        return _config(matched), sidecars, notes
    matched.vocab_size = retokenized.rows or matched.vocab_size
    sidecars = retokenized.sidecars(sidecars)
    return retokenized.config(_config(matched)), sidecars, [*notes, *retokenized.warnings]


def _continual_files(tasks: Sequence[Task], formula: Formula) -> list[Shard]:
    merged = [task.arguments for task in tasks if task.arguments is not None]
    if not formula.method.continual or not all(arguments.get(CONTINUAL, True) for arguments in merged):
        return []
    dtype = DTYPES["F64" if formula.compute_dtype == "float64" else "F32"]
    return plan_shards({task.name: (dtype, task.layout.shape) for task in tasks if not task.is_copy}, sys.maxsize)


def _means(reference: Any, model: Any) -> bool:
    """True when a reference means a model of the recipe; a stage is meant by its name."""
    return is_same(reference, model) or (isinstance(model, Recipe) and bool(reference) and reference == model.name)


def _retokenized(
    recipe: Recipe,
    prepared: Prepared,
    models: Mapping[int, Model],
    *,
    memory: int | None,
    offline: bool,
    token: str | None,
) -> Retokenized | None:
    """Give the models the vocabulary that the recipe asks for, None where it asks for none."""
    if recipe.tokenizer is None and recipe.chat_template is None:
        return None
    check_memory(models.values(), memory)
    names = dict(enumerate(prepared.models)) | ({} if prepared.base is None else {BASE: prepared.base})

    def find(reference: Any) -> int | None:
        return next((number for number, name in names.items() if _means(reference, name)), None)

    def open_other(reference: Any) -> Model | Path:
        return Path(reference) if fs.is_folder(Path(reference)) else open_model(reference, offline=offline, token=token)

    return retokenize(
        recipe.tokenizer,
        recipe.chat_template,
        {number: models[number] for number in sorted(models)},
        None if prepared.base is None else BASE,
        find=find,
        open_other=open_other,
        compat=recipe.compat,
    )


def runs_on_arrays(recipe: Recipe, device: str) -> bool:
    """True when a merge by this recipe does not need torch, whatever the models are stored as."""
    prepared = prepare(recipe)
    formula = Formula(
        prepared.method, prepared.before, prepared.after, compute_dtype=recipe.compute_dtype, device=device
    )
    return formula.on_arrays and not prepared.method.needs  # statistics are tensors


def _open_models(
    prepared: Prepared, *, offline: bool, token: str | None, stages: dict[int, Model], **options: Any
) -> dict[int, Model]:
    """Open a recipe's models; those that are recipes themselves are planned with the same options, each once."""
    wanted = dict(enumerate(prepared.models))
    if prepared.base is not None:
        wanted[BASE] = prepared.base
    for number, model in wanted.items():
        if isinstance(model, Recipe):
            if id(model) not in stages:
                planned = plan(model, offline=offline, token=token, _stages=stages, **options)
                stages[id(model)] = stage_model(model.name or f"stage{len(stages)}", planned)
            wanted[number] = stages[id(model)]
    alone = prepared.method.on is ADAPTERS
    return open_models(wanted, offline=offline, token=token, opener=open_adapter_alone if alone else open_model)


def formula_of(recipe: Recipe, prepared: Prepared, matched: Matched, device: str) -> Formula:
    """Return what a recipe computes, in the compute dtype that it or its models ask for."""
    wide = recipe.compute_dtype == "float64" or any(task.dtype is DTYPES["F64"] for task in matched.tasks)
    return Formula(
        prepared.method,
        prepared.before,
        prepared.after,
        recipe.seed,
        recipe.compat,
        "float64" if wide else "float32",
        device,
    )


def _profile(tasks: Sequence[Task], formula: Formula) -> str:
    """Return where the bytes are the same: products of matrices are summed as the machine's BLAS likes."""
    return f"torch:{torch.__version__}" if any(formula.needs_whole(task) for task in tasks) else "portable-1"


def slowness(device: str = "cpu") -> list[str]:
    """Return what this machine lacks to be fast; it changes nothing of the result, and so is not in the manifest."""
    if device != "cpu" or kernels.available() or c_library.is_off():
        return []
    return [
        "the compiled kernels are missing or of another version, so this is slow; install Cuvée again, with a C compiler"
    ]


def _config(matched: Matched) -> dict[str, Any] | None:
    if matched.config is None:
        return None
    floats = [task for task in matched.tasks if task.dtype.is_float]
    sizes: dict[str, int] = {}
    for task in floats:
        sizes[task.dtype.name] = sizes.get(task.dtype.name, 0) + task.layout.numel
    dtype = DTYPES[max(sizes, key=lambda name: sizes[name])] if sizes else None
    tied = matched.tied if matched.tied is False or matched.config.get("tie_word_embeddings") is not None else None
    return merged_config(matched.config, dtype=dtype, tied=tied, vocab_size=matched.vocab_size)


def _plan_id(
    recipe: Recipe,
    prepared: Prepared,
    matched: Matched,
    formula: Formula,
    shards: Sequence[Shard],
    config: Mapping[str, Any] | None,
    sidecars: Sequence[Sidecar],
    statistics: Mapping[int, Model],
) -> str:
    content = {
        "version": __version__,
        "recipe": describe_recipe(recipe),
        "from_yaml": recipe.from_yaml,
        "method": prepared.method.name,
        "compute": formula.compute_dtype,
        # By name: how the inputs are sharded decides the order of work, and nothing of the output.
        "tasks": sorted([t.name, list(t.layout.shape), t.dtype.name, repr(t.arguments)] for t in matched.tasks),
        "shards": [shard.file for shard in shards],
        "config": config,
        "sidecars": [sidecar.identity for sidecar in sidecars],
        **({"statistics": header_of(statistics)} if statistics else {}),
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()
