"""Filling: a model that is a part of a larger one takes its place there, a language model in a vision-language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cuvee.checkpoints.sidecars import find_sidecars, merged_config
from cuvee.checkpoints.sources import Model, natural_dtype
from cuvee.engine.copying import plan_copies
from cuvee.engine.matching import BASE, describe_model
from cuvee.engine.models import open_models
from cuvee.engine.plan import Asked, Plan
from cuvee.engine.tasks import Input, Task
from cuvee.errors import IncompatibleModels, printable
from cuvee.tensors.layout import Layout

__all__ = ["plan_fill"]

PART = 0
_MOST_NAMES = 6


def plan_fill(
    whole: str | Path, part: str | Path, *, offline: bool = False, token: str | None = None, **options: Any
) -> Plan:
    """Plan the whole model with the tensors of the part in the place of its own.

    Names may differ in what stands before the layers: `model.layers` of a language model is
    `model.language_model.layers` in a vision-language model. Config and files are the whole model's.

    Args:
        whole: the larger model.
        part: the smaller one, all of whose tensors it must have, in the same shapes.
        offline: never ask the hub.
        token: for the hub.
        options: of `plan_copies`: memory, threads, shard_size.

    Raises:
        IncompatibleModels: a tensor of the part is not in the whole model, or has another shape there.
    """
    models = open_models({BASE: whole, PART: part}, offline=offline, token=token)
    base, smaller = models[BASE], models[PART]
    given = _names(base, smaller)
    left = set(base.tensors) - set(given)
    tasks = []
    for name, source in base.tensors.items():
        number, own = (PART, given[name]) if name in given else (BASE, name)
        value = smaller.tensors[own] if name in given else source
        dtype = natural_dtype(source, base.config) if source.dtype.is_float else source.dtype
        tasks.append(Task(name, Layout(source.shape), dtype, (Input(number, value, own),)))
    described = describe_model(smaller)
    dropped = {name: f"tied to {described.tied[name]}" for name in smaller.tensors if name in described.tied}
    dropped = {name: why for name, why in dropped.items() if name not in given.values()}
    sidecars, refused = find_sidecars(base.folder) if base.folder else ([], [])
    warnings = [f"{name} was not carried over: it is a link that leads out of its folder" for name in refused]
    warnings += [f"{model.label}: {note}" for model in models.values() for note in model.notes]
    config = None if base.config is None else merged_config(base.config, dtype=None, tied=None, vocab_size=None)
    return plan_copies(
        Asked(
            {"fill": {"base": base.label, "part": smaller.label}}, "", f"**filling** {len(left)} tensors from the base"
        ),
        models,
        tasks,
        config=config,
        sidecars=sidecars,
        roles={PART: "the part that was filled in"},
        dropped=dropped,
        warnings=warnings,
        **options,
    )


def _names(base: Model, part: Model) -> dict[str, str]:
    """Return for each tensor of the base that the part gives, what the part calls it.

    Raises:
        IncompatibleModels: some tensors of the part have no place.
    """
    best: dict[str, str] = {}
    for before, after in _renamings(base, part):
        found = {_renamed(name, before, after, base.tensors): name for name in part.tensors}
        fitting = {new: own for new, own in found.items() if new in base.tensors}
        best = max(best, fitting, key=len)
    tied = describe_model(part).tied
    missing = [name for name in part.tensors if name not in best.values() and name not in tied]
    if missing:
        shown = ", ".join(repr(printable(name)) for name in missing[:_MOST_NAMES])
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        raise IncompatibleModels(
            f"{base.label!r} has no place for {len(missing)} of {len(part.tensors)} tensors of {part.label!r}: {shown}{more}",
            right="a part of the larger model, as cuvee inspect shows both",
        )
    for name, own in best.items():
        if part.tensors[own].shape != base.tensors[name].shape:
            raise IncompatibleModels(
                f"tensor {printable(own)!r} is {part.tensors[own].shape} in {part.label!r} and "
                f"{base.tensors[name].shape} in {base.label!r}",
                right="a part of the same size; for vocabularies: cuvee tokens",
            )
    return best


def _renamings(base: Model, part: Model) -> Iterator[tuple[str, str]]:
    """Guess how names differ: in what stands before the layers, without what both have in common at its end."""
    yield "", ""
    for own in describe_model(part).stacks:
        for other in describe_model(base).stacks:
            one, two = own.split("."), other.split(".")
            while one and two and one[-1] == two[-1]:
                one.pop()
                two.pop()
            yield ".".join(one), ".".join(two)


def _renamed(name: str, before: str, after: str, known: Mapping[str, Any]) -> str:
    """Return a name with another beginning; one that does not begin so (`lm_head`) stays, or goes below too."""
    if not before:
        new = f"{after}.{name}" if after else name
        return new if new in known else name
    if name.startswith(f"{before}."):
        return f"{after}.{name[len(before) + 1 :]}" if after else name[len(before) + 1 :]
    return name
