"""A candidate: a module that holds the tensors it is given, without a copy and without a disk.

Several may be alive at once, in several threads; what a module computes for itself (tables of positions) is made once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from cuvee.errors import IncompatibleModels

__all__ = ["Shapes", "holding", "need_shapes", "shapes_of", "skeleton"]

Module = TypeVar("Module", bound=nn.Module)
Shapes = Mapping[str, Sequence[int]]
"""Of a model's tensors, by name."""


def skeleton(module: Module) -> Module:
    """Take a module's weights and saved buffers away from it, in place, and return it."""
    saved = module.state_dict(keep_vars=True)
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in saved.items()}
    module.load_state_dict(empty, assign=True)
    return module.eval().requires_grad_(False)


def holding(bones: Module, tensors: Mapping[str, Tensor], device: str = "cpu") -> Module:
    """Return a module like `bones`, a skeleton, that computes with these tensors, in float32, on a device.

    Raises:
        IncompatibleModels: they are not those of such a module.
    """
    need_shapes(shapes_of(bones), {name: tensor.shape for name, tensor in tensors.items()})
    module = copy.deepcopy(bones)
    held = {n: one.float() if one.is_floating_point() else one for n, one in tensors.items()}
    module.load_state_dict(held, assign=True)
    return module.to(device).eval().requires_grad_(False)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a module saves."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def need_shapes(wanted: Shapes, found: Shapes) -> None:
    """Return if tensors have the names and shapes of a suite's models.

    Raises:
        IncompatibleModels: they have not.
    """
    strange = sorted(wanted.keys() ^ found.keys())
    if strange:
        what = "lacks" if strange[0] in wanted else "has a strange"
        raise IncompatibleModels(f"the model {what} tensor {strange[0]!r}", right="a model of the suite's shape")
    for name, shape in found.items():
        if tuple(shape) != tuple(wanted[name]):
            raise IncompatibleModels(
                f"tensor {name!r} is {tuple(shape)} and in the suite {tuple(wanted[name])}",
                right="a model of the suite's shape",
            )
