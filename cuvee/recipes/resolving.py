"""From settings to a method's arguments: the value of every parameter for one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.errors import MethodError, nearest
from cuvee.methods.registry import Method, Parameter, methods
from cuvee.recipes.findings import Findings, KeyPath
from cuvee.recipes.parts import Expert, Level, label
from cuvee.recipes.recipe import Recipe
from cuvee.recipes.settings import MISSING, Setting, check_setting, evaluate, is_filtered, is_listed, settle

__all__ = ["Resolver", "read_settings"]

_ACCEPTED = "int8_mask"  # of mergekit: how its sign mask is stored; the result is the same


@dataclass(frozen=True, eq=False)
class Resolver:
    """Gives a method's arguments, tensor by tensor. All values were checked when it was made.

    Attributes:
        method: whose arguments.
        labels: how messages call the models.
        places: where the models are written.
        chains: parameter -> for each model (one row for a parameter of all) the settings that hold, nearest first.
        required: the parameters that have no default here.
    """

    method: Method
    labels: tuple[str, ...]
    places: tuple[str, ...]
    chains: Mapping[str, tuple[tuple[Setting, ...], ...]]
    required: frozenset[str]

    def for_tensor(self, name: str, position: float | None, *, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the keyword arguments for one tensor: a list of K values for a per-model parameter, else one value.

        Args:
            name: of the tensor in the output; filters of a parameter of all models look at it.
            position: of its layer, from 0 (first) to 1 (last); None outside the layers.
            names: of the tensor in each of the K models, where they differ; filters of a per-model parameter look there.

        Raises:
            MethodError: a required parameter says nothing of this tensor.
        """
        if names is not None and len(names) != len(self.labels):
            raise ValueError(f"{len(names)} models, and the recipe has {len(self.labels)}")
        arguments: dict[str, Any] = {}
        for parameter in self.method.parameters.values():
            rows = self.chains[parameter.name]
            seen = names if names and parameter.per_model else (name,) * len(rows)
            values = [self._value(parameter, row, k, seen[k], position) for k, row in enumerate(rows)]
            arguments[parameter.name] = values if parameter.per_model else values[0]
        return arguments

    def constant(self, name: str) -> Any:
        """Return the value or K values of a parameter that every tensor has, `MISSING` where tensors may differ."""
        parameter = self.method.parameters[name]
        values = [self._constant(parameter, row) for row in self.chains[name]]
        if any(value is MISSING for value in values):
            return MISSING
        return values if parameter.per_model else values[0]

    def _constant(self, parameter: Parameter, row: Sequence[Setting]) -> Any:
        if not row:
            return MISSING if parameter.name in self.required else parameter.default
        return MISSING if is_listed(row[0]) else row[0]

    def _value(self, parameter: Parameter, row: Sequence[Setting], k: int, name: str, position: float | None) -> Any:
        for setting in row:
            value = evaluate(setting, name, position)
            if value is not MISSING:
                return settle(parameter, value)
        if parameter.name not in self.required:
            return parameter.default
        of = f" of {self.labels[k]}" if parameter.per_model else ""
        raise MethodError(
            f"no entry of {parameter.name}{of} is about tensor {name!r}, and {self.method.name} needs one",
            where=self.places[k] if parameter.per_model else "",
            right="an entry for the rest: - value: 1",
        )


def read_settings(
    recipe: Recipe,
    method: Method,
    experts: Sequence[Expert],
    levels: Sequence[Level],
    findings: Findings,
    *,
    insist: bool = True,
) -> Resolver:
    """Return the resolver; what is wrong with names and values of parameters goes into `findings`.

    Args:
        experts: the models that the method is given.
        levels: the settings for all of them, nearest first.
        insist: also note the required parameters that are missing.
    """
    reader = _Reader(recipe, method, findings)
    shared = [reader.shared(level, len(experts)) for level in levels]
    own = [reader.own(expert) for expert in experts]
    chains: dict[str, tuple[tuple[Setting, ...], ...]] = {}
    for name, parameter in method.parameters.items():
        above = [level[name] for level in shared if name in level]
        rows = [tuple(s for level in above for s in level[k]) for k in range(max(1, len(experts)))]
        if parameter.per_model:
            chains[name] = tuple((*mine.get(name, ()), *rows[k]) for k, mine in enumerate(own))
        else:
            chains[name] = (rows[0],)
    labels = tuple(label(expert.entry.model, k) for k, expert in enumerate(experts))
    places = tuple(recipe.place(*expert.path) for expert in experts)
    resolver = Resolver(method, labels, places, chains, reader.required())
    if insist:
        reader.report_missing(resolver)
    return resolver


class _Reader:
    """Reads the settings of one recipe for one method."""

    def __init__(self, recipe: Recipe, method: Method, findings: Findings) -> None:
        self.recipe = recipe
        self.method = method
        self.findings = findings

    def required(self) -> frozenset[str]:
        """Return the parameters without a default; mergekit insists on the weights of all methods that have them."""
        parameters = self.method.parameters.values()
        strict = {"weight"} if self.recipe.compat == "mergekit" else set()
        return frozenset(p.name for p in parameters if p.required or (p.per_model and p.name in strict))

    def shared(self, level: Level, count: int) -> dict[str, tuple[tuple[Setting, ...], ...]]:
        """Return for each parameter what the settings for all models say to each of them."""
        settings, path = level
        rows = {}
        for name, setting in settings.items():
            if name in self.method.parameters:
                if setting is not None or self.recipe.from_yaml:
                    rows[name] = self._shared(name, setting, (*path, name), count)
            elif name != _ACCEPTED:
                self._unknown(name, (*path, name), list(self.method.parameters))
        return rows

    def _shared(self, name: str, setting: Setting, path: KeyPath, count: int) -> tuple[tuple[Setting, ...], ...]:
        parameter = self.method.parameters[name]
        if parameter.per_model and not self.recipe.from_yaml and is_listed(setting) and not is_filtered(setting):
            if len(setting) != count:
                self.findings.error(
                    f"{name} has {len(setting)} values for {count} models",
                    path,
                    right="one value, or one for each model; a gradient stands in a model's own parameters",
                    kind=MethodError,
                )
                return ((),) * max(1, count)
            return tuple(self._row(parameter, one, (*path, k)) for k, one in enumerate(setting)) or ((),)
        return (self._row(parameter, setting, path),) * max(1, count)

    def own(self, expert: Expert) -> dict[str, tuple[Setting, ...]]:
        """Return what a model's own parameters say."""
        rows: dict[str, tuple[Setting, ...]] = {}
        per_model = [name for name, parameter in self.method.parameters.items() if parameter.per_model]
        for name, setting in expert.entry.parameters.items():
            path = (*expert.path, "parameters", name)
            if name in per_model:
                if setting is not None or self.recipe.from_yaml:
                    rows[name] = self._row(self.method.parameters[name], setting, path)
            elif name in self.method.parameters:
                self.findings.warn(f"{name} has no effect here: it is one value for all models, under parameters", path)
            elif name != _ACCEPTED:
                self._unknown(name, path, per_model)
        return rows

    def report_missing(self, resolver: Resolver) -> None:
        """Note the required parameters about which the recipe says nothing."""
        for name in sorted(resolver.required):
            parameter = self.method.parameters[name]
            for k, row in enumerate(resolver.chains[name]):
                if row:
                    continue
                if not parameter.per_model:
                    self._missing(name, f"{self.method.name} needs {name}", ("parameters",), parameter)
                elif k < len(resolver.labels):
                    found = f"{self.method.name} needs {name} for each model, and {resolver.labels[k]} has none"
                    self._missing(name, found, (), parameter, resolver.places[k])

    def _missing(self, name: str, found: str, path: KeyPath, parameter: Parameter, where: str = "") -> None:
        if self.method.parameters[name].required:
            right = f"parameters: {{{name}: …}}, {parameter.accepts}"
        else:
            right = f"parameters: {{{name}: 1}}, or no compat: mergekit, with which mergekit's requirements hold"
        self.findings.error(found, path, right=right, kind=MethodError, where=where)

    def _row(self, parameter: Parameter, setting: Setting, path: KeyPath) -> tuple[Setting, ...]:
        # A setting that failed stands as MISSING in its row: it was given, and is not said to be missing too.
        return (check_setting(parameter, setting, path, self.findings, from_yaml=self.recipe.from_yaml),)

    def _unknown(self, name: str, path: KeyPath, known: list[str]) -> None:
        if self.recipe.compat == "mergekit":
            self.findings.warn(f"{self.method.name} has no parameter {name!r}: it has no effect, as in mergekit", path)
            return
        right = nearest(str(name), known)
        if name == "lambda":
            right = "scaling" if "scaling" in known else right
        elif right.startswith("one of: ") or name == "scaling":
            others = [other.name for other in methods().values() if name in other.parameters]
            right = f"leave it out; {_listed(others)} {'has' if len(others) == 1 else 'have'} it" if others else right
        spoken = "scaling (lambda)" if name == "scaling" else name
        self.findings.error(f"{self.method.name} has no parameter {spoken!r}", path, right=right, kind=MethodError)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
