"""Drop entries of a task vector at random, evenly or by rank of magnitude."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from cuvee.errors import MethodError
from cuvee.methods.calls import current, room
from cuvee.methods.combination import plain
from cuvee.methods.measuring import remembered_mask
from cuvee.methods.pieces.rescale import Rescale, rescale_kept
from cuvee.methods.registry import ROW, Fraction, Paper, Role, edit
from cuvee.tensors import kernels
from cuvee.tensors.draws import bernoulli, bernoulli_array, draw_key, limits_of
from cuvee.tensors.either import as_tensor, number_of
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.masking import keep_where
from cuvee.tensors.order import ordered_keys
from cuvee.tensors.rows import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Ranking", "dare", "drop_at_random", "drop_by_rank", "keep_mask", "magprune", "row_ranks"]


Ranking: TypeAlias = Literal["row", "tensor", "magnitude"]


def keep_mask(delta: Tensor, probability: float | Callable[[], Tensor]) -> Tensor:
    """Draw which entries are kept; a mask given as the statistic `mask/model{k}/{tensor}` is used instead.

    Args:
        probability: of being kept; where entries differ, a function that gives (…), called when it is needed.

    Returns:
        bool, shaped as `delta`.
    """
    call = current(delta)
    place, model = call.place, call.model_index
    given = call.statistics.get(f"mask/model{model}/{place.tensor}")
    if given is not None:
        return given.to(delta.device).reshape(-1)[place.start : place.stop].reshape(delta.shape) != 0
    key = draw_key(call.seed, place.tensor, model, call.ordinal("draw"))

    def draw() -> Tensor:
        flat = probability if isinstance(probability, float) else probability().reshape(-1)
        return bernoulli(key, place.start, place.stop, flat, delta.device)

    if isinstance(delta, np.ndarray | Row) and isinstance(probability, float):
        return remembered_mask(lambda: bernoulli_array(key, place.start, place.stop, probability), delta)
    delta = as_tensor(delta)
    if delta.device.type != "cpu":
        return draw().reshape(delta.shape)
    return remembered_mask(lambda: draw().numpy(), delta)


def drop_at_random(delta: Tensor, density: float, *, rescale: Rescale = True) -> Tensor:
    """Keep each entry with probability `density`.

    Source: DARE, arXiv 2311.03099.
    """
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(as_tensor(plain(delta)))
    kept = keep_where(keep_mask(delta, float(density)), delta, room(delta))
    return rescale_kept(kept, delta, rescale, density)


def row_ranks(delta: Tensor, ranks: Ranking = "row") -> Tensor:
    """Return each entry's rank by magnitude in its row, 0 the smallest, the lower index first among equals.

    A row is a slice of dimension 0; where that has more than 2^16 elements, a run along the last dimension; a 1-D
    tensor is one row. With ranks "tensor" all of it is one.

    Returns:
        int64, (rows, length).
    """
    rows = _rows(delta, ranks)
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        # Key and index in one word: NumPy's vectorised sort is far faster than any stable argsort.
        keys: Any = ordered_keys(rows, magnitude=True)
        packed = keys.astype(np.uint64) << np.uint64(32)
        packed |= np.arange(rows.shape[-1], dtype=np.uint64)
        packed.sort(axis=-1)
        order = torch.from_numpy((packed & np.uint64(0xFFFFFFFF)).astype(np.int64))
    else:
        order = torch.argsort(rows.abs(), dim=-1, stable=True)
    places = torch.arange(rows.shape[-1], device=rows.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def drop_by_rank(
    delta: Tensor, density: float, epsilon: float, *, rescale: Rescale = True, ranks: Ranking = "row"
) -> Tensor:
    """Keep each entry with a probability that rises with its rank in the row, from density − ε to density + ε.

    With ranks "tensor" all of it, which must be here, is one row; with "magnitude" it rises with the magnitude itself.

    Raises:
        MethodError: density − ε or density + ε is not inside (0, 1).

    Source: DELLA (MagPrune), arXiv 2406.11617.
    """
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(as_tensor(plain(delta)))
    if density - epsilon <= 0 or density + epsilon >= 1:
        raise MethodError(
            f"density {density:g} with epsilon {epsilon:g} gives probabilities from {density - epsilon:g} to "
            f"{density + epsilon:g}",
            right=f"0 < density - epsilon and density + epsilon < 1, such as epsilon: "
            f"{0.9 * min(density, 1 - density):.2g}",
        )
    by_rank = _rank_probabilities(density, epsilon, _row_length(delta, ranks))
    needs_each = rescale == "expected" or ranks != "row" or current(delta).statistics
    if not needs_each and kernels.serve(delta):
        return rescale_kept(keep_where(_compiled_mask(delta, by_rank), delta, room(delta)), delta, rescale, density)
    delta = as_tensor(plain(delta))
    if ranks == "magnitude":
        probability = (density - epsilon) + 2 * epsilon * _heights(_rows(delta, ranks))
    else:
        probability = torch.from_numpy(by_rank).to(delta.device)[row_ranks(delta, ranks)]
    probability = probability.reshape(delta.shape)
    kept = keep_where(keep_mask(delta, lambda: probability), delta, room(delta))
    return rescale_kept(kept, delta, rescale, probability.to(delta.dtype))


def _row_count(delta: Tensor, ranks: Ranking) -> int:
    return len(delta) if ranks != "tensor" and len(current(delta).place.layout.shape) > 1 else 1


def _rows(delta: Tensor, ranks: Ranking) -> Tensor:
    return delta.reshape(_row_count(delta, ranks), -1)


def _row_length(delta: Tensor, ranks: Ranking) -> int:
    return number_of(delta) // _row_count(delta, ranks)


def _heights(rows: Tensor) -> Tensor:
    """Return where each magnitude lies between the least (0) and the largest (1) of its row, float64; ½ where all are one."""
    sizes = rows.abs().double()
    low, high = sizes.amin(-1, keepdim=True), sizes.amax(-1, keepdim=True)
    return torch.where(high > low, (sizes - low) / (high - low).where(high > low, 1.0), 0.5)


def _rank_probabilities(density: float, epsilon: float, length: int) -> NDArray[np.float64]:
    """Return the probability of each rank, (length,) float64; in a row of one, the density itself."""
    if length == 1:
        return np.array([density])
    return (density - epsilon) + (2 * epsilon / (length - 1)) * np.arange(length, dtype=np.float64)


def _compiled_mask(delta: Tensor, by_rank: NDArray[np.float64]) -> Tensor:
    """The mask by the kernel, which finds few ranks exactly: most draws are far from the limit."""
    call = current(delta)
    key = draw_key(call.seed, call.place.tensor, call.model_index, call.ordinal("draw"))

    def draw() -> NDArray[np.bool_]:
        return kernels.rank_drop(kernels.row_of(delta), key, call.place.start, limits_of(by_rank).astype(np.uint32))

    return remembered_mask(draw, delta)


_L1 = "l1: times Σ|τ_i| / Σ|m_i ⊙ τ_i| over the tensor"
_DRAWS = "Draws depend on the seed, the tensor, the model's place and the element only."


@edit(
    role=Role.FILTER,
    arrays=True,
    paper=Paper("DARE", arxiv="2311.03099", year=2023),
    cost="one pass; two visits of each tensor with rescale: l1",
    formula=f"m_i ~ Bernoulli(density) by element;  τ_i ← rescale(m_i ⊙ τ_i);  {_L1},  expected: over density",
    once="dropping at random twice is dropping once, with the product of the densities",
    differs="As mergekit in dare_linear and dare_ties, whose rescale gives each tensor its old Σ|x| back; the paper divides by "
    f"density (rescale: expected). {_DRAWS}",
)
def dare(delta: Tensor, *, density: Fraction, rescale: Rescale = True) -> Tensor:
    """Keep each entry of a task vector with probability `density`, at random.

    Args:
        density: probability with which an entry is kept.
        rescale: "l1" (true): to the old Σ|x| of the tensor; "expected": divide by density; "none" (false).
    """
    return drop_at_random(delta, density, rescale=rescale)


@edit(
    role=Role.FILTER,
    arrays=True,
    paper=Paper("DELLA-Merging (MagPrune)", arxiv="2406.11617", year=2024),
    unit=ROW,
    cost="a sort of every row; two visits of each tensor with rescale: l1",
    formula="p = density − epsilon + 2 epsilon · rank / (length − 1), by magnitude in each row;  m_i ~ Bernoulli(p);  "
    f"τ_i ← rescale(m_i ⊙ τ_i);  {_L1},  expected: each entry over its p",
    once="the second would rank the entries that the first has zeroed, and drop of what it was to keep",
    differs="As mergekit in della, whose rescale gives each tensor its old Σ|x| back; the paper divides each entry by its own "
    "p (rescale: expected). Rows of length 1, NaN there, are kept with probability density. A convolution's row is everything "
    f"that belongs to one output channel. epsilon is half of the paper's window. {_DRAWS}",
)
def magprune(delta: Tensor, *, density: Fraction, epsilon: Fraction = 0.15, rescale: Rescale = True) -> Tensor:
    """Keep each entry of a task vector at random, the larger ones of a row more often.

    Args:
        density: mean probability with which an entry is kept.
        epsilon: half the spread of that probability over a row.
        rescale: "l1" (true): to the old Σ|x| of the tensor; "expected": divide by the probability; "none" (false).
    """
    return drop_by_rank(delta, density, epsilon, rescale=rescale)
