"""Measure, then apply: how a plain function over tensors is streamed.

A piece that must see more than a block calls `measured(reduction, values)`. It returns the finished measurement, or
adds this block to it and ends the call (`Pending`). The engine calls the method again on every block, until it ends with
a value. What is measured may depend on parameters, names, shapes and finished measurements, never on a block's values.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.calls import Pending, Place, Scope, activated, active, current
from cuvee.methods.combination import Matrices, Stored, by_model, plain, spread
from cuvee.methods.folding import Accumulator, Again, Done, Miss, Reduction
from cuvee.tensors import kernels
from cuvee.tensors.either import number_of, same_memory
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.rows import Row

if TYPE_CHECKING:
    import torch as torch_types
    from numpy.typing import NDArray

__all__ = ["Over", "each", "each_loaded", "kept", "measured", "measured_each", "remembered", "remembered_mask"]

_BEFORE = -1
"""In a path: what runs before the method."""

Over = Literal["all", "row", "column"]


def measured(
    reduction: Reduction,
    values: torch_types.Tensor | Sequence[torch_types.Tensor] | Callable[[], torch_types.Tensor],
    *,
    over: Over = "all",
    scope: Scope = "tensor",
) -> Any:
    """Return a measurement of `values`, or add this block to it and end the call.

    Args:
        reduction: what is measured.
        values: one tensor shaped as the block, or with leading dimensions (K models); or several, measured as one; or what
            makes the one, called where the measurement is not finished.
        over: everything; each vector along the last dimension ("row", answered at once); or each along dimension 0.
        scope: the values that belong together: of the tensor, of its layer, of the model.

    Raises:
        Pending: the measurement is not finished.
    """
    if callable(values) and active() is None:
        values = values()
    many = isinstance(values, list | tuple)
    given: list[Any] = list(values) if isinstance(values, list | tuple) else [values]
    call = active() or current(given[0][0] if reduction.stacked else given[0])
    place = call.place
    if len(place.layout.shape) < 2:
        over = "all"
    if over == "row":
        rows = [_finish_rows(reduction, plain(one)) for one in given]
        return rows if many else rows[0]
    key = call.key(reduction, scope)
    if key in call.answers:
        return call.answers[key]
    if callable(values):
        given = [values()]
    state, call.measuring = call.states.get(key), key
    at_once = call.alone or (place.is_whole and scope == "tensor")
    shortcut = getattr(reduction, "at_once", None)
    if at_once and shortcut and over == "all" and not many:
        found = shortcut(given[0] if isinstance(given[0], Row) else plain(given[0]), place)
        if found is not None:
            return found
    while True:
        miss = Miss(reduction, state, _look(reduction, given, over, place, state, many=many), place.stop - place.start)
        if not at_once:
            call.misses[key] = miss
            raise Pending
        accumulator = Accumulator(reduction.fold(state))
        accumulator.add(miss)
        outcome = reduction.next(accumulator.folded(place.tensor), state, miss.numel)
        if isinstance(outcome, Done):
            return outcome.value
        state = outcome.state


def _look(
    reduction: Reduction, given: Sequence[Any], over: Over, place: Place, state: Any, *, many: bool
) -> list[tuple[int, NDArray[Any]]]:
    """Return the partials of a block; stored values are only decoded where the reduction cannot do without."""
    of_stored = getattr(reduction, "of_stored" if over == "all" else "columns_of_stored", None)
    kind = Stored if reduction.stacked else Row
    if of_stored and given and all(isinstance(one, kind) for one in given):
        leaf = place.layout.leaf
        found = of_stored(given, leaf, state) if over == "all" else of_stored(given, place)
        if found is not None:
            return list(enumerate(found if many else found[:, 0], place.start // leaf))
    parts = [plain(one) for one in given]
    flat = [part.reshape(*part.shape[: int(reduction.stacked)], -1) for part in parts]
    return _partials(reduction, flat, over, place, state, many=many)


def _finish_rows(reduction: Reduction, values: torch_types.Tensor) -> Any:
    outcome = reduction.next(reduction.measure(values, -1, None), None, values.shape[-1])
    if isinstance(outcome, Again):
        raise MethodError(f"{type(reduction).__name__} cannot be measured by rows")
    return outcome.value


def _partials(
    reduction: Reduction,
    flat: Sequence[torch_types.Tensor],
    over: Over,
    place: Place,
    state: Any,
    *,
    many: bool,
) -> list[tuple[int, NDArray[Any]]]:
    """Return the partials of a block: one for all of it where whole numbers are counted, else one a leaf.

    `many`: a list was measured, of any length; the partials have a leading dimension for it.
    """

    def measure(start: int, stop: int) -> NDArray[Any]:
        if over == "column":
            found = [_measure_columns(reduction, f[..., start:stop], place, start, state) for f in flat]
        else:
            found = [reduction.measure(f[..., start:stop], -1, state) for f in flat]
        return np.stack(found) if many else found[0]

    size, leaf = place.stop - place.start, place.layout.leaf
    first = place.start // leaf
    if over == "column":
        return [(index, measure(start, stop)) for index, start, stop in place.leaves()]
    if reduction.fold(state) == "count":
        return [(first, measure(0, size))]
    full = size // leaf
    partials: list[tuple[int, NDArray[Any]]] = []
    if full:  # all full leaves in one call, as vectors along a last axis
        leaves = [f[..., : full * leaf].reshape(*f.shape[:-1], full, leaf) for f in flat]
        found = [reduction.measure(f, -1, state) for f in leaves]
        by_leaf = np.moveaxis(np.stack(found) if many else found[0], -1, 0)
        partials = [(first + number, partial) for number, partial in enumerate(by_leaf)]
    if full * leaf < size:
        partials.append((first + full, measure(full * leaf, size)))
    return partials


def _measure_columns(
    reduction: Reduction, flat: torch_types.Tensor, place: Place, start: int, state: Any
) -> NDArray[Any]:
    """Reduce a leaf along dimension 0 of the tensor: (…, columns), zero in the columns that it does not touch."""
    columns = place.layout.numel // max(1, place.layout.shape[0])
    lead = flat.shape[:-1]
    if flat.shape[-1] % columns == 0 and (place.start + start) % columns == 0:
        return reduction.measure(flat.reshape(*lead, -1, columns), -2, state)
    # A leaf that is a part of one slice: its elements lie in different columns, each reduced alone.
    total: NDArray[Any] | None = None
    at = 0
    while at < flat.shape[-1]:
        first = (place.start + start + at) % columns
        length = min(columns - first, flat.shape[-1] - at)
        part = reduction.measure(flat[..., at : at + length][..., None, :], -2, state)
        if total is None:
            total = np.zeros((*part.shape[:-1], columns), part.dtype)
        total[..., first : first + length] += part
        at += length
    assert total is not None
    return total


def remembered(what: str, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Return `compute()`, or what it gave on an earlier visit of this block. It must always give the same."""
    call = current()
    if call.memory is None or call.place.is_whole:
        return compute()
    key = (what, call.place.start, call.path, call.ordinal(what))
    value = call.memory.get(call.place.tensor, key)
    if value is None:
        value = compute()
        call.memory.put(call.place.tensor, key, value)
    return value


def remembered_mask(make: Callable[[], NDArray[np.bool_]], like: torch_types.Tensor) -> Any:
    """Return the mask (n,) that `make` gives, shaped as `like`, on the CPU; a block that will be seen again keeps its bits."""
    if current(like).place.is_whole:
        mask: Any = make()
    else:
        packed = remembered("mask", lambda: np.packbits(make()))
        mask = np.unpackbits(packed, count=number_of(like)).view(np.bool_)
    return (mask if isinstance(like, np.ndarray | Row) else torch.from_numpy(mask)).reshape(like.shape)


def each(
    filter: Callable[..., torch_types.Tensor], deltas: torch_types.Tensor, *per_model: Any, **shared: Any
) -> torch_types.Tensor:
    """Apply a filter to the task vector of each model; what all of them miss is collected in one visit.

    Args:
        filter: called as `filter(delta, *values of this model, **shared)`.
        deltas: (K, …); the filter is given arrays, tensors or, of stored blocks, rows.
        per_model: parameters with one value a model, or one for all.

    Returns:
        (K, …), a new tensor, or stored blocks.
    """
    are_stored = isinstance(deltas, Stored)
    deltas = deltas if are_stored else plain(deltas)
    blocks = by_model(deltas)
    call = current(blocks[0])
    columns = [spread(value, len(deltas)) for value in per_model]
    result: Any = [None] * len(blocks) if are_stored else call.buffer(deltas)
    pending = False
    with activated(call):
        for k, delta in enumerate(blocks):
            with call.model(k):
                call.spare = result[k]
                try:
                    filtered: Any = filter(delta, *(column[k] for column in columns), **shared)
                    if are_stored:
                        result[k] = kernels.row_of(filtered)
                    elif not same_memory(filtered, result[k]):
                        result[k] = filtered if type(filtered) is type(deltas) else filtered.numpy()
                except Pending:
                    pending = True
                call.spare = None
    if pending:
        raise Pending
    return Stored(result) if are_stored else result  # type: ignore[return-value]


def each_loaded(filters: Sequence[Callable[[torch_types.Tensor], torch_types.Tensor]], deltas: Matrices) -> Matrices:
    """Return matrices of which each is filtered when it is loaded; what all of them miss is collected in one visit.

    Args:
        filters: called one after the other with the task vector of one model. Matrices may be loaded in any order and more
            than once: the same happens each time, apart from all that the method measures.
        deltas: (K, m, n).
    """
    call = current()

    def filtered(k: int) -> torch_types.Tensor:
        delta = deltas[k]
        with call.apart((_BEFORE, k)):
            for filter in filters:
                delta = filter(delta)
        return delta

    def load(k: int) -> torch_types.Tensor:
        try:
            return filtered(k)
        except Pending:
            for other in set(range(len(deltas))) - {k}:
                with contextlib.suppress(Pending):
                    filtered(other)
            raise

    return Matrices(deltas.shape, load)


def kept(what: str, compute: Callable[[], torch_types.Tensor]) -> torch_types.Tensor:
    """Return `compute()` of a whole tensor, or what it gave in an earlier round: for what costs more than the disk."""
    call = current()
    if call.kept is None:
        return compute()
    name = f"{what}-{call.ordinal(what)}-{call.place.tensor}"
    found = call.kept.get(name)
    if found is None:
        found = compute()
        call.kept.put(name, found)
    return found


def measured_each(
    reduction: Reduction, deltas: torch_types.Tensor | Sequence[torch_types.Tensor], *, scope: Scope = "tensor"
) -> list[Any]:
    """Return a measurement of each of the K blocks by itself; what all of them miss is collected in one visit.

    Raises:
        Pending: some are not finished.
    """
    values = by_model(deltas)
    call = active() or current(values[0])
    found = []
    with activated(call):
        for k in range(len(values)):
            with call.model(k), contextlib.suppress(Pending):
                found.append(measured(reduction, functools.partial(values.__getitem__, k), scope=scope))
    if len(found) < len(values):
        raise Pending
    return found
