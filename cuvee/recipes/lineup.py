"""The line-up: which models a method is given, in which order, and what the base model is among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.methods.registry import ENDPOINT, MEMBER, NONE, OPTIONAL, REQUIRED, Method
from cuvee.recipes.findings import Findings
from cuvee.recipes.parts import Expert, Part, is_same, label
from cuvee.recipes.recipe import RecipeModel

__all__ = ["LineUp", "line_up"]


@dataclass(frozen=True, eq=False)
class LineUp:
    """The models of one part.

    Attributes:
        experts: what the method is given, in its order.
        base: the base model, with its layers; None where the part has none.
    """

    experts: tuple[Expert, ...]
    base: Expert | None


def line_up(part: Part, method: Method, findings: Findings) -> LineUp:
    """Return the models that the method is given, in its order; what does not suit it goes into `findings`.

    The base model is one of them where it is a member (karcher), the first of two where it is an end point (slerp),
    and where a method that knows no base finds it listed (linear). Where task vectors are taken against it, it is not.
    """
    listed = list(part.listed)
    at = next((i for i, one in enumerate(listed) if is_same(one.entry.model, part.base)), None)
    base = None
    if part.base is not None:
        base = _unlisted_base(part, method, findings) if at is None else listed[at]
    others = [one for one in listed if base is None or not _is_repeated(one.entry, base.entry)]
    if method.base is ENDPOINT and base is not None:
        experts = [base, *(one for one in listed if one is not base)]
    elif method.base is MEMBER and base is not None and at is None:
        experts = [*listed, base]
    elif method.base in (REQUIRED, OPTIONAL):
        experts = others
        _warn_of_base_parameters(listed, others, findings)
    else:
        experts = listed
    _check_base(part, method, is_listed=at is not None, findings=findings)
    _check_count(part, method, listed, experts, findings)
    _warn_of_repeats(experts, findings)
    return LineUp(tuple(experts), base)


def _unlisted_base(part: Part, method: Method, findings: Findings) -> Expert:
    """Return the base with the layers that all sources have."""
    ranges = {one.entry.layer_range for one in part.listed if one.entry.layer_range is not None}
    if len(ranges) > 1 and method.base is not NONE:
        findings.error(
            f"the sources of this slice have different layers, and which the base model {label(part.base, 0)} "
            "takes part with is not said",
            part.path[:-1],
            right="list the base model among the sources, with its layer_range",
        )
    return Expert(RecipeModel(part.base, layer_range=next(iter(ranges), None)), part.base_path)


def _check_base(part: Part, method: Method, *, is_listed: bool, findings: Findings) -> None:
    if method.base is REQUIRED and part.base is None:
        findings.error(
            f"{method.name} needs a base model, and the recipe names none",
            (),
            right="base_model: the model that the others were fine-tuned from",
        )
    if method.base is NONE and part.base is not None and not is_listed and not part.is_sliced:
        findings.error(
            f"{method.name} takes no base model, and {label(part.base, 0)} is not one of its models",
            part.base_path,
            right="list it under models, or leave base_model out",
        )


def _check_count(
    part: Part, method: Method, listed: Sequence[Expert], experts: Sequence[Expert], findings: Findings
) -> None:
    low, high = method.models
    if low <= len(experts) and (high is None or len(experts) <= high):
        return
    where = "the slice" if part.is_sliced else "the recipe"
    found = f"{method.name} takes {_count(low, high)}, and {where} has {len(experts)}"
    if len(experts) < len(listed):
        found += " besides the base model"
    elif len(experts) > len(listed):
        found += " with the base model"
    right = _count(low, high)
    if part.base is not None and method.base in (REQUIRED, OPTIONAL):
        right += ", the base model not counted"
    elif method.base is ENDPOINT:
        right += ", one of which may be named by base_model alone"
    findings.error(found, part.path, right=right)


def _count(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} or more models"
    if low == high:
        return f"exactly {low} model{'' if low == 1 else 's'}"
    return f"{low} to {high} models"


def _warn_of_base_parameters(listed: Sequence[Expert], others: Sequence[Expert], findings: Findings) -> None:
    for one in listed:
        if one not in others and one.entry.statistics is not None:
            findings.warn("the statistics of the base model have no effect", (*one.path, "statistics"))
        if one not in others and one.entry.parameters:
            findings.warn(
                "the parameters of the base model have no effect: its task vector is zero", (*one.path, "parameters")
            )


def _warn_of_repeats(experts: Sequence[Expert], findings: Findings) -> None:
    for index, one in enumerate(experts):
        if any(_is_repeated(one.entry, earlier.entry) for earlier in experts[:index]):
            findings.warn(f"{label(one.entry.model, index)} is listed more than once, and counts each time", one.path)


def _is_repeated(one: RecipeModel, other: RecipeModel) -> bool:
    return is_same(one.model, other.model) and one.layer_range == other.layer_range
