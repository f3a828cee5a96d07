"""Statistics that a recipe gives: what data say of each model, in files that are read as methods ask for it.

A file belongs to one model and names what it holds `gram/<module>`, `hidden/<layer>` and so on; methods ask for
`gram/model0/<module>`, with the model's place in their list.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cuvee.checkpoints import fs
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.checkpoints.sidecars import digest_of
from cuvee.checkpoints.sources import MemoryTensor, Model, ModelFile, Slice, TensorSource, read_all
from cuvee.engine.tasks import Formula, Task
from cuvee.errors import CheckpointError, IncompatibleModels, MethodError, raise_all
from cuvee.methods.needs import collect_command, module_of
from cuvee.methods.registry import Method
from cuvee.recipes import Prepared, Recipe, RecipeModel
from cuvee.tensors.lazy_torch import torch

__all__ = [
    "SHARED",
    "TEXTS",
    "DirectStatistics",
    "GivenStatistics",
    "TrialStatistics",
    "beside_factors",
    "check_stacks",
    "check_statistics",
    "describe_statistics",
    "header_of",
    "open_statistics",
]

SHARED, TEXTS = "shared", "texts"
"""In the metadata of a file: which names mean one tensor, as JSON; the digest of the texts that it was collected on."""
_HELD_BYTES = 1 << 20
_SQUARE = ("gram", "outgram", "fisher", "adapter")


class DirectStatistics(Mapping[str, Any]):
    """Statistics in memory under the names that methods ask for; what is stacked as a tensor of several experts is, by each."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def __getitem__(self, key: str) -> Any:
        if key in self._given or key not in self:
            return self._given[key]
        stack, number = _of_stack(key)
        return self._given[stack][number]

    def __contains__(self, key: object) -> bool:
        stack, number = _of_stack(str(key))
        return key in self._given or (stack in self._given and number in _numbers(self._given[stack].shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def _of_stack(name: str) -> tuple[str, int]:
    """Return of `stack[3]`, an expert's matrix, what it is part of and its number there; of another name nothing."""
    stack, _, number = name.removesuffix("]").rpartition("[")
    return (stack, int(number)) if name.endswith("]") and number.isdecimal() else ("", 0)


def _numbers(shape: Sequence[int]) -> range:
    """Return the numbers of the slices that a tensor has along dimension 0."""
    return range(shape[0] if len(shape) > 1 else 0)


class GivenStatistics(Mapping[str, Any]):
    """The statistics of all models under the names that methods ask for. Small ones stay in memory once they are read.

    Of one that is stacked as a tensor of several experts is, that of one expert is read alone.
    """

    def __init__(self, models: Mapping[int, Model]) -> None:
        self._models = models
        self._held: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def __getitem__(self, key: str) -> torch.Tensor:
        found = self._held.get(key)
        if found is None:
            source = self._source(key)
            if source is None:
                raise KeyError(key)
            found = read_all(source)
            if found.nbytes <= _HELD_BYTES:
                with self._lock:
                    self._held[key] = found
        return found

    def __contains__(self, key: object) -> bool:
        return self._source(str(key)) is not None

    def __iter__(self) -> Iterator[str]:
        for number, model in self._models.items():
            for name in model.tensors:
                kind, _, rest = name.partition("/")
                yield f"{kind}/model{number}/{rest}"

    def __len__(self) -> int:
        return sum(len(model.tensors) for model in self._models.values())

    def _source(self, key: str) -> TensorSource | None:
        kind, _, rest = key.partition("/")
        owner, _, name = rest.partition("/")
        number = owner.removeprefix("model")
        model = self._models.get(int(number)) if number.isdecimal() else None
        if model is None:
            return None
        found = model.tensors.get(f"{kind}/{name}")
        stack, expert = _of_stack(name)
        whole = model.tensors.get(f"{kind}/{stack}") if found is None else None
        return Slice(whole, expert) if whole is not None and expert in _numbers(whole.shape) else found


class TrialStatistics(Mapping[str, Any]):
    """Stand-ins for a trial on a few made-up elements: the same names; what has the size of a tensor has the trial's."""

    def __init__(self, given: Mapping[str, Any], side: int) -> None:
        self._given = given
        self._side = side

    def __getitem__(self, key: str) -> Any:
        return torch.eye(self._side) if key.startswith(tuple(f"{kind}/" for kind in _SQUARE)) else self._given[key]

    def __contains__(self, key: object) -> bool:
        return not str(key).startswith("mask/") and key in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def open_statistics(recipe: Recipe, prepared: Prepared) -> dict[int, Model]:
    """Open the statistics of a recipe's models, by their places in the method's list.

    Raises:
        CheckpointError: a file cannot be read, or is none of statistics.
        MethodError: the method needs statistics that a model has not; with the command that collects them.
    """
    found: dict[int, Model] = {}
    errors: list[Any] = []
    opened: dict[str, Model] = {}
    method, edits = prepared.method, (*prepared.before, *prepared.after)
    kinds = (*method.needs, *method.uses, *(kind for edit, _ in edits for kind in edit.uses))
    for number, entry in enumerate(prepared.parts[0].experts if not prepared.is_cut else ()):
        given = entry.statistics
        try:
            if isinstance(given, str | os.PathLike):
                path = os.fspath(given)
                found[number] = opened[path] = opened.get(path) or _open(path, kinds)
            elif given is not None:
                found[number] = _in_memory(given, number)
            _check_needs(prepared.method, entry, found.get(number), recipe)
        except (CheckpointError, MethodError) as error:
            errors.append(error)
    raise_all(errors)
    _check_texts(found)
    return found


def _open(path: str, kinds: Sequence[str]) -> Model:
    """Open a file of statistics, of which the recipe takes these kinds."""
    place = Path(path).expanduser()
    if not fs.is_file(place):
        right = collect_command(kinds[0], "MODEL", path) if kinds else "leave it out: the recipe has no use for it"
        raise CheckpointError("there is no such file of statistics", where=path, right=right)
    file, stored, metadata = open_safetensors(place)
    tensors: dict[str, TensorSource] = dict(stored)
    try:
        shared = json.loads(metadata.get(SHARED, "{}"))
        tensors |= {str(name): stored[of] for name, of in shared.items()}
        if not tensors or not all("/" in name for name in tensors):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        file.close()
        right = "a file that cuvee collect has written: names such as gram/<module>"
        raise CheckpointError("the file holds no statistics", where=path, right=right) from None
    return Model(path, tensors, {TEXTS: metadata.get(TEXTS, "")}, None, (file,))


def _in_memory(given: Mapping[str, Any], number: int) -> Model:
    wrong = [name for name, value in given.items() if "/" not in str(name) or not isinstance(value, torch.Tensor)]
    if wrong:
        right = "a dict from names such as gram/<module> to tensors"
        raise MethodError(f"{wrong[0]!r} is no statistic", where=f"statistics of model {number}", right=right)
    return Model(f"<statistics of model {number} in memory>", {n: MemoryTensor(v) for n, v in given.items()})


def _check_needs(method: Method, entry: RecipeModel, given: Model | None, recipe: Recipe) -> None:
    for kind in method.needs:
        if given is None or not any(name.startswith(f"{kind}/") for name in given.tensors):
            said = "names no statistics" if given is None else f"names {given.label}, which holds none"
            spoken = str(entry.model) if isinstance(entry.model, str | os.PathLike) else "MODEL"
            at = next((n for n, one in enumerate(recipe.models) if one is entry), 0)
            raise MethodError(
                f"{method.name} needs {kind!r} of {spoken!r}, and the recipe {said}",
                where=recipe.place("models", at),
                right=collect_command(kind, spoken, "a.safetensors"),
            )


def _check_texts(found: Mapping[int, Model]) -> None:
    """Refuse hidden states of different texts: row by row they would be compared with each other."""
    said: dict[str, Model] = {}
    for model in found.values():
        if any(name.startswith("hidden/") for name in model.tensors):
            said.setdefault((model.config or {}).get(TEXTS, ""), model)
    if len(said) > 1:
        one, other, *_ = said.values()
        raise IncompatibleModels(
            f"{one.label} and {other.label} hold hidden states of different texts",
            right="cuvee collect hidden with one file of texts for all models",
        )


def check_statistics(formula: Formula, statistics: Mapping[int, Model], tasks: Sequence[Task]) -> list[str]:
    """Hold statistics against the tensors to be merged; returns warnings.

    Raises:
        IncompatibleModels: nothing in a file belongs to any tensor, or what is stacked is of another number of experts.
    """
    names = {name for task in tasks for name in (task.name, module_of(task.name))}
    prefixes = {name[:at] for name in names for at, c in enumerate(name) if c == "."}
    warnings: list[str] = []
    for model in statistics.values():
        strangers = [name for name in model.tensors if name.partition("/")[2] not in names | prefixes]
        if len(strangers) == len(model.tensors):
            raise IncompatibleModels(
                f"no tensor of the models belongs to the statistic {strangers[0]!r}, nor to any other of this file",
                where=model.label,
                right="statistics of one of the models: names as in the models, gram/<module> or hidden/<layer>",
            )
        shapes = {name: (name.partition("/")[2], source.shape) for name, source in model.tensors.items()}
        check_stacks(formula, shapes, tasks, where=model.label)
        if strangers:
            warnings.append(f"{model.label}: {len(strangers)} statistics belong to no tensor, such as {strangers[0]!r}")
        kinds = {name.partition("/")[0] for name in model.tensors} - formula.kinds
        if kinds:
            warnings.append(f"{model.label}: {formula.method.name} has no use for {', '.join(sorted(kinds))}")
    return warnings


def check_stacks(
    formula: Formula,
    shapes: Mapping[str, tuple[str, Sequence[int]]],
    tasks: Sequence[Task],
    *,
    where: str = "statistics",
) -> None:
    """Refuse a statistic of a tensor whose experts are merged one by one, if it is stacked for another number of them.

    Args:
        shapes: by the name of the statistic, the tensor or module that it is of, and its shape.

    Raises:
        IncompatibleModels: naming it.
    """
    apart = [one.of for one in (next(formula.apart(task)) for task in tasks) if one.of]
    stacks = {name: stack for stack in apart for name in (stack.name, module_of(stack.name))}
    for name, (of, shape) in shapes.items():
        stack = stacks.get(of)
        if stack and tuple(shape[:1]) != (stack.experts,):
            raise IncompatibleModels(
                f"the statistic {name!r} is of shape {tuple(shape)}, and {stack.name!r} holds {stack.experts} experts",
                where=where,
                right=f"shape ({stack.experts}, …): what belongs to each expert, one after the other",
            )


def beside_factors(adapters: Mapping[int, Model]) -> GivenStatistics:
    """Return all tensors of adapters as statistics, `adapter/model0/<tensor>`: a factor is merged by what the other says."""
    named = {
        number: replace(model, tensors={f"adapter/{name}": source for name, source in model.tensors.items()})
        for number, model in adapters.items()
    }
    return GivenStatistics(named)


def describe_statistics(statistics: Mapping[int, Model]) -> list[dict[str, Any]]:
    """Return what the manifest says of them: the digest of each file's bytes."""
    return [
        {"model": model.label, "role": f"statistics of model {number}", "digest": _digest(model)}
        for number, model in sorted(statistics.items())
    ]


def _digest(model: Model) -> str:
    files: Sequence[ModelFile] = model.files
    return digest_of(files[0].path) if files else ""


def header_of(statistics: Mapping[int, Model]) -> list[Any]:
    """Return names and shapes, for the plan's id."""
    return [
        [number, name, list(source.shape), source.dtype.name]
        for number, model in sorted(statistics.items())
        for name, source in sorted(model.tensors.items())
    ]
