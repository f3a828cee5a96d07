"""OPCM: models merged one after the other, each projected to what the earlier ones do not use."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.methods.calls import CONTINUAL, Pending, current, left_beside, noted
from cuvee.methods.combination import Matrices, in_places
from cuvee.methods.measuring import kept, measured, measured_each
from cuvee.methods.reductions import Sums
from cuvee.methods.registry import MATRIX, Bound, Fraction, Paper, Patterns, PerModel, merge_method
from cuvee.methods.spectral import holding, strong_svd, svd
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

_TABLES = ("embedding", "position")


@merge_method(
    paper=Paper(
        "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model Merging",
        arxiv="2501.09522",
        year=2025,
    ),
    unit=MATRIX,
    others=None,
    continual=True,
    embeddings=True,
    workspace=holding(
        matrices=7, cores=3
    ),  # base, the accumulation, a task vector, what is taken from it, factors, the result
    cost="K - 1 decompositions",
    formula="A = τ_1;  for t = 2 … K:  A = U S Vᵀ, X = Uᵀ τ_t V,  A ← A + τ_t − U (X ⊙ M) Vᵀ, M the diagonal and the "
    "leading block that holds alpha of Σ S;  out = θ_0 + scaling · A · mean ‖τ_t‖ / ‖A‖",
    differs="The official code scales after every model; all scales cancel but the last, and that one is applied. It "
    "shuffles the models, and its alpha of 1 protects nothing (here everything). Where the accumulation has low rank, "
    "directions of noise are not protected (rank: full protects them).",
)
def opcm(
    deltas: Any,
    *,
    alpha: Fraction = 0.5,
    order: PerModel[Annotated[int, Bound(0)]] | None = None,
    plain: Patterns | None = None,
    rank: Literal["auto", "full"] = "auto",
    continual: bool = True,
) -> Tensor:
    """Add task vectors one after the other, each without what lies in the leading directions of those before.

    The published model keeps the accumulation in float32 and the norms in its folder `continual`, from which
    `cuvee merge --continue MODEL --add EXPERT` goes on without the earlier models, to the same bytes.

    Args:
        deltas: (K, …).
        alpha: share of the accumulation's singular values whose directions are protected.
        order: the place of each model, 0 first; without it as they are listed.
        plain: names of matrices that are added as they are, as vectors and kernels are; without it embeddings and tables
            of positions.
        rank: auto: an accumulation of low rank protects the directions that it has; full: all that are not exactly zero.
        continual: keep what a later merge goes on from, which takes as much room as the model in float32; false: only the
            model, which cannot be continued.

    Returns:
        (…): one norm over the whole model, the mean of the models'. One model gives its own task vector.

    Raises:
        MethodError: the order names a place twice.
    """
    turns = in_places(order, len(deltas))
    call = current(None if isinstance(deltas, Matrices) else deltas[0])
    is_linear = isinstance(deltas, Matrices) and not _is_plain(call.place.tensor, call.place.role, plain)

    def accumulate() -> Tensor:
        total = deltas[turns[0]] if isinstance(deltas, Matrices) else deltas[turns[0]].clone()
        for k in turns[1:]:
            total += _apart(deltas[k], total, alpha, rank) if is_linear else deltas[k]
        return total

    squares: list[Any] = []
    with contextlib.suppress(Pending):  # all norms are asked for in one visit
        squares = measured_each(Sums("square"), deltas, scope="model")
    total = kept("opcm", accumulate) if isinstance(deltas, Matrices) else accumulate()
    norm = float(measured(Sums("square"), total, scope="model")) ** 0.5
    norms = [float(square) ** 0.5 for square in squares]
    if CONTINUAL in call.statistics:  # the first task vector is the accumulation of the models merged before
        norms = [*map(float, call.statistics[CONTINUAL]), *norms[1:]]
    if continual:
        left_beside(total, norms)
    return total * (sum(norms) / len(norms) / norm) if norm else total


def _is_plain(name: str, role: str, plain: Patterns | None) -> bool:
    return role in _TABLES if plain is None else name in plain


def _apart(delta: Tensor, total: Tensor, alpha: float, rank: str) -> Tensor:
    """Return a task vector without its part in the protected directions of the accumulation, both (m, n)."""
    if not bool(torch.isfinite(total).all() & torch.isfinite(delta).all()):
        return delta  # NaN that is let through: nothing of it can be decomposed
    found = strong_svd(total) if rank == "auto" else svd(total)
    if not len(found.s):
        return delta
    above = torch.nonzero(found.s.cumsum(0) > alpha * found.s.sum())
    split = int(above[0]) if len(above) and alpha < 1 else len(found.s)
    x = found.u.mT @ delta @ found.vh.mT
    protected = torch.diag(x.diagonal())
    protected[:split, :split] = x[:split, :split]
    noted(rank=len(found.s), protected=split)
    return delta.sub_(found.u @ protected @ found.vh)
