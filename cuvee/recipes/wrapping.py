"""Wrapping: an edit named as the merge method, with the method that it wraps as `inner`.

`merge_method: lines` with `parameters: {inner: ties, alpha: 0.2, density: 0.5}` is `merge_method: ties` with
`parameters: {density: 0.5}` and `after: [lines: {alpha: 0.2}]`. A parameter that both have is the edit's. Before a
refiner, `inner_scaling: 0.3` scales what it refines, as `after: [scale: {factor: 0.3}, …]`.
"""

from __future__ import annotations

from dataclasses import replace

from cuvee.methods.registry import Role, edits, methods
from cuvee.recipes.recipe import Recipe

__all__ = ["INNER", "unwrapped"]

INNER = "task_arithmetic"
"""What is wrapped where a recipe does not say."""


def unwrapped(recipe: Recipe) -> Recipe:
    """Return a recipe whose merge method is one: an edit in its place goes to its side of the method `inner`."""
    found = edits().get(str(recipe.merge_method))
    if found is None or found.name in methods():
        return recipe
    given = dict(recipe.parameters)
    inner = str(given.pop("inner", None) or "")
    given = given if inner else {**found.alone, **given}
    own = {name: given.pop(name) for name in found.parameters if name in given}
    wrapper = {found.name: own}
    before, after, at = recipe.before, recipe.after, 0
    if found.role is Role.FILTER:
        before = (wrapper, *before)
    else:
        factor = given.pop("inner_scaling", None)
        first = () if factor is None else ({"scale": {"factor": factor}},)
        after, at = (*after, *first, wrapper), len(after) + len(first)
    places = dict(recipe.places)
    for path, place in recipe.places.items():
        if path[:1] == ("parameters",) and path[1:] and path[1] in own:
            places[found.role.value, at, found.name, *path[1:]] = place
    if ("parameters", "inner") in places:
        places["merge_method",] = places["parameters", "inner"]
    if ("parameters", "inner_scaling") in places:
        places["after", at - 1, "scale", "factor"] = places["parameters", "inner_scaling"]
    return replace(recipe, merge_method=inner or INNER, parameters=given, places=places, before=before, after=after)
