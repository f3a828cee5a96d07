"""Edits: the steps that stand before and after a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from cuvee.errors import MethodError, nearest
from cuvee.methods.registry import ADAPTERS, DELTAS, OPTIONAL, Edit, Method, Role, find_edit
from cuvee.recipes.findings import Findings, KeyPath
from cuvee.recipes.recipe import Recipe
from cuvee.recipes.settings import is_listed

__all__ = ["CheckedEdit", "read_edits"]

CheckedEdit: TypeAlias = tuple[Edit, Mapping[str, Any]]


def read_edits(recipe: Recipe, method: Method | None, role: Role, findings: Findings) -> tuple[CheckedEdit, ...]:
    """Return the edits of one side of the merge, each with all its parameters; what is wrong goes into `findings`."""
    side = role.value
    written = recipe.before if role is Role.FILTER else recipe.after
    if not is_listed(written):
        findings.error(f"{side} is not a list", (side,), right=f"{side}: [trim: {{density: 0.5}}]")
        return ()
    if written and method is not None:
        _check_method(recipe, method, side, findings)
    read = [_read_edit(one, role, (side, index), findings) for index, one in enumerate(written)]
    _check_repeats(read, role, findings)
    return tuple(one for one in read if one is not None)


def _check_repeats(read: Sequence[CheckedEdit | None], role: Role, findings: Findings) -> None:
    """Refuse an edit that stands where it has stood before, and would do nothing or nonsense.

    Another filter between two makes them two steps, and so does another scope.
    """
    for index, one in enumerate(read):
        earlier = read[:index] if role is Role.REFINER else read[max(index - 1, 0) : index]
        if one is None or not one[0].once or not any(other and _same_step(one, other) for other in earlier):
            continue
        found = f"{one[0].name} stands twice {role.value} the merge: {one[0].once}"
        findings.error(found, (role.value, index, one[0].name), right=f"one {one[0].name}", kind=MethodError)


def _same_step(one: CheckedEdit, other: CheckedEdit) -> bool:
    return one[0].name == other[0].name and one[1].get("scope") == other[1].get("scope")


def _check_method(recipe: Recipe, method: Method, side: str, findings: Findings) -> None:
    has_deltas = method.on is DELTAS or (method.base is OPTIONAL and recipe.base_model is not None)
    if not has_deltas:
        with_base = method.base is OPTIONAL
        findings.error(
            f"{side} edits task vectors, and {method.name} merges {'adapters' if method.on is ADAPTERS else 'weights'}"
            + (" without a base model" if with_base else ""),
            (side,),
            right="name the base_model"
            if with_base
            else "a method on task vectors, such as task_arithmetic with a base_model",
            kind=MethodError,
        )


def _read_edit(written: Any, role: Role, path: KeyPath, findings: Findings) -> CheckedEdit | None:
    entry = {written: None} if isinstance(written, str) else written
    if not isinstance(entry, Mapping) or len(entry) != 1:
        findings.error("an edit is one name with its parameters", path, right="- trim: {density: 0.5}")
        return None
    ((name, given),) = entry.items()
    try:
        found = find_edit(str(name), role)
    except MethodError as error:
        findings.error(error.found, (*path, name), right=error.right, kind=MethodError)
        return None
    if given is not None and not isinstance(given, Mapping):
        findings.error(f"the parameters of {name} are {given!r}", (*path, name), right=f"- {name}: {{density: 0.5}}")
        return None
    return found, _read_parameters(found, given or {}, (*path, name), findings)


def _read_parameters(found: Edit, given: Mapping[str, Any], path: KeyPath, findings: Findings) -> dict[str, Any]:
    for name in given:
        if name not in found.parameters:
            right = nearest(str(name), found.parameters)
            findings.error(f"{found.name} has no parameter {name!r}", (*path, name), right=right, kind=MethodError)
    values: dict[str, Any] = {}
    for name, parameter in found.parameters.items():
        if given.get(name) is None:
            values[name] = parameter.default
            if parameter.required:
                right = f"{found.name}: {{{name}: …}}, {parameter.accepts}"
                findings.error(f"{found.name} needs {name}", path, right=right, kind=MethodError)
            continue
        try:
            values[name] = parameter.check(given[name])
        except MethodError as error:
            findings.error(error.found, (*path, name), right=error.right, kind=MethodError)
    return values
