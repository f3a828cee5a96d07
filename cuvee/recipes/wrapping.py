"""Wrapping: an edit named as the merge method, with the method that it wraps as `inner`.

`merge_method: lines` with `parameters: {inner: ties, alpha: 0.2, density: 0.5}` is `merge_method: ties` with
`parameters: {density: 0.5}` and `after: [lines: {alpha: 0.2}]`. A parameter that both have is the edit's. Before a
refiner, `inner_scaling: 0.3` scales what it refines, as `after: [scale: {factor: 0.3}, …]`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cuvee.methods.registry import Role, edits, methods
from cuvee.recipes.recipe import Recipe
from cuvee.recipes.settings import is_listed

__all__ = ["INNER", "unwrapped"]

INNER = "task_arithmetic"
"""What is wrapped where a recipe does not say."""


def unwrapped(recipe: Recipe) -> Recipe:
    """Return a recipe whose merge method is one: an edit in its place goes to its side of the method `inner`."""
    found = edits().get(str(recipe.merge_method))
    if found is None or found.name in methods():
        return recipe
    written = recipe.before if found.role is Role.FILTER else recipe.after
    if not is_listed(written):
        return replace(recipe, merge_method=INNER, parameters={})  # what is written there is refused as no list
    given = dict(recipe.parameters)
    inner = str(given.pop("inner", None) or "")
    given = given if inner else {**found.alone, **given}
    own = {name: given.pop(name) for name in found.parameters if name in given}
    wrapper = {found.name: own}
    before, after, at = recipe.before, recipe.after, 0
    places = dict(recipe.places)
    if found.role is Role.FILTER:
        before = (wrapper, *before)
        places = {_later(path): place for path, place in places.items()}
    else:
        factor = given.pop("inner_scaling", None)
        first = () if factor is None else ({"scale": {"factor": factor}},)
        after, at = (*after, *first, wrapper), len(after) + len(first)
    if ("merge_method",) in recipe.places:
        places[found.role.value, at, found.name] = recipe.places["merge_method",]
    for path, place in recipe.places.items():
        if path[:1] == ("parameters",) and path[1:] and path[1] in own:
            places[found.role.value, at, found.name, *path[1:]] = place
    if ("parameters", "inner") in places:
        places["merge_method",] = places["parameters", "inner"]
    if ("parameters", "inner_scaling") in places:
        places["after", at - 1, "scale", "factor"] = places["parameters", "inner_scaling"]
    return replace(recipe, merge_method=inner or INNER, parameters=given, places=places, before=before, after=after)


def _later(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return where what a key path names stands once a filter has come before all others."""
    is_filter = path[:1] == ("before",) and len(path) > 1
    return (path[0], path[1] + 1, *path[2:]) if is_filter else path
