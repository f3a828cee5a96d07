"""Matching: every tensor of every model becomes a task, is carried over, or is named in an error or the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from cuvee.architectures import Architecture, Role, describe
from cuvee.checkpoints.sources import Cropped, Model, TensorSource, natural_dtype
from cuvee.engine.tasks import Input, Task
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels, printable
from cuvee.tensors.dtypes import DType
from cuvee.tensors.layout import Layout

__all__ = [
    "BASE",
    "Matched",
    "Matching",
    "Ties",
    "describe_each",
    "describe_model",
    "match",
    "match_whole",
    "resolve_ties",
]

BASE = -1
_MOST_NAMES = 12
_MOST_EXCLUDED = 3

Arguments = Callable[[str, float | None, Sequence[str]], Mapping[str, Any]]
"""Returns a method's arguments for a tensor's name, its position among the layers, and its name in each model."""
Misfits = dict[str, Mapping[int, TensorSource]]
"""Tensors of different shapes, and which models hold them."""


@dataclass(frozen=True)
class Matching:
    """What is to be matched: all tensors, or those of one part of the output.

    Attributes:
        models: the method's models, in order; of a part, views of them.
        base: the base, where there is one; `on_deltas` says that the method is given task vectors.
        arguments: see `Arguments`.
        numbers: of the models in the plan; None: as they stand.
        base_number: of the base in the plan.
        reason: why nothing of this part is merged, "" where it is.
        position: of a tensor among the layers of this part, from 0 to 1; None: as the architecture says.
        exclude, only: patterns of tensors that are left out, or of the only ones merged.
        crop_embeddings: embeddings and heads of different sizes are cropped to what they have in common.
        dtype: of the output; None: as stored.
    """

    models: Sequence[Model]
    base: Model | None
    on_deltas: bool
    arguments: Arguments
    exclude: Sequence[str] = ()
    only: Sequence[str] | None = None
    crop_embeddings: bool = False
    dtype: DType | None = None
    numbers: Sequence[int] | None = None
    base_number: int = BASE
    reason: str = ""
    position: Callable[[str], float | None] | None = None

    def input(self, place: int, source: TensorSource, name: str) -> Input:
        """Return what the model at a place (`BASE`: the base) gives to a tensor."""
        model = self.reference if place == BASE else self.models[place]
        number = self.base_number if place == BASE else place if self.numbers is None else self.numbers[place]
        return Input(number, source, model.origins.get(name, ""), is_delta=model.is_delta)

    def names(self, name: str) -> list[str]:
        """Return what each model calls a tensor."""
        return [model.origins.get(name, name) for model in self.models]

    @property
    def everyone(self) -> list[tuple[int, Model]]:
        """The base first, then the models, each with its place."""
        first = [(BASE, self.base)] if self.base is not None and self.on_deltas else []
        return first + list(enumerate(self.models))

    @property
    def reference(self) -> Model:
        """The model whose config, files and left-out tensors the output takes."""
        return self.base if self.base is not None else self.models[0]


@dataclass
class Matched:
    """The tasks, and what there is to say.

    Attributes:
        tasks: one for each output tensor.
        architecture: of the output.
        left_out: name -> why it was not merged and whose it is.
        dropped: name -> why it is not in the output.
        tied: whether the output's head is tied; None where the models do not say.
        vocab_size: rows of cropped embeddings, else None.
        config: of the model that the output takes it from, true for the output's layers.
        warnings, errors: for the user.
    """

    architecture: Architecture
    tasks: list[Task] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    tied: bool | None = None
    vocab_size: int | None = None
    config: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    errors: list[CuveeError] = field(default_factory=list)


@dataclass(frozen=True)
class Ties:
    """Models of which all have a head of their own, or none.

    Attributes:
        models: by number.
        tied: whether the output's head is tied; None where the models do not say.
        dropped: name -> what it is tied to.
    """

    models: Mapping[int, Model]
    tied: bool | None
    dropped: Mapping[str, str]


def match_whole(matching: Matching) -> Matched:
    """Match the tensors of all models by name and shape."""
    described = describe_each(dict(matching.everyone))
    ties = resolve_ties(dict(matching.everyone), described)
    reference = described[matching.everyone[0][0]] if matching.base is None or matching.on_deltas else None
    base = ties.models.get(BASE, matching.base)
    whole = replace(matching, models=[ties.models[n] for n in range(len(matching.models))], base=base)
    return match([whole], ties, reference or describe_model(matching.reference), matching.reference.config)


def match(parts: Sequence[Matching], ties: Ties, architecture: Architecture, config: dict[str, Any] | None) -> Matched:
    """Match the tensors of each part by name and shape.

    Args:
        parts: which share no tensor.
        ties: of the models, resolved.
        architecture: of the output.
        config: of the output.
    """
    dropped = {alias: f"tied to {target}" for alias, target in ties.dropped.items()}
    matched = Matched(architecture, tied=ties.tied, dropped=dropped, config=config)
    names: set[str] = set()
    for part in parts:
        tensors = {number: model.tensors for number, model in part.everyone}
        missing: dict[str, list[int]] = {}
        misfits: Misfits = {}
        for name in dict.fromkeys(name for held in tensors.values() for name in held):
            holders = {number: held[name] for number, held in tensors.items() if name in held}
            _match_one(part, matched, name, holders, missing, misfits)
            names.add(name)
        _report_missing(part, matched, missing)
        _report_misfits(part, matched, misfits)
    _check_patterns(parts[0], matched, names)
    matched.tasks.sort(key=lambda task: (*task.all_inputs[0].source.place, task.name))
    return matched


def describe_model(model: Model) -> Architecture:
    """Describe a model from its tensors and its config."""
    return describe({name: source.shape for name, source in model.tensors.items()}, model.config)


def describe_each(models: Mapping[int, Model]) -> dict[int, Architecture]:
    """Describe several models by number; fine-tunes of one model share its description."""
    found: dict[int, Architecture] = {}
    last: tuple[Any, ...] = ()
    for number, model in models.items():
        known = ({name: source.shape for name, source in model.tensors.items()}, model.config)
        found[number] = found[next(reversed(found))] if known == last else describe(*known)
        last = known
    return found


def resolve_ties(
    models: Mapping[int, Model],
    described: Mapping[int, Architecture],
    is_apart: Callable[[str, str], bool] | None = None,
) -> Ties:
    """Give a tied model its head where another is untied; leave the head away where all are tied.

    Args:
        models: by number.
        described: their architectures.
        is_apart: says of an alias and what it is tied to that they must become two tensors.
    """
    tensors = {number: dict(model.tensors) for number, model in models.items()}
    aliases = {alias: target for found in described.values() for alias, target in found.tied.items()}
    tied: bool | None = None
    dropped: dict[str, str] = {}
    for alias, target in aliases.items():
        untied = [n for n, held in tensors.items() if alias in held and alias not in described[n].tied]
        if untied or (is_apart is not None and is_apart(alias, target)):
            for held in tensors.values():
                if alias not in held and target in held:
                    held[alias] = held[target]
            tied = False
            continue
        tied = True
        if [held.pop(alias) for held in tensors.values() if alias in held]:
            dropped[alias] = target
    return Ties({n: replace(model, tensors=tensors[n]) for n, model in models.items()}, tied, dropped)


def _match_one(
    matching: Matching,
    matched: Matched,
    name: str,
    holders: Mapping[int, TensorSource],
    missing: dict[str, list[int]],
    misfits: Misfits,
) -> None:
    """Add the task of one name, or the reason why there is none."""
    absent = [number for number, _ in matching.everyone if number not in holders]
    first = next(iter(holders.values()))
    meaning = matched.architecture.meaning(name)
    shapes = {source.shape for source in holders.values()}
    unreadable = next((source for source in holders.values() if source.dtype.itemsize == 0), None)
    if unreadable is not None:
        matched.errors.append(_undecoded(name, unreadable))
        return
    if reason := _reason_to_leave_out(matching, name):
        _carry(matching, matched, name, holders, reason)
    elif first.dtype.kind == "integer":
        _carry(matching, matched, name, holders, "whole numbers are not merged")
    elif meaning.role is Role.TASK_HEAD and (absent or len(shapes) > 1):
        _carry(matching, matched, name, holders, "a task head that the models do not share")
    elif absent:
        missing[name] = absent
    elif bad := next((source for source in holders.values() if not source.dtype.is_float), None):
        matched.errors.append(_undecoded(name, bad))
    else:
        _merge(matching, matched, name, holders, misfits)


def _reason_to_leave_out(matching: Matching, name: str) -> str:
    if matching.reason:
        return matching.reason
    for pattern in matching.exclude:
        if fnmatchcase(name, pattern):
            return f"exclude: {pattern}"
    if matching.only is not None and not any(fnmatchcase(name, pattern) for pattern in matching.only):
        return "not among only:"
    return ""


def _undecoded(name: str, source: TensorSource) -> CheckpointError:
    return CheckpointError(
        f"tensor {printable(name)!r} is stored as {source.dtype.name} without the scales that give it a meaning",
        where=source.place[0],
        right=f'the unquantized model, or exclude: ["{printable(name)}"]',
    )


def _place(matched: Matched, name: str) -> dict[str, Any]:
    meaning = matched.architecture.meaning(name)
    layers = matched.architecture.n_layers(name) if meaning.layer is not None else 0
    how = {"fused": meaning.fused, "transposed": meaning.transposed, "experts": meaning.packed_experts or 0}
    return {"layer": meaning.layer, "layers": layers, "role": str(meaning.role), **how}


def _carry(matching: Matching, matched: Matched, name: str, holders: Mapping[int, TensorSource], reason: str) -> None:
    """Copy a tensor from the reference where it has it, else from the first model that does."""
    owned = matching.reference.tensors.get(name)
    number, source = next(iter(holders.items())) if owned is None else (_number(matching), owned)
    label = matching.reference.label if owned is not None else dict(matching.everyone)[number].label
    stored = natural_dtype(source, dict(matching.everyone).get(number, matching.reference).config)
    dtype = matching.dtype if matching.dtype is not None and source.dtype.is_float else stored
    inputs = (matching.input(number, source, name),)
    matched.tasks.append(Task(name, Layout(source.shape), dtype, inputs, **_place(matched, name)))
    matched.left_out[name] = f"{reason}; from {label}"


def _number(matching: Matching) -> int:
    return BASE if matching.base is not None else 0


def _merge(
    matching: Matching, matched: Matched, name: str, holders: Mapping[int, TensorSource], misfits: Misfits
) -> None:
    shapes = {source.shape for source in holders.values()}
    if len(shapes) > 1:
        common = _common_shape(matching, matched, name, shapes)
        if common is None:
            misfits[name] = holders
            return
        holders = {n: s if s.shape == common else Cropped(s, common) for n, s in holders.items()}
        matched.vocab_size = common[0]
    try:
        position = (matching.position or matched.architecture.position)(name)
        arguments = matching.arguments(name, position, matching.names(name))
    except CuveeError as error:
        matched.errors.append(error)
        return
    inputs = {number: matching.input(number, source, name) for number, source in holders.items()}
    base = inputs.pop(BASE, None)
    first = next(iter(holders.values()))
    number = next(iter(holders))
    stored = natural_dtype(first, dict(matching.everyone)[number].config)
    matched.tasks.append(
        Task(
            name,
            Layout(first.shape),
            matching.dtype or stored,
            tuple(inputs[number] for number in sorted(inputs)),
            base,
            arguments,
            **_place(matched, name),
        )
    )


def _common_shape(
    matching: Matching, matched: Matched, name: str, shapes: set[tuple[int, ...]]
) -> tuple[int, ...] | None:
    role = matched.architecture.meaning(name).role
    croppable = role in (Role.EMBEDDING, Role.HEAD) and all(len(shape) == 2 for shape in shapes)
    if not (matching.crop_embeddings and croppable):
        return None
    return tuple(min(sizes) for sizes in zip(*shapes, strict=True))


def _report_misfits(matching: Matching, matched: Matched, misfits: Misfits) -> None:
    """Say of each tensor whose shapes differ what they are; of many, which are models of another size, one of them."""
    if len(misfits) <= _MOST_NAMES:
        matched.errors += [_mismatch(matching, name, holders) for name, holders in misfits.items()]
        return
    name = next((name for name in misfits if matched.architecture.meaning(name).layer is not None), next(iter(misfits)))
    shapes, where = _side_by_side(matching, misfits[name])
    matched.errors.append(
        IncompatibleModels(
            f"the models are not of one size: {len(misfits)} tensors differ in shape, such as {printable(name)!r}, {shapes}",
            where=where,
            right="models of one size; cuvee inspect MODEL says what a model is made of",
        )
    )


def _mismatch(matching: Matching, name: str, holders: Mapping[int, TensorSource]) -> IncompatibleModels:
    shapes, where = _side_by_side(matching, holders)
    shown = printable(name)
    return IncompatibleModels(
        f"tensor {shown!r} is {shapes}",
        where=where,
        right=f'models of one size, or leave it out: exclude: ["{shown}"]'
        + (
            "; for vocabularies: tokenizer_source: union, or embed_mismatch: common_submatrix"
            if "embed" in name or "head" in name
            else ""
        ),
    )


def _side_by_side(matching: Matching, holders: Mapping[int, TensorSource]) -> tuple[str, str]:
    """Return the shape of a tensor in each model, and the files that it lies in."""
    labels = dict(matching.everyone)
    said = [f"{source.shape} in {labels[number].label!r}" for number, source in holders.items()]
    places = [source.place[0] for source in holders.values() if source.place[0]]
    return " and ".join(dict.fromkeys(said)), ", ".join(dict.fromkeys(places))


def _tensors(count: int) -> str:
    return f"{count} tensor" + "s" * (count != 1)


def _report_missing(matching: Matching, matched: Matched, missing: Mapping[str, Sequence[int]]) -> None:
    """Say for each model which tensors it lacks, many names in one error."""
    labels = dict(matching.everyone)
    for number, model in labels.items():
        names = [name for name, absent in missing.items() if number in absent]
        if not names:
            continue
        have = [labels[n].label for n in labels if n not in missing[names[0]]]
        verb = "has" if len(have) == 1 else "have"
        shown = ", ".join(repr(printable(name)) for name in names[:_MOST_NAMES])
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        matched.errors.append(
            IncompatibleModels(
                f"{model.label!r} lacks {_tensors(len(names))} that {', '.join(map(repr, have))} {verb}: {shown}{more}",
                where=str(model.folder or (model.files[0].path if model.files else model.label)),
                right="models of one architecture"
                + (f", or leave them out: exclude: {json.dumps(names)}" if len(names) <= _MOST_EXCLUDED else ""),
            )
        )


def _check_patterns(matching: Matching, matched: Matched, names: set[str]) -> None:
    for key, patterns in (("exclude", matching.exclude), ("only", matching.only or ())):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                matched.warnings.append(f"{key}: {pattern!r} matches no tensor")
