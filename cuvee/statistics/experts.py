"""Experts that a network holds in one parameter, and routers: no linear map is given what goes in, so products are watched."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.architectures import Role, describe
from cuvee.checkpoints.sources import Model
from cuvee.errors import IncompatibleModels, ResourceError
from cuvee.methods.needs import module_of
from cuvee.statistics.networks import linear_maps
from cuvee.statistics.passes import hooked
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Maps", "Stack", "as_stored", "maps_of", "stacks_of", "watched"]

_PARTS = {Role.MLP_GATE_UP: (Role.MLP_GATE, Role.MLP_UP)}
_PRODUCTS = ("linear", "matmul", "__matmul__", "bmm")


@dataclass(frozen=True)
class Stack:
    """The matrices of the experts of a layer, stacked in one parameter of a network; or a router, a stack of one.

    Attributes:
        name: of the parameter.
        weight: it, (E, outputs, inputs) or (E, inputs, outputs).
        stored: of each expert, its tensors in the checkpoint, each with the outputs of the matrix that are its own.
        stored_as: or the tensor of the checkpoint in which they are stacked too.
    """

    name: str
    weight: Tensor
    stored: Sequence[Mapping[str, slice]] = ()
    stored_as: str = ""

    def expert(self, number: int) -> str:
        """Return what one of its matrices is called."""
        return f"{self.name}[{number}]"


@dataclass(frozen=True)
class Maps:
    """The linear maps of a network: its modules by name, and those that experts hold in one parameter."""

    modules: Mapping[str, nn.Module]
    stacks: Sequence[Stack] = ()


def stacks_of(model: Model, network: nn.Module, wanted: Callable[[str], bool]) -> list[Stack]:
    """Return what experts hold in one parameter of a network, and routers, where the model has these, and some is wanted.

    Args:
        wanted: whether one is, by the name of its tensor in the model.
    """
    shapes = {name: tuple(source.shape) for name, source in model.tensors.items()}
    architecture = describe(shapes, model.config)
    stored: dict[Any, str] = {}
    for name, shape in shapes.items():
        means = architecture.meaning(name)
        if len(shape) == (3 if means.packed_experts else 2):
            stored.setdefault((means.stack, means.layer, means.role, means.expert, means.packed_experts), name)
            stored.setdefault((means.stack, means.layer, means.role, shape), name)
    modules = {f"{name}.weight" for name, one in network.named_modules() if isinstance(one, torch.nn.Linear)}
    parameters = {name: weight for name, weight in network.named_parameters() if name not in modules}
    held = describe({name: tuple(weight.shape) for name, weight in parameters.items()}, model.config)
    found = []
    for name, weight in parameters.items():
        means = held.meaning(name)
        place = (means.stack, means.layer)
        alike = stored.get((*place, means.role, tuple(weight.shape)))
        if means.role is Role.ROUTER and weight.dim() == 2 and alike and wanted(alike):
            found.append(Stack(name, weight[None], [{alike: slice(0, len(weight))}]))
        if not means.packed_experts or weight.dim() != 3:
            continue
        if alike:
            found += [Stack(name, weight, stored_as=alike)] if wanted(alike) else []
            continue
        roles = _PARTS.get(means.role, (means.role,))
        apart = [[stored.get((*place, role, e, None)) for role in roles] for e in range(means.packed_experts)]
        matrices = [_outputs_of([one for one in names if one], shapes, wanted) for names in apart]
        if all(all(names) for names in apart) and any(matrices):
            found.append(Stack(name, weight, matrices))
    return found


def maps_of(model: Model, network: nn.Module, only: Sequence[str]) -> Maps:
    """Return the linear maps that the model has the weight of, and whose names in the model match a pattern.

    Raises:
        IncompatibleModels: there is none.
        ResourceError: transformers is too old to compute experts one by one.
    """

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatchcase(module_of(name), pattern) for pattern in only)

    modules, stacks = linear_maps(model, network, only), stacks_of(model, network, wanted)
    if not modules and not stacks:
        right = (
            'a model of torch.nn.Linear or Conv1D under the names of its weights; or another pattern, such as "*.mlp.*"'
        )
        raise IncompatibleModels("the network has no such linear maps", where=model.label, right=right)
    if stacks:
        one_by_one: Any = getattr(network, "set_experts_implementation", None)
        if one_by_one is None:
            raise ResourceError(
                "experts in one tensor need a newer transformers", right="pip install 'transformers>=5'"
            )
        if getattr(network.config, "_experts_implementation", None) not in (None, "eager"):
            one_by_one("eager")
    return Maps(modules, stacks)


def _outputs_of(
    weights: Sequence[str], shapes: Mapping[str, Sequence[int]], wanted: Callable[[str], bool]
) -> dict[str, slice]:
    """Return the outputs that matrices have where they lie above one another, by the names of those that are wanted."""
    found, begin = {}, 0
    for weight in weights:
        end = begin + shapes[weight][0]
        if wanted(weight):
            found[weight] = slice(begin, end)
        begin = end
    return found


@contextlib.contextmanager
def watched(
    maps: Maps,
    *,
    before: Callable[[str, Tensor], None],
    after: Callable[[str, Tensor], None] | None = None,
) -> Iterator[None]:
    """Tell what goes into linear maps, and what comes out, while this lasts; of an expert in a stack under `Stack.expert`."""
    products: Any = _watching(maps.stacks, before, after) if maps.stacks else contextlib.nullcontext()
    with hooked(maps.modules, before=before, after=after), products:
        yield


def _watching(
    stacks: Sequence[Stack], before: Callable[[str, Tensor], None], after: Callable[[str, Tensor], None] | None
) -> Any:
    """Return what watches the products of anything with a matrix of a stack: it lies where it does in the parameter."""
    from torch.overrides import TorchFunctionMode

    places = {one.weight[e].data_ptr(): (one, e) for one in stacks for e in range(len(one.weight))}

    class Watching(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if getattr(function, "__name__", "") not in _PRODUCTS or len(args) < 2:
                return out
            given, weight = args[:2]
            stack, number = places.get(weight.data_ptr(), (None, 0))
            if stack is None or weight.shape[-2:] != stack.weight.shape[1:]:
                return out
            if weight.dim() == 2:
                before(stack.expert(number), given.detach())  # a tensor of its own: none that another may be given too
                if after:
                    after(stack.expert(number), out)
            elif len(weight) == len(stack.weight) and not after:  # all at once, on zeros where a token goes elsewhere
                for e, rows in enumerate(given):
                    before(stack.expert(e), rows[rows.any(-1)])
            return out

    return Watching()


def as_stored(
    tensors: dict[str, Tensor], kind: str, stacks: Sequence[Stack], model: Model
) -> tuple[dict[str, str], int]:
    """Give what was collected of each expert the names, and the form, that the checkpoint has; in place.

    An expert that no token reached has zeros.

    Args:
        tensors: `<kind>/<Stack.expert>`, a matrix of each expert that was reached; and others.
        kind: "gram", alike for all modules of an expert, or "outgram", of which each has its own outputs.

    Returns:
        further names of tensors, and how many experts no token reached.

    Raises:
        IncompatibleModels: no product with any matrix of a stack was seen.
    """
    shared: dict[str, str] = {}
    unreached = 0
    for stack in stacks:
        found = {
            e: tensors.pop(name) for e in range(len(stack.weight)) if (name := f"{kind}/{stack.expert(e)}") in tensors
        }
        if not found and len(stack.weight) == 1:
            continue  # a router that another product computes: as a module that is no linear map
        if not found:
            left_out = module_of(stack.stored_as or next(iter(next(filter(None, stack.stored)))))
            raise IncompatibleModels(
                f"how transformers computes the experts in {stack.name!r} is not known",
                where=model.label,
                right=f"--only with patterns that leave out {left_out!r}",
            )
        nothing = torch.zeros_like(next(iter(found.values())))
        own = [found.get(e, nothing) for e in range(len(stack.weight))]
        unreached += len(own) - len(found)
        if stack.stored_as:
            tensors[f"{kind}/{module_of(stack.stored_as)}"] = torch.stack(own)
        for one, matrices in zip(own, stack.stored, strict=bool(stack.stored)):
            first = ""
            for weight, outputs in matrices.items():
                name = f"{kind}/{module_of(weight)}"
                if kind == "outgram":
                    tensors[name] = one[outputs, outputs].contiguous()
                elif first:
                    shared[name] = first
                else:
                    tensors[name], first = one, name
    return shared, unreached
