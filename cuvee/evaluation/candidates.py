"""A candidate: a module that holds the tensors it is given, without a copy and without a disk.

Several may be alive at once, in several threads; what a module computes for itself (tables of positions) is made once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from cuvee.errors import IncompatibleModels

__all__ = ["holding", "skeleton"]

Module = TypeVar("Module", bound=nn.Module)


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
    wanted = bones.state_dict()
    strange = sorted(wanted.keys() ^ tensors.keys())
    if strange:
        what = "lacks" if strange[0] in wanted else "has a strange"
        raise IncompatibleModels(f"the model {what} tensor {strange[0]!r}", right="a model of the suite's shape")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise IncompatibleModels(
                f"tensor {name!r} is {tuple(tensor.shape)} and in the suite {tuple(wanted[name].shape)}",
                right="a model of the suite's shape",
            )
    module = copy.deepcopy(bones)
    held = {n: one.float() if one.is_floating_point() else one for n, one in tensors.items()}
    module.load_state_dict(held, assign=True)
    return module.to(device).eval().requires_grad_(False)
