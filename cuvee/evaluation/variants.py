"""Variants, which `cuvee bench run` scores: a method with its settings, and the one coefficient that is tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.errors import MethodError, nearest
from cuvee.methods.registry import BaseUse, find_method, methods

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ALL",
    "GRIDS",
    "STUDIED",
    "Variant",
    "all_variants",
    "merged",
    "merged_adapters",
    "parse_variant",
    "parse_variants",
]

ALL = "all"
"""What stands for every method."""

GRIDS: Mapping[str, Sequence[float]] = {
    "scaling": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
    "t": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}
"""The coefficients that are tried, as many for every method: of the merged task vector, or of the way to another model."""

_WHERE_REQUIRED: Mapping[str, Any] = {"weight": 1.0, "t": 0.5}
"""What a parameter without a default is given: every model alike, halfway."""

STUDIED = (
    "ties:density=0.2",
    "ties:density=0.2,trim_scope=model",
    "dare_linear:density=0.5",
    "dare_linear:density=0.1",
    "dare_linear:density=0.01",
    "dare_ties:density=0.5",
    "della:density=0.5",
    "sce:select_topk=0.1",
)
"""Settings of studies, for methods whose defaults, mergekit's, keep every element."""


@dataclass(frozen=True)
class Variant:
    """A method with settings of its own.

    Attributes:
        method: its name.
        parameters: that differ from its defaults.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in tables, and what `parse_variant` reads."""
        settings = ",".join(f"{name}={_written(value)}" for name, value in self.parameters.items())
        return f"{self.method}:{settings}" if settings else self.method

    @property
    def coefficient(self) -> str | None:
        """The parameter that is tuned: `scaling`, else `t`; None where there is none, or its value is given."""
        known = find_method(self.method).parameters
        found = next((name for name in GRIDS if name in known), None)
        return None if found in self.parameters else found

    @property
    def default(self) -> float | None:
        """The coefficient where nothing is said."""
        if self.coefficient is None:
            return None
        parameter = find_method(self.method).parameters[self.coefficient]
        return float(_WHERE_REQUIRED[parameter.name] if parameter.required else parameter.default)

    def settings(self, coefficient: float | None) -> dict[str, Any]:
        """Return all parameters that a merge is given."""
        known = find_method(self.method).parameters
        needed = {name: value for name, value in _WHERE_REQUIRED.items() if name in known and known[name].required}
        chosen = {} if coefficient is None or self.coefficient is None else {self.coefficient: coefficient}
        return {**needed, **self.parameters, **chosen}


def parse_variant(text: str) -> Variant:
    """Read "ties" or "ties:density=0.2,trim_scope=model".

    Raises:
        MethodError: the method, a parameter or its value is unknown.
    """
    name, _, rest = text.partition(":")
    method = find_method(name.strip(), where=f"--methods {text}")
    parameters = {}
    for setting in filter(None, rest.split(",")):
        key, _, value = (part.strip() for part in setting.partition("="))
        if key not in method.parameters:
            right = nearest(key, method.parameters)
            raise MethodError(f"{method.name} has no parameter {key!r}", where=f"--methods {text}", right=right)
        is_word = value in method.parameters[key].choices  # "none" is one of some filters, and nothing elsewhere
        parameters[key] = method.parameters[key].check(value if is_word else _value(value))
    return Variant(method.name, parameters)


def all_variants() -> list[Variant]:
    """Return every registered method at its defaults, then those of `STUDIED`."""
    return [*map(Variant, methods()), *map(parse_variant, STUDIED)]


def parse_variants(texts: Sequence[str]) -> list[Variant]:
    """Read variants, each once; "all" stands for `all_variants`.

    Raises:
        MethodError: as for `parse_variant`.
    """
    found = [one for text in texts for one in (all_variants() if text == ALL else [parse_variant(text)])]
    return list({one.label: one for one in found}.values())


def merged(
    variant: Variant,
    coefficient: float | None,
    experts: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor],
    decompositions: Any,
) -> dict[str, Tensor]:
    """Merge experts in memory.

    A method of task vectors is given the base. For one between two models the first of them is an end; for a mean of
    models the base is none of them.

    Raises:
        CuveeError: the method refuses them.
    """
    import cuvee

    use = find_method(variant.method).base
    given = experts[0] if use is BaseUse.ENDPOINT else base if use in (BaseUse.REQUIRED, BaseUse.OPTIONAL) else None
    settings = variant.settings(coefficient)
    return cuvee.merge_tensors(variant.method, experts, given, decompositions=decompositions, **settings)


def merged_adapters(
    variant: Variant, coefficient: float | None, folders: Sequence[str], base: str
) -> dict[str, Tensor]:
    """Merge adapters as they are, and return the base with what comes out.

    Args:
        variant: of a method on adapters.
        coefficient: as of `merged`.
        folders: of the adapters; the config of the first says what the merged factors mean.
        base: reference of the model that they are for.

    Raises:
        CuveeError: the method refuses them.
    """
    import cuvee
    from cuvee.checkpoints.adapters import apply_adapter
    from cuvee.checkpoints.opening import open_adapter_alone, open_model
    from cuvee.checkpoints.sources import MemoryTensor, read_all

    with ExitStack() as opened:
        adapters = [opened.enter_context(closing(open_adapter_alone(one))) for one in folders]
        # opened ones bring their configs, which are held against each other
        factors = cuvee.merge_tensors(variant.method, adapters, **variant.settings(coefficient))  # type: ignore[arg-type]
        values = {name: MemoryTensor(factors[name], rank) for rank, name in enumerate(factors)}
        whole = opened.enter_context(closing(apply_adapter(open_model(base), Path(folders[0]), variant.label, values)))
        return {name: read_all(source).reshape(source.shape) for name, source in whole.tensors.items()}


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return float(text)
    except ValueError:
        return text


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
