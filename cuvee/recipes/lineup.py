"""The line-up: which models a method is given, in which order, and what the base model is among them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from cuvee.methods.registry import ENDPOINT, MEMBER, NONE, OPTIONAL, REQUIRED, Method
from cuvee.recipes.findings import Findings, KeyPath
from cuvee.recipes.recipe import Recipe, RecipeModel

__all__ = ["Expert", "label", "line_up"]


@dataclass(frozen=True, eq=False)  # models may be tensors, which do not compare as one
class Expert:
    """One model that the method is given.

    Attributes:
        entry: as in the recipe.
        path: where it is written.
    """

    entry: RecipeModel
    path: KeyPath


def label(model: Any, position: int) -> str:
    """Return how messages call the model at a position."""
    return repr(os.fspath(model)) if isinstance(model, str | os.PathLike) else f"model {position}"


def line_up(recipe: Recipe, method: Method, findings: Findings) -> tuple[Expert, ...]:
    """Return the models that the method is given, in its order; what does not suit it goes into `findings`.

    The base model is one of them where it is a member (karcher), the first of two where it is an end point (slerp),
    and where a method that knows no base finds it listed (linear). Where task vectors are taken against it, it is not.
    """
    listed = [Expert(entry, ("models", index)) for index, entry in enumerate(recipe.models)]
    base = recipe.base_model
    others = [one for one in listed if base is None or not _is_same(one.entry.model, base)]
    if method.base is ENDPOINT:
        experts = _with_endpoint(listed, base)
    elif method.base is MEMBER and base is not None and len(others) == len(listed):
        experts = [*listed, Expert(RecipeModel(base), ("base_model",))]
    elif method.base in (REQUIRED, OPTIONAL):
        experts = others
        _warn_of_base_parameters(listed, others, findings)
    else:
        experts = listed
    _check_base(recipe, method, is_listed=len(others) < len(listed), findings=findings)
    _check_count(recipe, method, listed, experts, findings)
    _warn_of_repeats(experts, findings)
    return tuple(experts)


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, str | os.PathLike) and isinstance(other, str | os.PathLike):
        return os.path.normpath(os.fspath(one)) == os.path.normpath(os.fspath(other))
    return one is other


def _with_endpoint(listed: list[Expert], base: Any) -> list[Expert]:
    """Return the models with the base first; without a base the first listed stays there."""
    if base is None:
        return listed
    at = next((i for i, one in enumerate(listed) if _is_same(one.entry.model, base)), None)
    if at is None:
        return [Expert(RecipeModel(base), ("base_model",)), *listed]
    return [listed[at], *listed[:at], *listed[at + 1 :]]


def _check_base(recipe: Recipe, method: Method, *, is_listed: bool, findings: Findings) -> None:
    base = recipe.base_model
    if method.base is REQUIRED and base is None:
        findings.error(
            f"{method.name} needs a base model, and the recipe names none",
            (),
            right="base_model: the model that the others were fine-tuned from",
        )
    if method.base is NONE and base is not None and not is_listed:
        findings.error(
            f"{method.name} takes no base model, and {label(base, 0)} is not one of its models",
            ("base_model",),
            right="list it under models, or leave base_model out",
        )


def _check_count(
    recipe: Recipe, method: Method, listed: list[Expert], experts: list[Expert], findings: Findings
) -> None:
    low, high = method.models
    if low <= len(experts) and (high is None or len(experts) <= high):
        return
    found = f"{method.name} takes {_count(low, high)}, and the recipe has {len(experts)}"
    if len(experts) < len(listed):
        found += " besides the base model"
    elif len(experts) > len(listed):
        found += " with the base model"
    right = _count(low, high)
    if recipe.base_model is not None and method.base in (REQUIRED, OPTIONAL):
        right += ", the base model not counted"
    elif method.base is ENDPOINT:
        right += ", one of which may be named by base_model alone"
    findings.error(found, ("models",), right=right)


def _count(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} or more models"
    if low == high:
        return f"exactly {low} model{'' if low == 1 else 's'}"
    return f"{low} to {high} models"


def _warn_of_base_parameters(listed: list[Expert], others: list[Expert], findings: Findings) -> None:
    for one in listed:
        if one not in others and one.entry.parameters:
            findings.warn(
                "the parameters of the base model have no effect: its task vector is zero", (*one.path, "parameters")
            )


def _warn_of_repeats(experts: list[Expert], findings: Findings) -> None:
    for index, one in enumerate(experts):
        if any(_is_same(one.entry.model, earlier.entry.model) for earlier in experts[:index]):
            findings.warn(f"{label(one.entry.model, index)} is listed more than once, and counts each time", one.path)
