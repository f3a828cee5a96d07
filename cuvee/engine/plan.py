"""The plan: what a recipe will read, write and need, known before the first weight is read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from cuvee._version import __version__
from cuvee.checkpoints import fs
from cuvee.checkpoints.opening import open_adapter_alone, open_model
from cuvee.checkpoints.sidecars import Sidecar, merged_config, sidecars_of
from cuvee.checkpoints.sources import MemoryArray, MemoryTensor, Model, ModelFile, Scratch, TensorSource, read_raw
from cuvee.checkpoints.writing import Shard, plan_shards
from cuvee.engine.adapters import adapter_shards, check_adapters
from cuvee.engine.blocks import Formula, Input, Task, decode
from cuvee.engine.budget import Budget, choose_budget
from cuvee.engine.given import (
    GivenStatistics,
    TrialStatistics,
    beside_factors,
    check_statistics,
    header_of,
    open_statistics,
)
from cuvee.engine.keeping import DecompositionsInFolder
from cuvee.engine.matching import BASE, Matched
from cuvee.engine.parts import match_recipe
from cuvee.engine.retokenizing import Retokenized, check_memory, retokenize
from cuvee.engine.rounds import Handler, Tally, run_rounds
from cuvee.engine.stages import is_ready, stage_model
from cuvee.errors import CuveeError, IncompatibleModels, MethodError, Problems, raise_all
from cuvee.methods.measuring import CONTINUAL
from cuvee.methods.registry import ADAPTERS
from cuvee.recipes import Prepared, Recipe, RecipeModel, Slice, prepare
from cuvee.recipes.parts import is_same
from cuvee.tensors import kernels
from cuvee.tensors.dtypes import DTYPES
from cuvee.tensors.layout import Layout
from cuvee.tensors.lazy_torch import torch
from cuvee.tokenizers.request import TokenizerRequest, ZeroRow

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "Asked",
    "MergePlan",
    "Plan",
    "describe_recipe",
    "kinship",
    "model_from_values",
    "open_models",
    "plan",
    "runs_on_arrays",
    "slowness",
]

DEFAULT_SHARD_SIZE = 5 * 10**9
_TRIALS = 64
_TRIAL_SIDE = 8


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
    formula = _formula(recipe, prepared, matched, device)
    if statistics:
        formula = dataclasses.replace(formula, statistics=GivenStatistics(statistics))
    shards = plan_shards({task.name: (task.dtype, task.layout.shape) for task in matched.tasks}, shard_size)
    warnings: list[str] = []
    if prepared.method.on is ADAPTERS:
        warnings += check_adapters(models, matched.tasks)
        formula = dataclasses.replace(formula, statistics=beside_factors(models))
        shards = adapter_shards(matched.tasks)
    if decompositions is not None:
        formula = dataclasses.replace(formula, decompositions=DecompositionsInFolder(Path(decompositions)))
    tally = _trial(matched.tasks, formula)
    reference = models.get(BASE, models[0])
    sidecars, refused = sidecars_of(reference)
    warnings += [*prepared.warnings, *matched.warnings, *slowness(device)]
    warnings += check_statistics(formula, statistics, matched.tasks)
    warnings += [f"{name} was not carried over: it is a link that leads out of its folder" for name in refused]
    warnings += [f"{model.label}: {note}" for model in models.values() for note in model.notes if note not in warnings]
    warnings += kinship(matched.tasks, {n: m.label for n, m in models.items()})
    if retokenized is not None:
        matched.vocab_size = retokenized.rows or matched.vocab_size
        sidecars = retokenized.sidecars(sidecars)
    config = _config(matched)
    if retokenized is not None:
        config = retokenized.config(config)
        warnings += retokenized.warnings
    method = prepared.method
    return MergePlan(
        asked=Asked(describe_recipe(recipe), recipe.text, f"**{method.name}** ({method.paper})"),
        recipe=recipe,
        prepared=prepared,
        models=models,
        tasks=matched.tasks,
        formula=formula,
        shards=shards,
        continual=_continual_files(matched.tasks, formula),
        config=config,
        sidecars=sidecars,
        budget=choose_budget(
            matched.tasks,
            formula,
            memory=memory,
            threads=threads,
            device=device,
            measures=tally.visits > 1,
            decodes=tally.decodes or not formula.on_arrays,
        ),
        bytes_read=sum(task.bytes_read for task in matched.tasks),
        bytes_written=sum(task.bytes_written for task in matched.tasks),
        tally=tally,
        plan_id=_plan_id(recipe, prepared, matched, formula, shards, config, sidecars, statistics),
        statistics=statistics,
        tokens={} if retokenized is None else retokenized.report,
        profile=_profile(matched.tasks, formula),
        left_out=matched.left_out,
        dropped=matched.dropped,
        warnings=tuple(dict.fromkeys(warnings)),
    )


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


def open_models(
    wanted: Mapping[int, Any], *, offline: bool, token: str | None, opener: Callable[..., Model] = open_model
) -> dict[int, Model]:
    """Open models under numbers; one that is named twice is opened once.

    Args:
        opener: of references.

    Raises:
        Problems: of all models that cannot be opened; or the one error.
    """
    fs.allow_many_files()
    opened: dict[str, Model] = {}
    models: dict[int, Model] = {}
    errors: dict[str, CuveeError] = {}
    for number, reference in wanted.items():
        key = str(reference) if isinstance(reference, str | Path) else f"memory {id(reference)}"
        try:
            if key not in opened and key not in errors:
                opened[key] = _open(reference, number, opener, offline=offline, token=token)
            if key in opened:
                models[number] = opened[key]
        except Problems as several:
            errors.update({f"{key} {i}": error for i, error in enumerate(several.errors)} | {key: several.errors[0]})
        except CuveeError as error:
            errors[key] = error
    raise_all(list(dict.fromkeys(errors.values())))
    return models


def _open(reference: Any, number: int, opener: Callable[..., Model], *, offline: bool, token: str | None) -> Model:
    if isinstance(reference, Model):
        return reference
    if isinstance(reference, str | Path):
        return opener(reference, offline=offline, token=token)
    return model_from_values(reference, "base" if number == BASE else f"model{number}")


def model_from_values(values: Any, label: str) -> Model:
    """Return a state dict (name -> tensor) or a module as a model.

    Raises:
        IncompatibleModels: it is neither.
    """
    config = getattr(getattr(values, "config", None), "to_dict", lambda: None)()
    if hasattr(values, "state_dict"):
        values = values.state_dict()
    if not isinstance(values, Mapping) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise IncompatibleModels(
            f"{label} is a {type(values).__name__}", right="a path, a hub id, a module, or a dict from names to tensors"
        )
    return Model(
        label, {name: MemoryTensor(tensor, rank) for rank, (name, tensor) in enumerate(values.items())}, config
    )


def _formula(recipe: Recipe, prepared: Prepared, matched: Matched, device: str) -> Formula:
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


def _trial(tasks: Sequence[Task], formula: Formula) -> Tally:
    """Run the method on a few elements for each set of arguments: errors come early, visits and rounds are counted."""
    given = formula.statistics and TrialStatistics(formula.statistics, _TRIAL_SIDE)
    formula = dataclasses.replace(formula, device="cpu", decompositions=None, statistics=given)
    tally = Tally()
    seen: set[str] = set()
    for task in tasks:
        kind = (len(task.layout.shape), formula.needs_whole(task))
        key = repr((task.arguments, len(task.all_inputs), task.base is None, kind))
        if task.is_copy or key in seen or len(seen) >= _TRIALS:
            continue
        # Two leaves of one row make a method stream; a third set of arguments is only tried for its errors.
        streams = len(seen) < 2 and len(task.layout.shape) > 1
        seen.add(key)
        small = (2, 1 << 16) if streams and not formula.needs_whole(task) else (_TRIAL_SIDE, _TRIAL_SIDE)
        fake = _fake_task(task, small)
        try:
            took = run_rounds([fake], formula, Handler(), threads=1, block_elements=1)
        except MethodError as error:
            error.where = error.where.replace(fake.name, task.name) or f"tensor {task.name!r}"
            raise
        tally.visits, tally.rounds = max(tally.visits, took.visits), max(tally.rounds, took.rounds)
        tally.decodes = tally.decodes or took.decodes
    return Tally(max(tally.visits, 1), max(tally.rounds, 1), tally.decodes)


def _fake_task(task: Task, shape: tuple[int, ...]) -> Task:
    """Return a task like this one on values of full rank, none like another; NumPy's generators take 20 ms to load."""
    numbers = itertools.count(1)

    def fake() -> Input:
        words = np.arange(1, math.prod(shape) + 1, dtype=np.uint32) ** 2 * np.uint32(2654435761 * next(numbers) % 2**32)
        return Input(0, MemoryArray((words.astype(np.float32) * 2.0**-31 - 1).reshape(shape)))

    base = fake() if task.base else None
    return dataclasses.replace(task, layout=Layout(shape), inputs=tuple(fake() for _ in task.inputs), base=base)


def slowness(device: str = "cpu") -> list[str]:
    """Return what this machine lacks to be fast; it changes nothing of the result, and so is not in the manifest."""
    if device != "cpu" or kernels.available() or kernels.is_off():
        return []
    return [
        "the compiled kernels are missing or of another version, so this is slow; install Cuvée again, with a C compiler"
    ]


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


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, for records and hashes."""
    plain = {
        "merge_method": recipe.merge_method,
        "models": [_described(one) for one in recipe.models],
        "slices": [_described_slice(one) for one in recipe.slices],
        "modules": {
            name: {
                "models": [_described(one) for one in module.models],
                "slices": [_described_slice(one) for one in module.slices],
                "parameters": dict(module.parameters),
            }
            for name, module in recipe.modules.items()
        },
        "base_model": None if recipe.base_model is None else _name(recipe.base_model),
        "parameters": dict(recipe.parameters),
        "dtype": recipe.dtype,
        "out_dtype": recipe.out_dtype,
        "compute_dtype": recipe.compute_dtype,
        "seed": recipe.seed,
        "exclude": list(recipe.exclude),
        "only": None if recipe.only is None else list(recipe.only),
        "compat": recipe.compat,
        "before": [dict(step) for step in recipe.before],
        "after": [dict(step) for step in recipe.after],
        "tokenizer": None if recipe.tokenizer is None else _described_tokenizer(recipe.tokenizer),
        "chat_template": recipe.chat_template,
    }
    return {key: value for key, value in plain.items() if value not in (None, [], {})}


def _described(entry: RecipeModel) -> dict[str, Any]:
    said: dict[str, Any] = {"model": _name(entry.model), "parameters": dict(entry.parameters)}
    if entry.statistics is not None:
        said["statistics"] = _name(entry.statistics)
    return said if entry.layer_range is None else {**said, "layer_range": list(entry.layer_range)}


def _described_slice(one: Slice) -> dict[str, Any]:
    said: dict[str, Any] = {"sources": [_described(entry) for entry in one.sources], "parameters": dict(one.parameters)}
    return said if one.base_model is None else {**said, "base_model": _name(one.base_model)}


def _described_tokenizer(request: TokenizerRequest) -> dict[str, Any]:
    said = dataclasses.asdict(request) | {"source": _name(request.source)}
    for token, rule in request.tokens.items():
        said["tokens"][token]["source"] = (
            "zero" if isinstance(rule.source, ZeroRow) else said["tokens"][token]["source"]
        )
    return said


def _name(reference: Any) -> Any:
    if isinstance(reference, Recipe):
        return {"name": reference.name, **describe_recipe(reference)}
    return str(reference) if isinstance(reference, str | Path) else f"<{type(reference).__name__} in memory>"


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
