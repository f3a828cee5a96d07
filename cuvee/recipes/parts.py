"""Parts: what the recipe's sources make of the output, piece by piece.

A recipe over whole models is one part. Of slices, each is a part of its own; what stands before the layers is made as
the first slice says, what stands after them as the last one does. Every part has its line-up and its settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from cuvee.recipes.findings import Findings, KeyPath
from cuvee.recipes.recipe import Recipe, RecipeModel, Slice
from cuvee.recipes.settings import Setting, is_listed

__all__ = ["Expert", "Part", "Region", "is_same", "label", "parts_of"]

Level = tuple[Mapping[str, Setting], KeyPath]
"""Settings for all models, and where they are written."""


class Region(StrEnum):
    """Which tensors a part makes."""

    WHOLE = "whole"
    BEFORE = "before"
    """What stands before the layers: embeddings."""
    LAYERS = "layers"
    AFTER = "after"
    """What stands after them: the last norm and the head."""


@dataclass(frozen=True, eq=False)  # models may be tensors, which do not compare as one
class Expert:
    """One model that the method is given.

    Attributes:
        entry: as in the recipe.
        path: where it is written.
    """

    entry: RecipeModel
    path: KeyPath


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the output, as it is written.

    Attributes:
        listed: the models, in the order of the text.
        base: the base model, None where there is none.
        base_path: where it is named.
        levels: settings for all models, nearest first.
        region: which tensors are made.
        first: the first of its layers in the output.
        count: its layers; None: as many as the models have.
        module: the part of the model that it belongs to, "" where the recipe has no modules.
    """

    listed: tuple[Expert, ...]
    base: Any
    base_path: KeyPath
    levels: tuple[Level, ...]
    region: Region = Region.WHOLE
    first: int = 0
    count: int | None = None
    module: str = ""

    @property
    def path(self) -> KeyPath:
        """Where its models are written."""
        return self.listed[0].path[:-1] if self.listed else ("models",)

    @property
    def is_sliced(self) -> bool:
        """True for a part of slices."""
        return self.region is not Region.WHOLE


def label(model: Any, position: int) -> str:
    """Return how messages call the model at a position."""
    if isinstance(model, Recipe) and model.name:
        return repr(model.name)
    return repr(os.fspath(model)) if isinstance(model, str | os.PathLike) else f"model {position}"


def is_same(one: Any, other: Any) -> bool:
    """True when both refer to one model."""
    if isinstance(one, str | os.PathLike) and isinstance(other, str | os.PathLike):
        return os.path.normpath(os.fspath(one)) == os.path.normpath(os.fspath(other))
    return one is other


def parts_of(recipe: Recipe, findings: Findings) -> tuple[Part, ...]:
    """Return the parts of a recipe; what is wrong with its slices and modules goes into `findings`."""
    top: Level = (recipe.parameters, ("parameters",))
    given = [key for key in ("models", "slices", "modules") if getattr(recipe, key)]
    if len(given) > 1:
        findings.error(f"{given[0]} and {given[1]} are both given", (given[1],), right="one of them")
    if not recipe.modules:
        return _parts(recipe, recipe.models, recipe.slices, (), (top,), findings)
    parts: list[Part] = []
    for name, one in recipe.modules.items():
        path = ("modules", name)
        if bool(one.models) == bool(one.slices):
            found = "both models and slices" if one.models else "neither models nor slices"
            findings.error(f"the module {name!r} has {found}", path, right="one of them")
        levels = ((one.parameters, (*path, "parameters")), top)
        found_parts = _parts(recipe, one.models, one.slices, path, levels, findings)
        parts += [replace(part, module=name) for part in found_parts]
    return tuple(parts)


def _parts(
    recipe: Recipe,
    models: Sequence[RecipeModel],
    slices: Sequence[Slice],
    path: KeyPath,
    levels: tuple[Level, ...],
    findings: Findings,
) -> tuple[Part, ...]:
    if slices:
        return _sliced(recipe, slices, path, levels, findings)
    listed = tuple(Expert(entry, (*path, "models", index)) for index, entry in enumerate(models))
    for one in listed:
        if one.entry.layer_range is not None:
            found = "layer_range belongs to slices"
            findings.error(found, (*one.path, "layer_range"), right="slices: [{sources: [{model: …, …}]}]")
    return (Part(listed, recipe.base_model, ("base_model",), levels),)


def _sliced(
    recipe: Recipe, slices: Sequence[Slice], above: KeyPath, levels: tuple[Level, ...], findings: Findings
) -> tuple[Part, ...]:
    layers: list[Part] = []
    first = 0
    for index, one in enumerate(slices):
        path = (*above, "slices", index)
        count = _count_layers(one, path, index in (0, len(slices) - 1), findings)
        listed = tuple(Expert(entry, (*path, "sources", at)) for at, entry in enumerate(one.sources))
        own = recipe.base_model if one.base_model is None else one.base_model
        base_path = ("base_model",) if one.base_model is None else (*path, "base_model")
        if recipe.compat == "mergekit":
            listed = _without_repeats(listed, findings)
        nearest = ((one.parameters, (*path, "parameters")), *levels)
        layers.append(Part(listed, own, base_path, nearest, Region.LAYERS, first, count))
        first += count or 0
    if first == 0 and not findings.errors:
        path = (*above, "slices")
        findings.error("the slices have no layers", path, right="layer_range: [0, 16] takes layers 0 to 15")
    last = replace(layers[-1], region=Region.AFTER)
    if recipe.compat == "mergekit":
        # mergekit takes as many models for the tensors after the layers as the first slice has.
        last = replace(last, listed=last.listed[: len(layers[0].listed)])
    return (replace(layers[0], region=Region.BEFORE), *(part for part in layers if part.count != 0), last)


def _count_layers(one: Slice, path: KeyPath, is_end: bool, findings: Findings) -> int | None:
    """Return the layers of a slice, None where that is not known or wrong."""
    if not one.sources:
        findings.error("the slice has no sources", path, right="sources: [{model: …, layer_range: [0, 16]}]")
        return None
    counts: list[int] = []
    for at, entry in enumerate(one.sources):
        where = (*path, "sources", at)
        spoken = entry.layer_range
        if spoken is None:
            findings.error(
                "the source has no layer_range", where, right="layer_range: [0, 16], which takes layers 0 to 15"
            )
            continue
        where = (*where, "layer_range")
        if not _is_range(spoken):
            said = list(spoken) if isinstance(spoken, tuple) else spoken
            findings.error(f"layer_range is {said!r}", where, right="layer_range: [0, 16], which takes layers 0 to 15")
        elif spoken[0] > spoken[1] or (spoken[0] == spoken[1] and not is_end):
            right = f"layer_range: [{spoken[0]}, {max(spoken) + 1}]"
            findings.error(f"layer_range {list(spoken)} is empty: its end is not included", where, right=right)
        else:
            counts.append(spoken[1] - spoken[0])
    if len(set(counts)) > 1:
        said = ", ".join(map(str, counts))
        findings.error(f"the sources of a slice have {said} layers", path, right="ranges of one length")
    return counts[0] if len(set(counts)) == 1 and len(counts) == len(one.sources) else None


def _is_range(spoken: Any) -> bool:
    return (
        is_listed(spoken)
        and len(spoken) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in spoken)
    )


def _without_repeats(listed: Sequence[Expert], findings: Findings) -> tuple[Expert, ...]:
    """Return each model of a slice once, as mergekit takes it: the parameters of the first, the layers of the last."""
    kept: list[Expert] = []
    for one in listed:
        at = next((i for i, other in enumerate(kept) if is_same(other.entry.model, one.entry.model)), None)
        if at is None:
            kept.append(one)
            continue
        findings.warn("mergekit takes a model once in a slice: the last layers, the first parameters", one.path)
        kept[at] = replace(kept[at], entry=replace(kept[at].entry, layer_range=one.entry.layer_range))
    return tuple(kept)
