"""Validation: all that can be known of a recipe without opening a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cuvee.errors import CuveeError, MethodError, RecipeError, nearest, raise_all
from cuvee.methods.registry import ADAPTERS, DELTAS, ELEMENT, ROW, WEIGHTS, Method, Role, find_method
from cuvee.recipes.editing import CheckedEdit, read_edits
from cuvee.recipes.findings import Findings
from cuvee.recipes.lineup import line_up
from cuvee.recipes.ordering import check_order
from cuvee.recipes.parts import Expert, Part, is_same, parts_of
from cuvee.recipes.recipe import Recipe, RecipeModel
from cuvee.recipes.resolving import Resolver, read_settings
from cuvee.recipes.settings import MISSING, is_listed
from cuvee.recipes.staging import stages_of
from cuvee.recipes.wrapping import unwrapped
from cuvee.tensors.dtypes import parse_dtype
from cuvee.tokenizers.request import TokenizerRequest, TokenRule
from cuvee.tokenizers.templates import BUILT_IN, choose_template

__all__ = ["Checked", "Prepared", "PreparedPart", "check", "examine_values", "prepare", "validate"]


@dataclass(frozen=True, eq=False)
class PreparedPart:
    """What one part of a recipe means.

    Attributes:
        part: as written.
        experts: the models that the method is given, in its order: without the base where there are task vectors, with
            it where it is a member (karcher, linear) or the first of two (slerp).
        base: the base model, None where there is none. A method on weights is not given it apart from `experts`; what
            is left out still comes from it.
        resolver: gives the arguments for each tensor.
    """

    part: Part
    experts: tuple[RecipeModel, ...]
    base: RecipeModel | None
    resolver: Resolver


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a recipe means: all names found, all values checked.

    Attributes:
        method: the merge method.
        parts: of the output; one where whole models are merged.
        base: the base model as the recipe names it, None where it names none. Config and files of the output come from
            it.
        before, after: the edits, each with all its parameters.
        warnings: what the user should know and can change.
    """

    method: Method
    parts: tuple[PreparedPart, ...]
    base: Any
    before: tuple[CheckedEdit, ...]
    after: tuple[CheckedEdit, ...]
    warnings: tuple[str, ...]

    @property
    def is_cut(self) -> bool:
        """True for a recipe with slices or modules."""
        return len(self.parts) > 1 or bool(self.parts[0].part.module)

    @property
    def models(self) -> tuple[Any, ...]:
        """All models besides the base: those of the only part as they are listed, those of several parts each once."""
        if len(self.parts) == 1:
            return tuple(one.model for one in self.parts[0].experts)
        return tuple(_distinct(self))

    def numbers(self, part: PreparedPart) -> tuple[int, ...]:
        """Return the places in `models` of a part's experts."""
        if len(self.parts) == 1:
            return tuple(range(len(part.experts)))
        return tuple(self._number(one.model) for one in part.experts)

    def base_number(self, part: PreparedPart) -> int:
        """Return the place in `models` of a part's base, -1 for the recipe's."""
        return -1 if part.base is None or is_same(part.base.model, self.base) else self._number(part.base.model)

    def _number(self, model: Any) -> int:
        return next(n for n, other in enumerate(self.models) if is_same(model, other))


def _distinct(prepared: Prepared) -> Iterator[Any]:
    seen: list[Any] = []
    for part in prepared.parts:
        bases = [part.base.model] if part.base is not None and not is_same(part.base.model, prepared.base) else []
        for model in (*bases, *(one.model for one in part.experts)):
            if not any(is_same(model, other) for other in seen):
                seen.append(model)
                yield model


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
    recipe = unwrapped(recipe)
    findings = Findings(recipe.places)
    _examine_plain_values(recipe, findings)
    method = _find_method(recipe, findings)
    before = read_edits(recipe, method, Role.FILTER, findings)
    after = read_edits(recipe, method, Role.REFINER, findings)
    if method is None:
        return Checked(tuple(findings.errors), tuple(recipe.notes), None)
    if method.unit is ELEMENT and any(step.unit is ROW for step, _ in (*before, *after)):
        method = replace(method, unit=ROW)
    parts = tuple(_prepared(recipe, method, part, findings) for part in parts_of(recipe, findings))
    _check_statistics(recipe, parts, findings)
    if method.on is ADAPTERS:
        _check_adapters(recipe, method, findings)
    warnings = (*recipe.notes, *findings.warnings)
    prepared = Prepared(method, parts, recipe.base_model, before, after, warnings)
    errors = tuple(findings.errors)
    return Checked(errors, warnings, None if errors else prepared)


def _prepared(recipe: Recipe, method: Method, part: Part, findings: Findings) -> PreparedPart:
    lineup = line_up(part, method, findings)
    resolver = read_settings(recipe, method, lineup.experts, part.levels, findings)
    _check_weights(resolver, lineup.experts, findings)
    check_order(resolver, lineup.experts, findings)
    experts = tuple(expert.entry for expert in lineup.experts)
    return PreparedPart(part, experts, lineup.base.entry if lineup.base else None, resolver)


def _check_statistics(recipe: Recipe, parts: tuple[PreparedPart, ...], findings: Findings) -> None:
    """Refuse statistics where layers or modules of models are put together: they are known by the names in one model."""
    listed = [expert for part in parts for expert in part.part.listed if expert.entry.statistics is not None]
    for one in listed if recipe.slices or recipe.modules else ():
        right = "whole models; slices of what that gives, as a second document"
        findings.error("statistics belong to whole models", (*one.path, "statistics"), right=right)
    for one in listed:
        given = one.entry.statistics
        if not isinstance(given, str | os.PathLike | Mapping) or not given:
            right = "statistics: a file that cuvee collect has written"
            findings.error(f"statistics is {given!r}", (*one.path, "statistics"), right=right)


def _check_adapters(recipe: Recipe, method: Method, findings: Findings) -> None:
    """Refuse what has no meaning for adapters alone."""
    for key in ("slices", "modules", "tokenizer", "chat_template"):
        if getattr(recipe, key):
            found = f"{method.name} merges adapters, which have no {key}"
            findings.error(found, (key,), right="the adapter that comes out, applied to its base: model: BASE+OUT")
    for index, one in enumerate(recipe.models):
        if isinstance(one.model, Recipe):
            found = f"{method.name} merges adapters, and this is a recipe"
            findings.error(found, ("models", index), right="the folder of an adapter")


def validate(recipe: Recipe) -> list[CuveeError]:
    """Return all that is wrong with a recipe, in the order of its text."""
    return list(check(recipe).errors)


def prepare(recipe: Recipe) -> Prepared:
    """Return what a recipe means.

    Raises:
        Problems: all that is wrong with it and its stages, said together; or the one error that is.
    """
    checked = check(recipe)
    raise_all([error for stage in stages_of(recipe) for error in check(stage).errors] + list(checked.errors))
    assert checked.prepared is not None
    return checked.prepared


def examine_values(recipe: Recipe, findings: Findings) -> None:
    """Add what is wrong with single values of a recipe whose text has other faults (which could make up the rest)."""
    recipe = unwrapped(recipe)
    _examine_plain_values(recipe, findings)
    method = _find_method(recipe, findings) if recipe.merge_method else None
    for role in Role:
        read_edits(recipe, None, role, findings)
    if method is not None:
        for part in parts_of(recipe, Findings(recipe.places)):
            read_settings(recipe, method, part.listed, part.levels, findings, insist=False)


def _examine_plain_values(recipe: Recipe, findings: Findings) -> None:
    """Check what depends on no method."""
    for key in ("dtype", "out_dtype"):
        _check_dtype(getattr(recipe, key), key, findings)
    _check_choice(recipe.compute_dtype, "compute_dtype", ("float32", "float64"), findings)
    if recipe.compat is not None:
        _check_choice(recipe.compat, "compat", ("mergekit",), findings)
    if isinstance(recipe.seed, bool) or not isinstance(recipe.seed, int):
        findings.error(f"seed is {recipe.seed!r}", ("seed",), right="seed: a whole number")
    if recipe.tokenizer is not None:
        _check_tokenizer(recipe.tokenizer, findings)
    if recipe.chat_template is not None:
        _check_template(recipe.chat_template, findings)
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


def _check_tokenizer(request: TokenizerRequest, findings: Findings) -> None:
    """Check a request that was made in Python; one from YAML was checked when it was read."""
    if not isinstance(request.source, str | os.PathLike) or not os.fspath(request.source):
        right = 'tokenizer="union", "base", or a model'
        findings.error(f"the tokenizer's source is {request.source!r}", ("tokenizer",), right=right)
    pad = request.pad_to_multiple_of
    if pad is not None and (isinstance(pad, bool) or not isinstance(pad, int) or pad < 1):
        findings.error(f"pad_to_multiple_of is {pad!r}", ("tokenizer", "pad_to_multiple_of"), right="such as 64")
    for token, rule in request.tokens.items():
        if not isinstance(token, str) or not token or not isinstance(rule, TokenRule):
            right = "TokenRule(RowOf(model)), or TokenRule(ZeroRow())"
            findings.error(f"the rule of token {token!r} is {rule!r}", ("tokenizer", "tokens", token), right=right)


def _check_template(spoken: Any, findings: Findings) -> None:
    try:
        choose_template(str(spoken), ())
    except ValueError as error:
        known = ["auto", *BUILT_IN]
        findings.error(str(error), ("chat_template",), right=f"{nearest(str(spoken), known)}, or the template itself")


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
            f"the weights {_numbers(weights)} sum to {total:g}, and {switch} divides by their sum",
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
