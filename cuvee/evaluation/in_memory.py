"""A model to be scored, in memory: read from where it lies, or merged from its recipe; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sidecars import Sidecar, sidecars_of
from cuvee.checkpoints.sources import read_all
from cuvee.errors import NonFinite, printable
from cuvee.recipes import Recipe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["InMemory", "first_non_finite", "in_memory", "shapes_in"]


@dataclass(frozen=True)
class InMemory:
    """A model's tensors, and what lies beside them.

    Attributes:
        label: how the user named it.
        tensors: by name, on the CPU, as they are stored.
        config: config.json, None where there is none.
        sidecars: the other files; few are large, none is read yet.
    """

    label: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    sidecars: Sequence[Sidecar] = field(default=(), repr=False)


def in_memory(
    model: str | os.PathLike[str] | Recipe,
    *,
    device: str = "cpu",
    offline: bool = False,
    token: str | None = None,
    allow_nan: bool = False,
) -> InMemory:
    """Return a model with all its tensors.

    Args:
        model: a folder, a file, `model+adapter`, a hub id; or a recipe (a value, or a YAML file), which is merged.
        device: where a recipe is merged.
        offline: never ask the hub.
        token: for the hub.
        allow_nan: let NaN and Inf through.

    Raises:
        CuveeError: it cannot be read, or the recipe cannot be merged, or it holds NaN or Inf.
    """
    if _is_recipe(model):
        from cuvee.engine.in_memory import compute
        from cuvee.engine.plan import plan

        planned = plan(model, device=device, offline=offline, token=token)
        label = "the recipe" if isinstance(model, Recipe) else os.fspath(model)
        return InMemory(label, compute(planned, allow_nan=allow_nan), planned.config, planned.sidecars)
    assert not isinstance(model, Recipe)
    opened = open_model(model, offline=offline, token=token)
    try:
        tensors = {name: read_all(source).reshape(source.shape) for name, source in opened.tensors.items()}
        broken = None if allow_nan else first_non_finite(tensors)
        if broken is not None:
            raise NonFinite(
                f"tensor {printable(broken)!r} holds NaN or Inf",
                where=opened.label,
                right="a model without: no score of this one means anything",
            )
        return InMemory(opened.label, tensors, opened.config, sidecars_of(opened)[0])
    finally:
        opened.close()


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or Inf, or None."""
    floats = ((name, one) for name, one in tensors.items() if one.is_floating_point())
    known = (
        (name, one.float() if one.itemsize == 1 else one) for name, one in floats
    )  # torch knows no float8's infinities
    return next((name for name, one in known if not bool(one.isfinite().all())), None)


def shapes_in(
    model: str | os.PathLike[str] | Recipe, *, offline: bool = False, token: str | None = None
) -> dict[str, Sequence[int]]:
    """Return the shapes of a model's tensors by name: it is opened, or its recipe planned, and headers are read.

    Raises:
        CuveeError: it cannot be read or merged.
    """
    if _is_recipe(model):
        from cuvee.engine.plan import plan

        return {task.name: task.layout.shape for task in plan(model, offline=offline, token=token).tasks}
    assert not isinstance(model, Recipe)
    opened = open_model(model, offline=offline, token=token)
    try:
        return {name: source.shape for name, source in opened.tensors.items()}
    finally:
        opened.close()


def _is_recipe(model: str | os.PathLike[str] | Recipe) -> bool:
    return isinstance(model, Recipe) or Path(model).suffix in (".yml", ".yaml")
