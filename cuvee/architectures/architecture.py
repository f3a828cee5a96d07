"""The architecture of a model, read from the names and shapes of its tensors and from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.architectures.meaning import TensorMeaning
from cuvee.architectures.reading import Reading

__all__ = ["Architecture", "describe"]


@dataclass(frozen=True)
class Architecture:
    """What is known of a model. Nothing is guessed: what names, shapes and config leave open is None or `OTHER`.

    Attributes:
        family: a known family whose names this model has ("llama"), None for others, which work as well.
        stacks: {prefix of a layer list: number of layers}.
        main: prefix of the language model's stack, or of the largest; None without stacks.
        hidden_size: width of the residual stream of the language model, or of the largest stack.
        heads: query heads of that stack.
        kv_heads: its key-value heads.
        head_dim: size of a query head.
        tied: {alias: the tensor it is tied to}. The alias may be stored too, or left out.
    """

    family: str | None
    stacks: Mapping[str, int]
    main: str | None
    hidden_size: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    tied: Mapping[str, str]
    _reading: Reading = field(repr=False, compare=False)

    def meaning(self, name: str) -> TensorMeaning:
        """Say what a tensor is; a name that was not described is read by the same rules, as far as they go."""
        return self._reading.meaning(name)

    def n_layers(self, name: str) -> int:
        """Count the layers of the stack that a tensor belongs to, 0 outside the blocks."""
        return self.stacks.get(self.meaning(name).stack, 0)

    def config_path(self, stack: str) -> tuple[str, ...]:
        """Return the keys that lead to the part of config.json which speaks of a stack."""
        return self._reading.config_path(stack)

    def position(self, name: str) -> float | None:
        """Place a tensor in the depth of its stack: j / (L - 1) for layer j of L, 1 where L = 1, None outside."""
        meaning = self.meaning(name)
        if meaning.layer is None:
            return None
        layers = self.stacks[meaning.stack]
        return meaning.layer / (layers - 1) if layers > 1 else 1.0


def describe(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None = None) -> Architecture:
    """Describe a model from names, shapes and config.json.

    Never raises for what it does not know: any mapping of names to shapes has an architecture.

    Args:
        shapes: {tensor name: shape}; all tensors of the model, or some.
        config: parsed config.json, where there is one.
    """
    reading = Reading(shapes, config)
    return Architecture(
        family=reading.family,
        stacks={stack.prefix: stack.length for stack in reading.stacks.values()},
        main=reading.main,
        hidden_size=reading.hidden_size,
        heads=reading.heads,
        kv_heads=reading.kv_heads,
        head_dim=reading.head_dim,
        tied=reading.tied,
        _reading=reading,
    )
