"""Stages: recipes of one file, of which some merge what others have made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cuvee.errors import RecipeError, raise_all
from cuvee.recipes.recipe import Module, Recipe, RecipeModel, Slice

__all__ = ["chain_stages", "everywhere", "stages_of"]


def chain_stages(recipes: Sequence[Recipe]) -> Recipe:
    """Return the recipe that is published, with the stages in the place of their names.

    It is the one without a name, or else the only one that no other uses.

    Raises:
        Problems: two recipes without a name or of one name, stages that nothing uses, or stages that need each other.
    """
    named: dict[str, Recipe] = {}
    nameless: list[Recipe] = []
    errors: list[RecipeError] = []
    for recipe in recipes:
        if not recipe.name:
            nameless.append(recipe)
        elif "/" in recipe.name or "\\" in recipe.name or recipe.name.startswith(".") or not recipe.name.isprintable():
            right = "a name that a folder can have, without slashes"
            errors.append(_error(recipe, f"a stage is called {recipe.name!r}", right, "name"))
        elif recipe.name in named:
            errors.append(_error(recipe, f"two stages are called {recipe.name!r}", "a name of its own", "name"))
        else:
            named[recipe.name] = recipe
    if len(nameless) > 1:
        right = "name: on all but the one that is published"
        errors.append(_error(nameless[1], "two recipes have no name", right))
    uses = {id(recipe): _used(recipe, named) for recipe in recipes}
    used = {name for names in uses.values() for name in names}
    unused = [recipe for name, recipe in named.items() if name not in used]
    if not nameless and len(unused) != 1:
        found = (
            f"of the stages {_list(r.name for r in unused)} none is used by another, so which is published is not said"
        )
        if not unused:
            found = "every stage is used by another, so that none is published"
        errors.append(_error(recipes[-1], found, "leave out the name of the recipe that is published"))
    elif nameless:
        errors += [
            _error(
                recipe, f"the stage {recipe.name!r} is used by no other", "use it as a model, or leave it out", "name"
            )
            for recipe in unused
        ]
    raise_all(errors)
    return _resolved(nameless[0] if nameless else unused[0], named, (), {})


def stages_of(recipe: Recipe) -> list[Recipe]:
    """Return the recipes whose output a recipe uses, those first that others need, each once."""
    found: dict[int, Recipe] = {}
    for model in _references(recipe):
        if isinstance(model, Recipe):
            for one in (*stages_of(model), model):
                found.setdefault(id(one), one)
    return list(found.values())


def everywhere(recipe: Recipe, **fields: Any) -> Recipe:
    """Return a recipe with fields replaced, in its stages too."""
    changed: dict[int, Recipe] = {}

    def change(model: Any) -> Any:
        if not isinstance(model, Recipe):
            return model
        if id(model) not in changed:
            changed[id(model)] = everywhere(model, **fields)
        return changed[id(model)]

    return replace(_with_references(recipe, change), **fields)


def _references(recipe: Recipe) -> list[Any]:
    """Return the models that a recipe names, as often as it does."""
    parts: list[Recipe | Module] = [recipe, *recipe.modules.values()]
    found = [entry.model for part in parts for entry in part.models] + [recipe.base_model]
    for one in (each for part in parts for each in part.slices):
        found += [*(entry.model for entry in one.sources), one.base_model]
    return [model for model in found if model is not None]


def _with_references(recipe: Recipe, change: Any) -> Recipe:
    """Return a recipe with each reference to a model changed."""

    def changed(model: Any) -> Any:
        return None if model is None else change(model)

    def entries(models: Sequence[RecipeModel]) -> list[RecipeModel]:
        return [replace(entry, model=changed(entry.model)) for entry in models]

    def cut(slices: Sequence[Slice]) -> list[Slice]:
        return [Slice(entries(one.sources), one.parameters, changed(one.base_model)) for one in slices]

    modules = {name: replace(m, models=entries(m.models), slices=cut(m.slices)) for name, m in recipe.modules.items()}
    models, slices, base = entries(recipe.models), cut(recipe.slices), changed(recipe.base_model)
    return replace(recipe, models=models, slices=slices, modules=modules, base_model=base)


def _used(recipe: Recipe, named: dict[str, Recipe]) -> list[str]:
    return [model for model in _references(recipe) if isinstance(model, str) and model in named]


def _resolved(
    recipe: Recipe, named: dict[str, Recipe], above: tuple[str, ...], known: dict[str, Recipe] | None = None
) -> Recipe:
    known = {} if known is None else known
    for model in _references(recipe):
        if isinstance(model, str) and model.partition("+")[0] in named and "+" in model:
            right = "merge the adapter in a stage of its own, from a folder"
            raise _error(recipe, f"{model!r} applies an adapter to a stage", right)

    def change(model: Any) -> Any:
        if not isinstance(model, str) or model not in named:
            return model
        if model in above or model == recipe.name:
            raise _error(recipe, f"the stages {_list((*above, recipe.name))} need each other", "stages in an order")
        if model not in known:
            known[model] = _resolved(named[model], named, (*above, recipe.name), known)
        return known[model]

    return _with_references(recipe, change)


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names if name)


def _error(recipe: Recipe, found: str, right: str, *path: str) -> RecipeError:
    return RecipeError(found, where=recipe.place(*path), right=right)
