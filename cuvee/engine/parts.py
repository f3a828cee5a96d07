"""From a recipe and its open models to the parts that are matched: layers cut out and numbered anew, as views.

A view is a model whose tensors are those of another under new names. No method knows of it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cuvee.architectures import (
    Architecture,
    cut_stacks,
    describe,
    is_after_layers,
    moves_with_its_layer,
    relayered_config,
    renumbered,
)
from cuvee.checkpoints.sources import Model
from cuvee.engine.blocks import needs_base
from cuvee.engine.matching import BASE, Matched, Matching, Ties, describe_model, match, match_whole, resolve_ties
from cuvee.errors import CuveeError, IncompatibleModels, RecipeError, raise_all
from cuvee.methods.registry import NONE
from cuvee.recipes import Prepared, PreparedPart, Recipe, RecipeModel, Region
from cuvee.tensors.dtypes import parse_dtype

__all__ = ["match_recipe"]


def match_recipe(recipe: Recipe, prepared: Prepared, models: Mapping[int, Model]) -> Matched:
    """Match the tensors of a recipe's models, part by part.

    Args:
        models: those of `prepared.models` by their place, the base under `BASE`.

    Raises:
        RecipeError: a slice takes layers that a model does not have.
        IncompatibleModels: models of different sizes are put on top of each other, or a model has no layers to cut.
    """
    (first, *others) = prepared.parts
    if not others:
        experts = [models[number] for number in prepared.numbers(first)]
        return match_whole(_matching(recipe, prepared, first, experts, models.get(BASE)))
    return _Cutting(recipe, prepared, models).matched()


def _matching(
    recipe: Recipe, prepared: Prepared, part: PreparedPart, experts: Sequence[Model], base: Model | None
) -> Matching:
    spoken = recipe.out_dtype or recipe.dtype

    def arguments(name: str, position: float | None, names: Sequence[str]) -> Mapping[str, Any]:
        return part.resolver.for_tensor(name, position, names=names)

    return Matching(
        experts,
        base,
        needs_base(prepared.method, base is not None),
        arguments,
        tuple(recipe.exclude),
        None if recipe.only is None else tuple(recipe.only),
        recipe.parameters.get("embed_mismatch") == "common_submatrix" or recipe.compat == "mergekit",
        parse_dtype(spoken) if spoken else None,
    )


class _Cutting:
    """Cuts the models of a recipe with slices."""

    def __init__(self, recipe: Recipe, prepared: Prepared, models: Mapping[int, Model]) -> None:
        self.recipe = recipe
        self.prepared = prepared
        self.models = models
        self.described = {number: describe_model(model) for number, model in models.items()}
        self.stacks = {number: cut_stacks(found) for number, found in self.described.items()}
        self.layers = [part for part in prepared.parts if part.part.region is Region.LAYERS]

    def matched(self) -> Matched:
        self._check()
        before, *_, after = self.prepared.parts
        ends = [{number for number, _ in self._used(part)} for part in (before, after)]

        def is_apart(alias: str, target: str) -> bool:
            regions = [
                any(is_after_layers(found, name) for found in self.described.values()) for name in (alias, target)
            ]
            return regions == [True, False] and ends[0] != ends[1]

        at_ends = {number: self.models[number] for number in sorted(ends[0] | ends[1])}
        ties = resolve_ties(at_ends, self.described, is_apart)
        ties = replace(ties, models={**self.models, **ties.models})
        config, warnings = self._config()
        parts = [self._part(part, ties) for part in self.prepared.parts]
        shapes = {n: s.shape for part in parts for _, model in part.everyone for n, s in model.tensors.items()}
        matched = match(parts, ties, describe(shapes, config), config)
        matched.warnings += warnings
        return matched

    def _numbers(self, part: PreparedPart) -> tuple[int, ...]:
        return self.prepared.numbers(part)

    def _used(self, part: PreparedPart) -> Iterator[tuple[int, RecipeModel]]:
        yield from zip(self._numbers(part), part.experts, strict=True)
        if part.base is not None and self.prepared.method.base is not NONE:
            yield self.prepared.base_number(part), part.base

    def _check(self) -> None:
        errors: list[CuveeError] = []
        for part in self.layers:
            for number, entry in self._used(part):
                if error := self._cannot_cut(number, entry, part):
                    errors.append(error)
        raise_all(list({str(error): error for error in errors}.values()))
        used = sorted({number for part in self.prepared.parts for number, _ in self._used(part)})
        sizes = {n: (d.hidden_size, d.heads, d.kv_heads, d.head_dim) for n, d in self.described.items() if n in used}
        other = next((n for n in used if sizes[n] != sizes[used[0]]), None)
        if other is not None:
            raise IncompatibleModels(
                f"{self.models[used[0]].label!r} has {_sizes(sizes[used[0]])}, "
                f"{self.models[other].label!r} has {_sizes(sizes[other])}: their layers do not fit on each other",
                where=self.recipe.place("slices"),
                right="models of one width and one number of heads",
            )

    def _cannot_cut(self, number: int, entry: RecipeModel, part: PreparedPart) -> CuveeError | None:
        model, stacks = self.models[number], self.stacks[number]
        if not stacks:
            found = sorted(self.described[number].stacks)
            return IncompatibleModels(
                f"{model.label!r} has no single list of layers to cut"
                + (f", but {len(found)}: {', '.join(found)}" if found else ""),
                where=self.recipe.place("slices"),
                right="whole models under models:" + ("; modules: gives each part its own slices" if found else ""),
            )
        count = self.described[number].stacks[stacks[0]]
        if entry.layer_range is None or entry.layer_range[1] <= count:
            return None
        path = next((one.path for one in part.part.listed if one.entry is entry), part.part.base_path)
        return RecipeError(
            f"layer_range {list(entry.layer_range)} ends after layer {entry.layer_range[1] - 1}, and {model.label!r} has "
            f"{count} layers, 0 to {count - 1}",
            where=self.recipe.place(*path, "layer_range"),
            right=f"an end of at most {count}: the end is not included",
        )

    def _config(self) -> tuple[dict[str, Any] | None, list[str]]:
        reference = self.models.get(BASE) or self.models[0]
        if reference.config is None:
            return None, []
        number = BASE if BASE in self.models else 0
        path = self.described[number].config_path(self.stacks[number][0]) if self.stacks[number] else ()
        layers = []
        for part in self.layers:
            model, entry = self.models[self._numbers(part)[0]], part.experts[0]
            assert entry.layer_range is not None
            layers += [(model.config or reference.config, layer) for layer in range(*entry.layer_range)]
        return relayered_config(reference.config, path, layers)

    def _part(self, part: PreparedPart, ties: Ties) -> Matching:
        experts = [self._view(n, entry, part, ties) for n, entry in zip(self._numbers(part), part.experts, strict=True)]
        base = None
        if part.base is not None and self.prepared.method.base is not NONE:
            base = self._view(self.prepared.base_number(part), part.base, part, ties)
        positions = self._positions(part, [*experts, *([base] if base else [])])
        matching = _matching(self.recipe, self.prepared, part, experts, base)
        return replace(
            matching,
            numbers=self._numbers(part),
            base_number=BASE if base is None else self.prepared.base_number(part),
            position=positions.get,
        )

    def _view(self, number: int, entry: RecipeModel, part: PreparedPart, ties: Ties) -> Model:
        """Return a model's tensors that belong to a part, under their names in the output."""
        model, architecture = ties.models[number], self.described[number]
        stacks = self.stacks[number]
        named = ((n, self._new_name(n, model.tensors, architecture, stacks, entry, part)) for n in model.tensors)
        origins = {new: name for name, new in named if new is not None}
        return replace(model, tensors={new: model.tensors[name] for new, name in origins.items()}, origins=origins)

    def _new_name(
        self,
        name: str,
        names: Container[str],
        architecture: Architecture,
        stacks: Sequence[str],
        entry: RecipeModel,
        part: PreparedPart,
    ) -> str | None:
        """Return what a tensor is called in the output, None where it belongs to another part."""
        region, meaning = part.part.region, architecture.meaning(name)
        is_in_layers = meaning.stack in stacks and moves_with_its_layer(architecture, name, names)
        if not is_in_layers:
            of = Region.AFTER if is_after_layers(architecture, name) else Region.BEFORE
            return name if region is of else None
        assert meaning.layer is not None and entry.layer_range is not None
        first, end = entry.layer_range
        if region is not Region.LAYERS or not first <= meaning.layer < end:
            return None
        return renumbered(name, meaning.stack, part.part.first + meaning.layer - first)

    def _positions(self, part: PreparedPart, views: Sequence[Model]) -> dict[str, float]:
        """Place each tensor of a slice between its first layer, 0, and its last, 1; one layer alone is at 1."""
        if part.part.region is not Region.LAYERS:
            return {}
        positions = {}
        count = part.part.count or 1
        for view, entry in zip(views, [*part.experts, *([part.base] if part.base else [])], strict=False):
            number = next(n for n, one in self._used(part) if one is entry)
            for new, name in view.origins.items():
                layer = self.described[number].meaning(name).layer
                assert layer is not None and entry.layer_range is not None
                positions[new] = (layer - entry.layer_range[0]) / (count - 1) if count > 1 else 1.0
        return positions


def _sizes(sizes: tuple[int | None, ...]) -> str:
    hidden, heads, kv_heads, head_dim = sizes
    return f"width {hidden}, {heads} heads of {head_dim}, {kv_heads} key-value heads"
