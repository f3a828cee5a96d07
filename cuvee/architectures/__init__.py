"""From tensor names, shapes and config.json to meaning: layer index, role, heads, tied weights."""

from cuvee.architectures.architecture import Architecture, describe
from cuvee.architectures.meaning import Fused, Part, Role, TensorMeaning
from cuvee.architectures.modules import known_modules, split_by_module
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
    "known_modules",
    "moves_with_its_layer",
    "relayered_config",
    "renumbered",
    "split_by_module",
]
