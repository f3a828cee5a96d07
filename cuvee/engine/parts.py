"""From a recipe and its open models to the parts that are matched: layers cut out and numbered anew, as views.

A view is a model whose tensors are those of another under new names. No method knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cuvee.architectures import (
    cut_stacks,
    describe,
    is_after_layers,
    known_modules,
    moves_with_its_layer,
    relayered_config,
    renumbered,
    split_by_module,
)
from cuvee.checkpoints.sources import Model
from cuvee.engine.matching import BASE, Matched, Matching, Ties, describe_each, match, match_whole, resolve_ties
from cuvee.engine.tasks import needs_base
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
    if not others and not first.part.module:
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
    """Cuts the models of a recipe with slices or modules."""

    def __init__(self, recipe: Recipe, prepared: Prepared, models: Mapping[int, Model]) -> None:
        self.recipe = recipe
        self.prepared = prepared
        self.models = models
        self.described = describe_each(models)
        wanted = list(recipe.modules)
        self.modules = {n: split_by_module(self.described[n], models[n].tensors, wanted) for n in models}
        self.stacks = {(n, module): self._stacks(n, module) for n in models for module in (wanted or [""])}

    def _stacks(self, number: int, module: str) -> tuple[str, ...]:
        """Return the layer lists of a model, or of one of its modules, that slices cut."""
        architecture = self.described[number]
        if not module:
            return cut_stacks(architecture)
        own = (name for name, owner in self.modules[number].items() if owner == module)
        return cut_stacks(architecture, {architecture.meaning(name).stack for name in own})

    def matched(self) -> Matched:
        self._check()
        ties = self._ties()
        config, warnings = self._config()
        parts = [self._part(part, ties) for part in self.prepared.parts]
        rest = self._rest(ties)
        if self.recipe.modules and self.recipe.compat != "mergekit":
            parts.append(rest)
        shapes = {n: s.shape for part in parts for _, model in part.everyone for n, s in model.tensors.items()}
        matched = match(parts, ties, describe(shapes, config), config)
        matched.warnings += warnings
        if self.recipe.compat == "mergekit":
            matched.dropped.update(dict.fromkeys(rest.models[0].tensors, rest.reason))
        return matched

    def _ties(self) -> Ties:
        """Settle the ties of the models that give what stands outside the layers."""
        outer = [part for part in self.prepared.parts if part.part.region is not Region.LAYERS]
        ends = [{number for number, _ in self._used(part)} for part in (outer[0], outer[-1])]

        def is_apart(alias: str, target: str) -> bool:
            after = [any(is_after_layers(found, name) for found in self.described.values()) for name in (alias, target)]
            return after == [True, False] and ends[0] != ends[1]

        used = sorted({number for part in outer for number, _ in self._used(part)} | {self._reference})
        # mergekit ties the head to whatever embedding comes first, where both ends were tied in their models.
        apart = None if self.recipe.compat == "mergekit" else is_apart
        ties = resolve_ties({number: self.models[number] for number in used}, self.described, apart)
        return replace(ties, models={**self.models, **ties.models})

    @property
    def _reference(self) -> int:
        """The number of the model whose config, files and left-out tensors the output takes."""
        return BASE if BASE in self.models else self.prepared.numbers(self.prepared.parts[0])[0]

    def _used(self, part: PreparedPart) -> Iterator[tuple[int, RecipeModel]]:
        yield from zip(self.prepared.numbers(part), part.experts, strict=True)
        if part.base is not None and self.prepared.method.base is not NONE:
            yield self.prepared.base_number(part), part.base

    def _check(self) -> None:
        errors: list[CuveeError] = []
        for part in self.prepared.parts:
            for number, entry in self._used(part):
                if error := self._cannot_cut(number, entry, part):
                    errors.append(error)
        raise_all(list({str(error): error for error in errors}.values()))
        if not self.recipe.slices:
            return
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
        model, module = self.models[number], part.part.module
        stacks = self.stacks[number, module]
        if module and module not in self.modules[number].values():
            return IncompatibleModels(
                f"{model.label!r} has no part called {module!r}",
                where=self.recipe.place("modules", module),
                right=f"one of: {', '.join(known_modules(self.described[number]))}; or a part of the tensors' names",
            )
        if part.part.region is Region.WHOLE:
            return None
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
        """Return the config of the reference, true for the layers that the slices of each module make."""
        config = self.models[self._reference].config
        warnings: list[str] = []
        if config is None:
            return None, warnings
        result = config
        for module in dict.fromkeys(part.part.module for part in self.prepared.parts):
            layers = []
            for part in self.prepared.parts:
                if part.part.region is Region.LAYERS and part.part.module == module:
                    model, entry = self.models[self.prepared.numbers(part)[0]], part.experts[0]
                    assert entry.layer_range is not None
                    layers += [(model.config or config, layer) for layer in range(*entry.layer_range)]
            stacks = self.stacks[self._reference, module]
            if layers and stacks:
                path = self.described[self._reference].config_path(stacks[0])
                result, said = relayered_config(result, path, layers)
                warnings += said
        return result, warnings

    def _part(self, part: PreparedPart, ties: Ties) -> Matching:
        numbers = self.prepared.numbers(part)
        experts = [self._view(n, entry, part, ties) for n, entry in zip(numbers, part.experts, strict=True)]
        base = None
        if part.base is not None and self.prepared.method.base is not NONE:
            base = self._view(self.prepared.base_number(part), part.base, part, ties)
        matching = _matching(self.recipe, self.prepared, part, experts, base)
        base_number = BASE if base is None else self.prepared.base_number(part)
        matching = replace(matching, numbers=numbers, base_number=base_number)
        if part.part.region is Region.WHOLE:
            return matching
        return replace(matching, position=self._positions(part, [*experts, *([base] if base else [])]).get)

    def _rest(self, ties: Ties) -> Matching:
        """Return what belongs to no module, to be carried over from the reference."""
        number = self._reference
        model = ties.models[number]
        is_rest = [name for name in model.tensors if self.recipe.modules and name not in self.modules[number]]
        tensors = {name: model.tensors[name] for name in is_rest}
        whole = self.prepared.parts[0]
        carried = _matching(self.recipe, self.prepared, whole, [replace(model, tensors=tensors)], None)
        return replace(carried, on_deltas=False, numbers=(number,), reason="in no module of the recipe")

    def _view(self, number: int, entry: RecipeModel, part: PreparedPart, ties: Ties) -> Model:
        """Return a model's tensors that belong to a part, under their names in the output."""
        model, module = ties.models[number], part.part.module
        owners = self.modules[number]
        own = [name for name in model.tensors if not module or owners.get(name, self._owner(number, name)) == module]
        named = ((name, self._new_name(name, number, entry, part)) for name in own)
        origins = {new: name for name, new in named if new is not None}
        return replace(model, tensors={new: model.tensors[name] for new, name in origins.items()}, origins=origins)

    def _owner(self, number: int, name: str) -> str | None:
        """Return the module of a head that a tie has brought in."""
        return split_by_module(self.described[number], [*self.modules[number], name], list(self.recipe.modules)).get(
            name
        )

    def _new_name(self, name: str, number: int, entry: RecipeModel, part: PreparedPart) -> str | None:
        """Return what a tensor is called in the output, None where it belongs to another part."""
        region = part.part.region
        if region is Region.WHOLE:
            return name
        architecture = self.described[number]
        meaning = architecture.meaning(name)
        is_in_layers = meaning.stack in self.stacks[number, part.part.module]
        if not is_in_layers or not moves_with_its_layer(architecture, name, self.models[number].tensors):
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
        for view, (number, entry) in zip(views, self._used(part), strict=True):
            for new, name in view.origins.items():
                layer = self.described[number].meaning(name).layer
                assert layer is not None and entry.layer_range is not None
                positions[new] = (layer - entry.layer_range[0]) / (count - 1) if count > 1 else 1.0
        return positions


def _sizes(sizes: tuple[int | None, ...]) -> str:
    hidden, heads, kv_heads, head_dim = sizes
    return f"width {hidden}, {heads} heads of {head_dim}, {kv_heads} key-value heads"
