"""From tensor names, shapes and config.json to meaning: layer index, role, heads, tied weights."""

from cuvee.architectures.architecture import Architecture, describe
from cuvee.architectures.meaning import Fused, Part, Role, TensorMeaning

__all__ = ["Architecture", "Fused", "Part", "Role", "TensorMeaning", "describe"]
