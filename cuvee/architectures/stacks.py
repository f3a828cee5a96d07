"""What is known of each stack: its part of the config, its family, how its matrices are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cuvee.architectures.configs import Settings, matching
from cuvee.architectures.hints import FAMILIES, Family
from cuvee.architectures.layers import Place, Stack
from cuvee.architectures.names import Name, module_of

__all__ = ["StackFacts", "family_name", "gather_facts", "main_stack"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class StackFacts:
    """What is known of one stack.

    Attributes:
        widths: sizes that occur in its tensors.
        modules: names of its modules, within the layer.
        elements: of all its tensors.
        transposed_votes: matrices whose bias is as long as their columns.
        plain_votes: matrices whose bias is as long as their rows.
        settings: the part of the config that speaks of it.
        family: the family whose names it has.
        kinds: model types and family, the most telling first.
    """

    widths: set[int] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    elements: int = 0
    transposed_votes: int = 0
    plain_votes: int = 0
    settings: Settings | None = None
    family: Family | None = None
    kinds: tuple[str, ...] = ()

    @property
    def transposed(self) -> bool:
        """True where matrices are stored (in, out): the biases say so, or without biases the family."""
        if self.transposed_votes or self.plain_votes:
            return self.transposed_votes > 0 and not self.plain_votes
        return self.family is not None and self.family.transposed


def gather_facts(
    shapes: Shapes,
    names: Mapping[str, Name],
    places: Mapping[str, Place],
    stacks: Mapping[str, Stack],
    settings: tuple[Settings, ...],
) -> dict[str, StackFacts]:
    """Go once through the tensors in layers, then find each stack's settings and family."""
    facts = {prefix: StackFacts() for prefix in stacks}
    for name, place in places.items():
        shape = shapes[name]
        stack = facts[place.stack]
        stack.modules.add(".".join(module_of(names[name].parts[place.rest :])))
        stack.widths.update(shape)
        stack.elements += math.prod(shape)
        if len(shape) == 2 and shape[0] != shape[1] and name.endswith(".weight"):
            bias = shapes.get(f"{name.removesuffix('weight')}bias")
            stack.transposed_votes += bias == shape[1:]
            stack.plain_votes += bias == shape[:1]
    root = settings[0].model_type if settings else None
    for prefix, stack in facts.items():
        stack.settings = matching(settings, prefix, stacks[prefix].length, frozenset(stack.widths))
        types = (stack.settings.model_type if stack.settings else None, root)
        model_types = tuple(dict.fromkeys(kind for kind in types if kind))
        stack.family = _family(model_types, stack.modules)
        stack.kinds = (*model_types, *((stack.family.name,) if stack.family else ()))
    return facts


def main_stack(facts: Mapping[str, StackFacts]) -> str | None:
    """Choose the stack that a model's sizes are those of: the language model's, else the largest."""

    def rank(prefix: str) -> tuple[bool, int]:
        settings = facts[prefix].settings
        path = settings.path if settings else "?"
        is_language = path in ("", "encoder", "decoder") or any(kind in path for kind in ("text", "language", "llm"))
        return is_language, facts[prefix].elements

    return max(facts, key=rank) if facts else None


def family_name(model_type: str | None, main: str | None, facts: Mapping[str, StackFacts]) -> str | None:
    """Name the family that the whole config speaks of; without one, that of the main stack."""
    families = {stack.family for stack in facts.values() if stack.family is not None}
    if model_type is not None:
        return next((family.name for family in families if model_type in family.model_types), None)
    family = facts[main].family if main is not None else None
    return family.name if family else None


def _family(model_types: tuple[str, ...], modules: set[str]) -> Family | None:
    """Find the family that the config names, or without a model type the names alone, and check the names."""
    for family in FAMILIES:
        is_named = not family.model_types.isdisjoint(model_types) if model_types else family.alone
        if is_named and family.lacks.isdisjoint(modules) and any(o <= modules for o in family.modules):
            return family
    return None
