"""What a method's parameters accept, read from its signature: `density: PerModel[Fraction] = 1.0`."""

from __future__ import annotations

import fnmatch
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from cuvee.errors import MethodError, nearest

__all__ = ["Bound", "Fraction", "Parameter", "Patterns", "PerModel", "parameters_of"]

T = TypeVar("T")


_LARGEST = 1 << 53
"""Whole numbers of this size are told from their neighbours by no float, and meant by nobody."""


@dataclass(frozen=True)
class Bound:
    """The allowed range of a number, ends included unless `open_low` / `open_high`, or infinite: nothing takes infinity."""

    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low, high = self.open_low or self.low == -math.inf, self.open_high or self.high == math.inf
        return f"{'(' if low else '['}{self.low:g}, {self.high:g}{')' if high else ']'}"


class _PerModelMark:
    """Marks a parameter that has one value for each model."""


PerModel = Annotated[T | Sequence[T], _PerModelMark()]
Fraction = Annotated[float, Bound(0.0, 1.0)]


@dataclass(frozen=True)
class Patterns:
    """Names of tensors, by glob patterns."""

    patterns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.patterns) or "none"

    def __contains__(self, name: str) -> bool:
        return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)


@dataclass(frozen=True)
class Parameter:
    """One parameter, as its signature says.

    Attributes:
        name: as written in recipes.
        per_model: True when each model has its own value.
        kinds: the accepted types, out of float, int, bool, Patterns.
        choices: the accepted words, for a `Literal`.
        bound: the accepted range, for numbers.
        default: `inspect.Parameter.empty` when it must be given.
    """

    name: str
    per_model: bool
    kinds: tuple[type, ...]
    choices: tuple[Any, ...]
    bound: Bound
    default: Any

    @property
    def required(self) -> bool:
        """True when a recipe must give it."""
        return self.default is inspect.Parameter.empty

    @property
    def accepts(self) -> str:
        """What it accepts, in words."""
        words = [repr(choice) if isinstance(choice, str) else str(choice) for choice in self.choices]
        if Patterns in self.kinds:
            words.append('a list of patterns, such as ["*embed*"]')
        if bool in self.kinds:
            words.append("true or false")
        if float in self.kinds or int in self.kinds:
            kind = "a number" if float in self.kinds else "a whole number"
            words.append(kind if self.bound == Bound() else f"{kind} in {self.bound}")
        return " or ".join(words)

    def check(self, value: Any) -> Any:
        """Return one plain value, converted (1 and 0 count as booleans, whole numbers as floats).

        Raises:
            MethodError: it is of another type or out of range, or not finite.
        """
        if Patterns in self.kinds and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
            return Patterns(tuple(value))
        if isinstance(value, bool):
            if bool in self.kinds or value in self.choices:
                return value
            value = float(value)
        if isinstance(value, str):
            if value in self.choices:
                return value
        elif isinstance(value, int | float) and abs(value) <= sys.float_info.max:
            if bool in self.kinds and value in (0, 1):
                return bool(value)
            if value in self.bound:
                if float in self.kinds:
                    return float(value)
                if int in self.kinds and value == int(value) and abs(value) < _LARGEST:
                    return int(value)
        right = self.accepts
        if float in self.kinds and isinstance(value, int | float) and not abs(value) < math.inf:
            right = f"{right}, and finite"
        elif int in self.kinds and isinstance(value, int | float) and abs(value) >= _LARGEST and value in self.bound:
            right = f"{right}, and less than 2^53"
        if isinstance(value, str) and self.choices:
            meant = nearest(value, (choice for choice in self.choices if isinstance(choice, str)))
            right = f"{right}; {meant}" if meant.startswith("did you mean") else right
        raise MethodError(f"{self.name} is {value!r}", right=f"{self.name}: {right}")


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a method or an edit by name: its keyword-only arguments but the base."""
    keyword_only = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: _parameter(p, function.__globals__) for p in keyword_only if p.name != "base"}


def _parameter(parameter: inspect.Parameter, names: dict[str, Any]) -> Parameter:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = eval(annotation, names)  # our own source text, kept as text by `from __future__`
    per_model, bound = False, Bound()
    kinds: list[type] = []
    choices: list[Any] = []

    def walk(hint: Any) -> None:
        nonlocal per_model, bound
        origin = typing.get_origin(hint)
        if origin is Annotated:
            inner, *marks = typing.get_args(hint)
            per_model |= any(isinstance(mark, _PerModelMark) for mark in marks)
            bound = next((mark for mark in marks if isinstance(mark, Bound)), bound)
            walk(inner)
        elif origin is Literal:
            choices.extend(typing.get_args(hint))
        elif origin in (typing.Union, types.UnionType):
            for part in typing.get_args(hint):
                walk(part)
        elif hint in (float, int, bool, Patterns):
            kinds.append(hint)
        elif hint is type(None):
            pass

    walk(annotation)
    return Parameter(parameter.name, per_model, tuple(kinds), tuple(choices), bound, parameter.default)
