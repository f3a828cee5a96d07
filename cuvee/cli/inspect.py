"""`cuvee inspect`: what a model is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.cli.amounts import in_bytes, in_number, in_share, plural
from cuvee.cli.options import AsJson, Offline, Tensors, Token
from cuvee.cli.planning import said_meanwhile
from cuvee.cli.screen import heading, indented, print_json, prose, rows, screen, show, styled, table

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.architectures import Architecture
    from cuvee.checkpoints.sources import Model, TensorSource

__all__ = ["inspect"]


@dataclass
class _Count:
    """Tensors, parameters and bytes of a group."""

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0

    def add(self, source: TensorSource) -> None:
        numel = math.prod(source.shape)
        self.tensors += 1
        self.parameters += numel
        self.bytes += numel * source.dtype.bits // 8


def inspect(
    model: str, /, *, tensors: Tensors = False, offline: Offline = False, token: Token = None, json: AsJson = False
) -> None:
    """Show what a model is made of: size, layers, roles, dtypes. Reads headers only.

    Args:
        model: a folder, a file, a hub id, or model+adapter.
    """
    with said_meanwhile("opening"):
        from cuvee.architectures import describe
        from cuvee.checkpoints.opening import open_model

        opened = open_model(model, offline=offline, token=token)
        meaning = describe({name: source.shape for name, source in opened.tensors.items()}, opened.config)
    try:
        if json:
            print_json(_as_object(opened, meaning, with_tensors=tensors))
        else:
            _print_model(screen(), opened, meaning)
            if tensors:
                _print_tensors(screen(), opened, meaning)
    finally:
        opened.close()


def _all(model: Model) -> _Count:
    count = _Count()
    for source in model.tensors.values():
        count.add(source)
    return count


def _by_dtype(model: Model) -> dict[str, _Count]:
    found: dict[str, _Count] = {}
    for source in model.tensors.values():
        found.setdefault(source.dtype.name, _Count()).add(source)
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def _by_role(model: Model, meaning: Architecture) -> dict[str, _Count]:
    from cuvee.architectures import Role

    found: dict[str, _Count] = {}
    for name, source in model.tensors.items():
        found.setdefault(str(meaning.meaning(name).role), _Count()).add(source)
    return {str(role): found[str(role)] for role in Role if str(role) in found}


def _print_model(console: Console, model: Model, meaning: Architecture) -> None:
    count = _all(model)
    size = f"{in_number(count.parameters)} parameters, {in_bytes(count.bytes)} in {plural(count.tensors, 'tensor')}"
    dtypes = ", ".join(f"{name} {in_share(one.bytes / max(1, count.bytes))}" for name, one in _by_dtype(model).items())
    files = [f"{file.path.name} {in_bytes(file.opened.size)}" for file in model.files]
    facts = (
        ("size", size),
        ("dtypes", dtypes),
        ("family", meaning.family or ""),
        ("layers", ", ".join(f"{length} in {prefix}" for prefix, length in meaning.stacks.items())),
        ("width", str(meaning.hidden_size or "")),
        ("heads", _heads(meaning)),
        ("tied", ", ".join(f"{alias} to {target}" for alias, target in meaning.tied.items())),
        ("files", ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")),
    )
    show(console, styled(model.label, "bold cyan"), rows(facts), "")
    made = table("role", "tensors", "parameters", "share", numbers=(1, 2, 3))
    for role, one in _by_role(model, meaning).items():
        share = in_share(one.parameters / max(1, count.parameters))
        made.add_row(styled(role), styled(one.tensors), styled(in_number(one.parameters)), styled(share))
    show(console, indented(made))
    if model.notes:
        show(console, "", heading("Notes"), *map(prose, model.notes))


def _heads(meaning: Architecture) -> str:
    if meaning.heads is None:
        return ""
    grouped = meaning.kv_heads is not None and meaning.kv_heads != meaning.heads
    said = f"{meaning.heads}" + (f", {meaning.kv_heads} for keys and values" if grouped else "")
    return said + (f", each {meaning.head_dim} wide" if meaning.head_dim else "")


def _print_tensors(console: Console, model: Model, meaning: Architecture) -> None:
    made = table("tensor", "dtype", "shape", "layer", "role", numbers=(3,), fold=(0,))
    for name, source in model.tensors.items():
        of = meaning.meaning(name)
        layer = "" if of.layer is None else str(of.layer)
        shape = " × ".join(map(str, source.shape)) or "one number"
        made.add_row(*map(styled, (name, source.dtype.name, shape, layer, str(of.role))))
    show(console, "", indented(made))


def _as_object(model: Model, meaning: Architecture, *, with_tensors: bool) -> dict[str, Any]:
    count = _all(model)
    content: dict[str, Any] = {
        "model": model.label,
        "parameters": count.parameters,
        "bytes": count.bytes,
        "files": [{"file": file.path.name, "bytes": file.opened.size} for file in model.files],
        "dtypes": {name: vars(one) for name, one in _by_dtype(model).items()},
        "family": meaning.family,
        "stacks": meaning.stacks,
        "hidden_size": meaning.hidden_size,
        "heads": meaning.heads,
        "kv_heads": meaning.kv_heads,
        "head_dim": meaning.head_dim,
        "tied": meaning.tied,
        "roles": {role: vars(one) for role, one in _by_role(model, meaning).items()},
        "notes": model.notes,
    }
    if with_tensors:
        content["tensors"] = [_tensor(name, source, meaning) for name, source in model.tensors.items()]
    return content


def _tensor(name: str, source: TensorSource, meaning: Architecture) -> dict[str, Any]:
    of = meaning.meaning(name)
    return {
        "name": name,
        "dtype": source.dtype.name,
        "shape": source.shape,
        "stack": of.stack,
        "layer": of.layer,
        "role": str(of.role),
        "expert": of.expert,
    }
