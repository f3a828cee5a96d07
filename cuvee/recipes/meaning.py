"""What a recipe means, in plain words with its own numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cuvee.errors import printable
from cuvee.methods.registry import ENDPOINT, MEMBER, OPTIONAL, REQUIRED, Edit, Method, Parameter
from cuvee.recipes.parts import Part, Region, label
from cuvee.recipes.recipe import Recipe, RecipeModel
from cuvee.recipes.settings import MISSING, Setting, is_filtered, is_listed
from cuvee.recipes.validation import Prepared, PreparedPart

__all__ = ["explain"]


def explain(recipe: Recipe, prepared: Prepared) -> tuple[str, ...]:
    """Return what will be computed, line by line: formula, models, parameters, what is left as it is."""
    return tuple(printable(line) for line in _lines(recipe, prepared))


def _lines(recipe: Recipe, prepared: Prepared) -> Iterator[str]:
    method = prepared.method
    yield _named_formula(method, method.name)
    if not prepared.is_cut:
        yield _roles(method, prepared.parts[0])
    for edit, values in prepared.before:
        yield f"before, on each task vector: {_step(edit, values)}"
    if not prepared.is_cut:
        for parameter in method.parameters.values():
            yield _parameter(prepared.parts[0], parameter)
        yield from _divided(prepared.parts[0])
    else:
        yield from _slices(method, prepared)
    for edit, values in prepared.after:
        yield f"after, on the merged task vector: {_step(edit, values)}"
    yield from _left_out(recipe)
    dtype = recipe.out_dtype or recipe.dtype
    yield f"computed in {recipe.compute_dtype}, rounded once to {dtype or 'the dtype of the input'}"
    if method.differs:
        yield f"differs: {method.differs}"
    for edit, _ in (*prepared.before, *prepared.after):
        if edit.differs:
            yield f"{edit.name} differs: {edit.differs}"


def _step(edit: Edit, values: Mapping[str, Any]) -> str:
    return _named_formula(edit, f"{edit.name}({_arguments(values)})")


def _named_formula(one: Method | Edit, name: str) -> str:
    name = name if one.status != "reconstruction" else f"{name} (a reconstruction of the paper)"
    return f"{name}: {one.formula}" if one.formula else name


def _slices(method: Method, prepared: Prepared) -> Iterator[str]:
    """Say slice by slice where the layers come from, and with which settings."""
    for one in prepared.parts:
        given = [p for p in method.parameters.values() if any(one.resolver.chains[p.name])]
        words = "; ".join((_roles(method, one), *(_parameter(one, parameter) for parameter in given)))
        yield f"{_where(one.part)}: {words}"


def _where(part: Part) -> str:
    of = f" of {part.module}" if part.module else ""
    if part.region is Region.WHOLE:
        return part.module
    if part.region is not Region.LAYERS:
        return f"{part.region} the layers{of}"
    last = part.first + (part.count or 1) - 1
    return (f"layer {last}" if last == part.first else f"layers {part.first} to {last}") + of


def _roles(method: Method, one: PreparedPart) -> str:
    names = [_named(entry, k, one) for k, entry in enumerate(one.experts)]
    if method.base is ENDPOINT:
        return f"t = 0 is {names[0]}, t = 1 is {names[1]}"
    if method.base in (REQUIRED, OPTIONAL) and one.base is not None:
        return f"task vectors of {', '.join(names)} from {_named(one.base, 0, one)}"
    if method.base is MEMBER and one.base is not None:
        return f"models {', '.join(names)}; the base model is one of them"
    return f"models {', '.join(names)}"


def _named(entry: RecipeModel, position: int, one: PreparedPart) -> str:
    """Return a model's name, in a slice with its layers."""
    name = label(entry.model, position)
    if one.part.region is not Region.LAYERS or entry.layer_range is None:
        return name
    first, end = entry.layer_range
    return f"{name} {first}" if end == first + 1 else f"{name} {first} to {end - 1}"


def _parameter(one: PreparedPart, parameter: Parameter) -> str:
    resolver = one.resolver
    if not parameter.per_model:
        return f"{parameter.name}: {_chain(resolver.chains[parameter.name][0], parameter.default)}"
    said = (_chain(row, parameter.default) for row in resolver.chains[parameter.name])
    return f"{parameter.name}: " + "; ".join(
        f"{name} {words}" for name, words in zip(resolver.labels, said, strict=True)
    )


def _chain(row: tuple[Setting, ...], default: Any) -> str:
    """Return settings in words, in the order in which they are asked."""
    words = []
    for setting in row:
        words.append(_setting(setting))
        if not is_filtered(setting) or any(entry["filter"] in (None, "*") for entry in setting):
            return ", else ".join(words)
    return ", else ".join([*words, f"{_value(default)} (default)"])


def _setting(setting: Setting) -> str:
    if is_filtered(setting):
        return ", ".join(
            _setting(entry["value"])
            + (f" where the name has {entry['filter']!r}" if entry["filter"] else " for the rest")
            for entry in setting
        )
    if is_listed(setting):
        steps = " → ".join(_value(value) for value in setting)
        return f"{steps} from the first layer to the last ({_value(setting[0])} outside the layers)"
    return _value(setting)


def _divided(one: PreparedPart) -> Iterator[str]:
    """Say what normalising makes of weights that are the same for all tensors."""
    resolver, parameters = one.resolver, one.resolver.method.parameters
    switch = next((name for name in ("normalize", "normalize_weights") if name in parameters), None)
    if switch is None or "weight" not in parameters or resolver.constant(switch) is not True:
        return
    weights = resolver.constant("weight")
    if weights is not MISSING and abs(sum(weights)) > 1e-8 and abs(sum(weights) - 1) > 1e-9:
        shares = ", ".join(f"{weight / sum(weights):.4g}" for weight in weights)
        yield f"{switch}: where all models count, the weights are divided by their sum, {sum(weights):.6g}: {shares}"


def _left_out(recipe: Recipe) -> Iterator[str]:
    if recipe.exclude:
        yield f"left as they are: {', '.join(map(repr, recipe.exclude))}"
    if recipe.only is not None:
        yield f"merged are only: {', '.join(map(repr, recipe.only))}"


def _arguments(values: Any) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
