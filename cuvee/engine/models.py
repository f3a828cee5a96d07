"""The models of a merge, opened under their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cuvee.checkpoints import fs
from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import MemoryTensor, Model
from cuvee.engine.matching import BASE
from cuvee.errors import CuveeError, IncompatibleModels, Problems, printable, raise_all
from cuvee.tensors.lazy_torch import torch

__all__ = ["model_from_values", "open_models"]


def open_models(
    wanted: Mapping[int, Any], *, offline: bool, token: str | None, opener: Callable[..., Model] = open_model
) -> dict[int, Model]:
    """Open models under numbers; one that is named twice is opened once.

    Args:
        opener: of references.

    Raises:
        Problems: of all models that cannot be opened; or the one error.
    """
    fs.allow_many_files()
    opened: dict[str, Model] = {}
    models: dict[int, Model] = {}
    errors: dict[str, CuveeError] = {}
    for number, reference in wanted.items():
        key = str(reference) if isinstance(reference, str | Path) else f"memory {id(reference)}"
        try:
            if key not in opened and key not in errors:
                opened[key] = _open(reference, number, opener, offline=offline, token=token)
            if key in opened:
                models[number] = opened[key]
        except Problems as several:
            errors.update({f"{key} {i}": error for i, error in enumerate(several.errors)} | {key: several.errors[0]})
        except CuveeError as error:
            errors[key] = error
    raise_all(list(dict.fromkeys(errors.values())))
    return models


def _open(reference: Any, number: int, opener: Callable[..., Model], *, offline: bool, token: str | None) -> Model:
    if isinstance(reference, Model):
        return reference
    if isinstance(reference, str | Path):
        return opener(reference, offline=offline, token=token)
    return model_from_values(reference, "base" if number == BASE else f"model{number}")


def model_from_values(values: Any, label: str) -> Model:
    """Return a state dict (name -> tensor) or a module as a model.

    Raises:
        IncompatibleModels: it is neither, or holds something else than dense tensors with data.
    """
    config = getattr(getattr(values, "config", None), "to_dict", lambda: None)()
    if hasattr(values, "state_dict"):
        values = values.state_dict()
    if not isinstance(values, Mapping):
        right = "a module, or a dict from names to tensors; in cuvee.merge also a path or a hub id"
        raise IncompatibleModels(f"{label} is a {type(values).__name__}", right=right)
    for name, value in values.items():
        if (said := _unfit(name, value)) is not None:
            right = "a dict from names to dense tensors, such as a module's state_dict()"
            raise IncompatibleModels(f"{printable(repr(name))} in {label} is {said}", right=right)
    return Model(
        label, {name: MemoryTensor(tensor, rank) for rank, (name, tensor) in enumerate(values.items())}, config
    )


def _unfit(name: Any, value: Any) -> str | None:
    """Return what keeps an entry from being a tensor of a model, None where nothing does."""
    if not isinstance(name, str):
        return f"a name of type {type(name).__name__}"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if value.is_meta:
        return "on the meta device, without data"
    return None if value.layout == torch.strided else f"stored as {value.layout}"
