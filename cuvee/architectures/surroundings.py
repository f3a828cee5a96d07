"""Facts about a model that the meaning of one tensor can hang on: its neighbours, experts and mixers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from cuvee.architectures.names import Name, module_of, number, tokens
from cuvee.architectures.vocabulary import MIXER_MARKS, TOKEN_EMBEDDINGS

__all__ = ["Expert", "Surroundings", "expert_of", "is_expert_word"]

Shapes = Mapping[str, tuple[int, ...]]


class Surroundings:
    """Facts about a model that the meaning of one tensor can hang on, gathered once.

    Attributes:
        shapes: the model's tensors.
        vocabulary_sizes: rows that a language-model head can have.
        routed: modules that hold experts.
        mixers: modules that hold a parameter which only a mixer has.
        sequences: {module: numbers of the matrices directly in it}, as in nn.Sequential.
    """

    def __init__(self, shapes: Shapes, names: Mapping[str, Name], vocabulary_sizes: Iterable[int] = ()) -> None:
        self.shapes = shapes
        self.vocabulary_sizes = set(vocabulary_sizes)
        self.routed: set[str] = set()
        self.mixers: set[str] = set()
        self.sequences: dict[str, set[int]] = {}
        for name, (parts, _) in names.items():
            self._gather(parts, shapes[name])

    def has(self, module: tuple[str, ...], *siblings: str) -> bool:
        """True where one of the siblings of this module exists, with a weight or as a parameter."""
        parent = ".".join(module[:-1])
        parent = f"{parent}." if parent else ""
        return any(f"{parent}{s}.weight" in self.shapes or f"{parent}{s}" in self.shapes for s in siblings)

    def sibling(self, module: tuple[str, ...], word: str) -> tuple[int, ...] | None:
        """Return the shape of a sibling's weight."""
        name = ".".join((*module[:-1], word))
        return self.shapes.get(f"{name}.weight") or self.shapes.get(name)

    def weight_of(self, module: tuple[str, ...]) -> tuple[int, ...] | None:
        """Return the shape of the module's weight."""
        return self.shapes.get(".".join((*module, "weight")))

    def _gather(self, parts: tuple[str, ...], shape: tuple[int, ...]) -> None:
        for i, part in enumerate(parts):
            mark = _mark(part)
            if mark is _Mark.MIXER:
                self.mixers.add(".".join(parts[:i]))
            elif mark is _Mark.EXPERTS:
                self.routed.add(".".join(parts[:i]))
        if len(shape) == 2 and len(parts) > 1 and parts[-2].lower() in TOKEN_EMBEDDINGS:
            self.vocabulary_sizes.add(shape[0])
        if len(shape) >= 2:
            self._gather_sequence(module_of(parts))

    def _gather_sequence(self, module: tuple[str, ...]) -> None:
        for place in (len(module) - 1, len(module) - 2):
            index = number(module[place]) if place > 0 else None
            if index is not None:
                self.sequences.setdefault(".".join(module[:place]), set()).add(index)
                return


class _Mark(Enum):
    """What a component gives away about its parent."""

    MIXER = 1
    EXPERTS = 2


@lru_cache(maxsize=4096)
def _mark(component: str) -> _Mark | None:
    if component.lower() in MIXER_MARKS:
        return _Mark.MIXER
    return _Mark.EXPERTS if is_expert_word(component) else None


def is_expert_word(component: str) -> bool:
    """True for "experts", "expert_3", "expert_w1", "local_experts"; not for experts that all tokens share."""
    if "expert" not in component.lower():
        return False
    words = tokens(component)
    return not {"experts", "expert"}.isdisjoint(words) and "shared" not in words and words[-1] not in ("gate", "bias")


class Expert(NamedTuple):
    """An expert's number, and the component that holds it."""

    number: int
    place: int


def expert_of(parts: tuple[str, ...]) -> Expert | None:
    """Find the expert's index: the first number in, or after, a word about experts."""
    first = next((i for i, part in enumerate(parts) if _mark(part) is _Mark.EXPERTS), None)
    for place in range(first, len(parts)) if first is not None else ():
        part = parts[place]
        index = number(part)
        if index is None and (place == first or "expert" in part.lower()):
            index = number(tokens(part)[-1])
        if index is not None:
            return Expert(index, place)
    return None
