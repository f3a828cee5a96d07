"""A device that stands in for a GPU: its tensors lie in the CPU's memory, and refuse to be mixed with the CPU's own.

What fails on a GPU is mostly that: a tensor made without `device=`, an array taken where none can be. With it a method is
held to what a GPU asks for on a machine that has none. It says nothing of the arithmetic, or of the speed, of a real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["DEVICE", "stand_in_device"]

DEVICE = "privateuseone"
"""Its name: the one that torch keeps for devices from outside."""

_ACROSS = {"aten::copy_", "aten::_to_copy"}
_PLACES_ON_THE_CPU = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


@contextmanager
def stand_in_device() -> Iterator[str]:
    """Let this thread make tensors on the device inside, and yield its name."""
    _register()
    with _Making(), _MakingOfValues():  # type: ignore[no-untyped-call]
        yield DEVICE


@cache
def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend()


class _There(torch.Tensor):
    """A tensor on the device.

    Attributes:
        here: its values, on the CPU.
    """

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> _There:
        like: Any = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made: _There = torch.Tensor._make_wrapper_subclass(cls, here.size(), device=torch.device(DEVICE, 0), **like)
        made.here = here
        return made

    def data_ptr(self) -> int:
        """Where the values lie: pieces ask whether two tensors are one."""
        return self.here.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _apply(op, args, kwargs or {})


class _Making(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees also what is given no tensor that could say where the result belongs."""

    def __torch_dispatch__(self, op: Any, _: Any, args: Any = (), named: Any = None) -> Any:
        return _apply(op, args, named or {})


class _MakingOfValues(TorchFunctionMode):
    """Sees tensors made of numbers, of which no dispatch tells."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), named: Any = None) -> Any:
        named = dict(named or {})
        if function is torch.Tensor.new_tensor:
            like, *args = args
            function, named = torch.tensor, {"dtype": like.dtype, "device": like.device, **named}
        if function not in (torch.tensor, torch.as_tensor) or named.get("device") is None:
            return function(*args, **named)
        device = named.pop("device")
        return function(*args, **named).to(device)


def _apply(op: Any, args: Any, named: Mapping[str, Any]) -> Any:
    """Run an operation on the values, and put the results where a GPU's would lie.

    Raises:
        RuntimeError: tensors of both kinds are mixed.
    """
    tensors = [one for one in tree_leaves((args, named)) if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, _There)]
    _check_not_mixed(op._schema.name, tensors, args)
    asked = named.get("device")
    is_there = bool(there) if asked is None else torch.device(asked).type == DEVICE
    if asked is not None:
        named = {**named, "device": torch.device("cpu")}
    wrapped = {id(one.here): one for one in there} | {id(one): one for one in tensors}  # in place stays in place
    args, named = tree_map_only(_There, lambda one: one.here, (args, named))
    found = op(*args, **named)
    if not is_there:
        return found
    return tree_map_only(torch.Tensor, lambda one: wrapped[id(one)] if id(one) in wrapped else _There(one), found)


def _check_not_mixed(op: str, tensors: list[torch.Tensor], args: Any) -> None:
    if op in _ACROSS:
        return
    if op in _PLACES_ON_THE_CPU:
        tensors = [args[0], *tree_leaves(args[2:])]
    kinds = {isinstance(one, _There) for one in tensors if isinstance(one, _There) or one.ndim}
    if len(kinds) > 1:
        shapes = ", ".join(f"{tuple(one.shape)} on {one.device.type}" for one in tensors)
        raise RuntimeError(f"{op} is given tensors on two devices: {shapes}")
