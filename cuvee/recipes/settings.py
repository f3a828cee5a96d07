"""Settings: what one value of a recipe means for one tensor.

A setting is one plain value, a gradient (a list of values along the layers), or filter entries, each with a value:

    density: 0.5
    density: [1, 0.7, 0.1]
    density:
      - filter: mlp
        value: [0.3, 0.6]
      - value: 1
"""

from __future__ import annotations

import enum
import fnmatch
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from cuvee.errors import MethodError, nearest
from cuvee.methods.registry import Parameter, Patterns
from cuvee.recipes.findings import Findings, KeyPath

__all__ = ["MISSING", "Missing", "Setting", "check_setting", "evaluate", "is_filtered", "is_listed", "settle"]

Setting: TypeAlias = Any


class Missing(enum.Enum):
    """Stands for the value of a setting that says nothing of a tensor."""

    MISSING = "missing"


MISSING = Missing.MISSING

_FORMS = "one value, a gradient as [1, 0.5], or entries as {filter: mlp, value: 0.5}"
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def evaluate(setting: Setting, name: str, position: float | None) -> Any:
    """Return the value of a setting for one tensor, as mergekit does.

    Args:
        setting: one value, a gradient, or filter entries, of which the first that matches `name` counts.
        name: of the tensor.
        position: of its layer, from 0 (first) to 1 (last); None outside the layers, where gradients start.

    Returns:
        A plain value; in a gradient of numbers true and false count as 1 and 0. `MISSING` where no filter matches.
    """
    if not is_filtered(setting):
        return _along(setting, position or 0.0) if is_listed(setting) else setting
    for entry in [setting] if isinstance(setting, Mapping) else setting:
        if _matches(entry.get("filter"), name):
            return evaluate(entry["value"], name, position)
    return MISSING


def is_listed(setting: Setting) -> bool:
    """True for lists: gradients, filter entries, or values of K models."""
    return isinstance(setting, Sequence) and not isinstance(setting, str | bytes)


def is_filtered(setting: Setting) -> bool:
    """True for filter entries, in a list or one alone."""
    if isinstance(setting, Mapping):
        return True
    return is_listed(setting) and len(setting) > 0 and all(isinstance(entry, Mapping) for entry in setting)


def _matches(pattern: str | None, name: str) -> bool:
    """True when a filter is absent or "*", part of the name, or a glob pattern of the name."""
    if pattern is None or pattern == "*" or pattern in name:
        return True
    return any(c in pattern for c in "*?[") and fnmatch.fnmatchcase(name, pattern)


def _along(gradient: Sequence[Any], t: float) -> Any:
    """Return the value at t in [0, 1] of a gradient: linear between its numbers, by steps where it has words."""
    x = t * (len(gradient) - 1)
    i = int(x)
    if any(isinstance(value, str) for value in gradient):
        return gradient[i]
    low, high = gradient[i], gradient[min(i + 1, len(gradient) - 1)]
    f = x - i
    value = (1 - f) * low + f * high
    return min(max(value, min(low, high)), max(low, high))  # rounding must not leave the range that was checked


def settle(parameter: Parameter, value: Any) -> Any:
    """Return an evaluated value as the parameter's type: between the numbers of a gradient others arise."""
    if isinstance(value, str | Patterns) or value is None or float in parameter.kinds:
        return value
    if bool in parameter.kinds:
        return value != 0  # as mergekit takes it
    return math.floor(value + 0.5)


def check_setting(
    parameter: Parameter, setting: Setting, path: KeyPath, findings: Findings, *, from_yaml: bool
) -> Setting:
    """Return a setting with each of its values checked and converted; what is wrong goes into `findings`.

    Returns:
        The same form; `MISSING` where nothing is right.
    """
    check = _Check(parameter, findings, from_yaml)
    checked = check.filtered(setting, path) if is_filtered(setting) else check.along(setting, path)
    return MISSING if check.failed else checked


class _Check:
    """Checks the values of one setting of one parameter."""

    def __init__(self, parameter: Parameter, findings: Findings, from_yaml: bool) -> None:
        self.parameter = parameter
        self.findings = findings
        self.from_yaml = from_yaml
        self.failed = False

    def filtered(self, setting: Setting, path: KeyPath) -> Setting:
        if isinstance(setting, Mapping):
            return [self._entry(setting, path)]
        entries = [self._entry(entry, (*path, index)) for index, entry in enumerate(setting)]
        for index, entry in enumerate(setting[:-1]):
            if entry.get("filter") in (None, "*"):
                self.findings.warn(
                    f"the entries of {self.parameter.name} after this one have no effect: it applies to every tensor",
                    (*path, index),
                )
                break
        return entries

    def along(self, setting: Setting, path: KeyPath) -> Setting:
        if not is_listed(setting) or Patterns in self.parameter.kinds:
            return self._value(setting, path)
        if not setting:
            return self._error(f"{self.parameter.name} is an empty list", path, _FORMS)
        if any(isinstance(value, Mapping) for value in setting):
            return self._error(
                f"{self.parameter.name} mixes filter entries and plain values", path, "- value: 0.5, for the rest"
            )
        return [self._value(value, (*path, index)) for index, value in enumerate(setting)]

    def _entry(self, entry: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        for key in entry:
            if key not in ("filter", "value"):
                self._error(
                    f"unknown key {key!r} in an entry of {self.parameter.name}",
                    (*path, key),
                    nearest(str(key), ("filter", "value")),
                )
        pattern = entry.get("filter")
        if pattern is not None and not isinstance(pattern, str):
            self._error(
                f"the filter is {pattern!r}", (*path, "filter"), f'a part of the tensor names: filter: "{pattern}"'
            )
        if "value" not in entry:
            self._error(f"an entry of {self.parameter.name} has no value", path, "{filter: mlp, value: 0.5}")
            return {}
        if is_filtered(entry["value"]):
            self._error("filter entries inside a filter entry", (*path, "value"), "a number or a gradient")
            return {}
        return {"filter": pattern, "value": self.along(entry["value"], (*path, "value"))}

    def _value(self, value: Any, path: KeyPath) -> Any:
        value = _plain(value, self.parameter, self.from_yaml)
        if value is None:
            return self._error(
                f"{self.parameter.name} has no value", path, f"{self.parameter.name}: {self.parameter.accepts}"
            )
        try:
            return self.parameter.check(value)
        except MethodError as error:
            return self._error(error.found, path, error.right)

    def _error(self, found: str, path: KeyPath, right: str) -> None:
        self.failed = True
        self.findings.error(found, path, right=right, kind=MethodError)


def _plain(value: Any, parameter: Parameter, from_yaml: bool) -> Any:
    """Return numbers of other libraries as Python's, and from YAML quoted numbers as numbers, as mergekit does."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool | int):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
        return float(value)
    if from_yaml and isinstance(value, str) and value not in parameter.choices and _NUMBER.fullmatch(value):
        return float(value)
    return value
