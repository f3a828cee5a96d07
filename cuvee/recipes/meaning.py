"""What a recipe means, in plain words with its own numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cuvee.errors import printable
from cuvee.methods.registry import ENDPOINT, MEMBER, OPTIONAL, REQUIRED, Parameter
from cuvee.recipes.lineup import label
from cuvee.recipes.recipe import Recipe
from cuvee.recipes.settings import MISSING, Setting, is_filtered, is_listed
from cuvee.recipes.validation import Prepared

__all__ = ["explain"]


def explain(recipe: Recipe, prepared: Prepared) -> tuple[str, ...]:
    """Return what will be computed, line by line: formula, models, parameters, what is left as it is."""
    return tuple(printable(line) for line in _lines(recipe, prepared))


def _lines(recipe: Recipe, prepared: Prepared) -> Iterator[str]:
    method = prepared.method
    yield f"{method.name}: {method.formula}" if method.formula else method.name
    yield from _roles(prepared)
    for edit, values in prepared.before:
        yield f"before, on each task vector: {edit.name}({_arguments(values)})"
    for parameter in method.parameters.values():
        yield _parameter(prepared, parameter)
    yield from _divided(prepared)
    for edit, values in prepared.after:
        yield f"after, on the merged task vector: {edit.name}({_arguments(values)})"
    yield from _left_out(recipe)
    dtype = recipe.out_dtype or recipe.dtype
    yield f"computed in {recipe.compute_dtype}, rounded once to {dtype or 'the dtype of the input'}"
    if method.differs:
        yield f"differs: {method.differs}"


def _roles(prepared: Prepared) -> Iterator[str]:
    names = [label(one.model, k) for k, one in enumerate(prepared.experts)]
    use = prepared.method.base
    if use is ENDPOINT:
        yield f"t = 0 is {names[0]}, t = 1 is {names[1]}"
    elif use in (REQUIRED, OPTIONAL) and prepared.base is not None:
        yield f"task vectors of {', '.join(names)} from {label(prepared.base, 0)}"
    elif use is MEMBER and prepared.base is not None:
        yield f"models {', '.join(names)}; the base model is one of them"
    else:
        yield f"models {', '.join(names)}"


def _parameter(prepared: Prepared, parameter: Parameter) -> str:
    resolver = prepared.resolver
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


def _divided(prepared: Prepared) -> Iterator[str]:
    """Say what normalising makes of weights that are the same for all tensors."""
    resolver, parameters = prepared.resolver, prepared.method.parameters
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
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
