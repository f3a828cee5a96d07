"""From tensor names, shapes and config.json to meaning: layer index, role, heads, tied weights."""

from cuvee.architectures.architecture import Architecture, describe
from cuvee.architectures.meaning import Fused, Part, Role, TensorMeaning
from cuvee.architectures.relayering import (
    cut_stacks,
    is_after_layers,
    moves_with_its_layer,
    relayered_config,
    renumbered,
)

__all__ = [
    "Architecture",
    "Fused",
    "Part",
    "Role",
    "TensorMeaning",
    "cut_stacks",
    "describe",
    "is_after_layers",
    "moves_with_its_layer",
    "relayered_config",
    "renumbered",
]
