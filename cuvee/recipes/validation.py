"""Validation: all that can be known of a recipe without opening a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cuvee.errors import CuveeError, MethodError, RecipeError, nearest, raise_all
from cuvee.methods.registry import DELTAS, WEIGHTS, Method, Role, find_method
from cuvee.recipes.editing import CheckedEdit, read_edits
from cuvee.recipes.findings import Findings
from cuvee.recipes.lineup import Expert, line_up
from cuvee.recipes.recipe import Recipe, RecipeModel
from cuvee.recipes.resolving import Resolver, read_settings
from cuvee.recipes.settings import MISSING, is_listed
from cuvee.tensors.dtypes import parse_dtype

__all__ = ["Checked", "Prepared", "check", "examine_values", "prepare", "validate"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a recipe means: all names found, all values checked.

    Attributes:
        method: the merge method.
        experts: the models it is given, in its order: without the base where there are task vectors, with it where it
            is a member (karcher, linear) or the first of two (slerp).
        base: the base model as the recipe names it, None where it names none. A method on weights is not given it
            apart from `experts`; config, files and left-out tensors of the output still come from it.
        resolver: gives the arguments for each tensor.
        before, after: the edits, each with all its parameters.
        warnings: what the user should know and can change.
    """

    method: Method
    experts: tuple[RecipeModel, ...]
    base: Any
    resolver: Resolver
    before: tuple[CheckedEdit, ...]
    after: tuple[CheckedEdit, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Checked:
    """The outcome of a check.

    Attributes:
        errors: in the order of the text.
        warnings: likewise.
        prepared: None where there are errors.
    """

    errors: tuple[CuveeError, ...]
    warnings: tuple[str, ...]
    prepared: Prepared | None


def check(recipe: Recipe) -> Checked:
    """Check a recipe without opening a model."""
    findings = Findings(recipe.places)
    _examine_plain_values(recipe, findings)
    method = _find_method(recipe, findings)
    before = read_edits(recipe, method, Role.FILTER, findings)
    after = read_edits(recipe, method, Role.REFINER, findings)
    if method is None:
        return Checked(tuple(findings.errors), tuple(recipe.notes), None)
    experts = line_up(recipe, method, findings)
    resolver = read_settings(recipe, method, experts, findings)
    _check_weights(resolver, experts, findings)
    models = tuple(expert.entry for expert in experts)
    warnings = (*recipe.notes, *findings.warnings)
    prepared = Prepared(method, models, recipe.base_model, resolver, before, after, warnings)
    errors = tuple(findings.errors)
    return Checked(errors, warnings, None if errors else prepared)


def validate(recipe: Recipe) -> list[CuveeError]:
    """Return all that is wrong with a recipe, in the order of its text."""
    return list(check(recipe).errors)


def prepare(recipe: Recipe) -> Prepared:
    """Return what a recipe means.

    Raises:
        Problems: all that is wrong with it, said together; or the one error that is.
    """
    checked = check(recipe)
    raise_all(checked.errors)
    assert checked.prepared is not None
    return checked.prepared


def examine_values(recipe: Recipe, findings: Findings) -> None:
    """Add what is wrong with single values of a recipe whose text has other faults (which could make up the rest)."""
    _examine_plain_values(recipe, findings)
    method = _find_method(recipe, findings) if recipe.merge_method else None
    for role in Role:
        read_edits(recipe, None, role, findings)
    if method is not None:
        experts = [Expert(entry, ("models", index)) for index, entry in enumerate(recipe.models)]
        read_settings(recipe, method, experts, findings, insist=False)


def _examine_plain_values(recipe: Recipe, findings: Findings) -> None:
    """Check what depends on no method."""
    for key in ("dtype", "out_dtype"):
        _check_dtype(getattr(recipe, key), key, findings)
    _check_choice(recipe.compute_dtype, "compute_dtype", ("float32", "float64"), findings)
    if recipe.compat is not None:
        _check_choice(recipe.compat, "compat", ("mergekit",), findings)
    if isinstance(recipe.seed, bool) or not isinstance(recipe.seed, int):
        findings.error(f"seed is {recipe.seed!r}", ("seed",), right="seed: a whole number")
    for key in ("exclude", "only"):
        _check_patterns(getattr(recipe, key), key, findings)


def _find_method(recipe: Recipe, findings: Findings) -> Method | None:
    try:
        return find_method(str(recipe.merge_method))
    except MethodError as error:
        findings.error(error.found, ("merge_method",), right=error.right, kind=MethodError)
        return None


def _check_dtype(spoken: Any, key: str, findings: Findings) -> None:
    if spoken is None:
        return
    try:
        parse_dtype(spoken)
    except RecipeError as error:
        findings.error(error.found, (key,), right=error.right)


def _check_choice(spoken: Any, key: str, known: tuple[str, ...], findings: Findings) -> None:
    if spoken not in known:
        findings.error(f"{key} is {spoken!r}", (key,), right=nearest(str(spoken), known))


def _check_patterns(patterns: Any, key: str, findings: Findings) -> None:
    if patterns is None:
        return
    if not is_listed(patterns):
        findings.error(f"{key} is not a list", (key,), right=f'{key}: ["*.norm.weight"]')
        return
    for index, pattern in enumerate(patterns):
        if not isinstance(pattern, str) or not pattern:
            findings.error(f"the pattern {pattern!r} is not text", (key, index), right=f'{key}: ["*.norm.weight"]')
    if key == "only" and not patterns:
        findings.error("only names no tensors, so nothing would be merged", (key,), right='only: ["*.mlp.*"]')


def _check_weights(resolver: Resolver, experts: tuple[Expert, ...], findings: Findings) -> None:
    """Check weights that are divided by their sum, where both are the same for all tensors."""
    method = resolver.method
    switch = next((name for name in ("normalize", "normalize_weights") if name in method.parameters), None)
    weights = resolver.constant("weight") if "weight" in method.parameters else MISSING
    if switch is None or weights is MISSING or not experts or resolver.constant(switch) is not True:
        return
    path = experts[0].path
    total = sum(weights)
    if abs(total) < 1e-8 and method.on is WEIGHTS:
        findings.error(
            f"the weights {_numbers(weights)} sum to 0, and {switch} divides by their sum",
            path,
            right=f"other weights, or {switch}: false",
            kind=MethodError,
        )
    elif any(weight < 0 for weight in weights) and (method.on is DELTAS or abs(total - 1) > 1e-9):
        findings.warn(
            f"{switch} divides by the sum of weights, {total:g}, so the sign of a negative weight cancels out "
            f"where it decides the sum; {switch}: false keeps it",
            path,
        )


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
