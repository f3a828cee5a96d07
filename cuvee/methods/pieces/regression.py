"""Merging as regression: one matrix that answers the inputs of every model as that model does, Θ C = T.

The inputs are known by their Gram matrix G_i, (n, n): the one given as a statistic, or, without data, that of the task
vector itself, whose rows lie in the space of the inputs that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from cuvee.errors import MethodError
from cuvee.methods.calls import current, noted
from cuvee.methods.combination import Matrices, spread
from cuvee.methods.needs import collect_command, module_of
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import Paper
from cuvee.methods.spectral import decomposition_bytes, eigh, gram, gram_solve, gram_spectrum, product, second_moment
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    import torch as torch_types
    from torch import Tensor

__all__ = [
    "BMM",
    "FLOOR",
    "GramNorm",
    "GramSource",
    "Init",
    "MixedSource",
    "Regression",
    "from_grams",
    "from_task_vectors",
    "given_gram",
    "given_matrices",
    "has_moved",
    "note_unmoved",
    "posterior_mean",
    "regression_bytes",
    "start",
    "unit_gram",
    "uses_data",
]

GramSource: TypeAlias = Literal["auto", "task_vector", "data"]
MixedSource: TypeAlias = Literal["auto", "task_vector", "data", "hybrid"]
GramNorm: TypeAlias = Literal["mean_diagonal", "delta_frobenius", "none"]
Init: TypeAlias = Literal["sum", "mean", "zero"]

BMM = Paper("Bayesian Model Merging", arxiv="2605.12843", year=2026)

_UNMOVED = 1e-12
FLOOR = 1e-8
"""Eigenvalues of Σ G_i, each of trace 1, up to which a direction counts as unseen."""


class Regression(NamedTuple):
    """Minimise Σ b_i tr((Θ − Δ_i) G_i (Θ − Δ_i)ᵀ): Θ C = T.

    Attributes:
        c: C = Σ b_i G_i, (n, n), float64; or, where that is smaller, R with C = RᵀR, (p, n).
        t: Σ b_i Δ_i G_i, (m, n), float64.
        total: Σ Δ_i, (m, n), in their dtype.
        is_rows: c is R.
    """

    c: Tensor
    t: Tensor
    total: Tensor
    is_rows: bool = False

    @property
    def trace(self) -> float:
        """Of C."""
        return float(self.c.square().sum() if self.is_rows else self.c.trace())

    @property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of C."""
        return gram_spectrum(self.c) if self.is_rows else eigh(self.c)

    def scale(self, factor: float) -> None:
        """Multiply all G_i, in place."""
        self.c.mul_(factor**0.5 if self.is_rows else factor)
        self.t.mul_(factor)

    def gradient(self, dtype: torch_types.dtype) -> Callable[[Tensor], Tensor]:
        """Return the gradient 2 (X C − T) as a function of X."""
        c, t = self.c.to(dtype), self.t.to(dtype)
        if self.is_rows:
            return lambda x: ((x @ c.mT) @ c).sub_(t).mul_(2)
        return lambda x: (x @ c).sub_(t).mul_(2)


def regression_bytes(rows: int, columns: int, models: int, _: Mapping[str, Any]) -> int:
    """Return the bytes that building and solving hold: base, anchor, result, three float64 products, C and its vectors."""
    side = min(columns, models * rows)
    return (4 * 4 + 8 * 3) * rows * columns + decomposition_bytes(side) + 2 * 8 * side * columns


def has_moved(squared_norm: float, elements: int) -> bool:
    """Return whether a task vector has a root mean square of 1e-12 or more: a smaller one has no direction."""
    return squared_norm > elements * _UNMOVED**2


def note_unmoved(moved: Sequence[bool]) -> None:
    """Note how many models take no part, where any does not."""
    if not all(moved):
        noted(unmoved_models=len(moved) - sum(moved))


def from_task_vectors(deltas: Any, weight: Any = 1.0, *, normalize: bool = True) -> Regression:
    """Return the regression with G_i = Δ_iᵀΔ_i / ‖Δ_i‖², without the norm unless `normalize`.

    Models that have not moved take no part. Each is loaded once.

    Args:
        deltas: (K, m, n).
        weight: b_i ≥ 0.
    """
    count, m, n = deltas.shape
    few_rows = count * m < n
    c, t, total = None, None, None
    moved = []
    for k, b in enumerate(spread(weight, count)):
        delta = deltas[k]
        if few_rows:
            squares, moment = gram(delta, "rows"), None
        else:
            squares, moment = second_moment(delta)
        norm = float(squares.trace())
        moved.append(has_moved(norm, delta.numel()))
        share = b / (norm if normalize else 1.0) if moved[-1] else 0.0
        if moment is None:
            moment = product(delta.mT, squares, torch.float64).mT
            c = squares.new_empty(count * m, n) if c is None else c
            c[k * m : (k + 1) * m] = delta
            c[k * m : (k + 1) * m] *= share**0.5
        else:
            c = squares.mul_(share) if c is None else c.add_(squares, alpha=share)
        t = moment.mul_(share) if t is None else t.add_(moment, alpha=share)
        total = delta.clone() if total is None else total.add_(delta)
    assert c is not None and t is not None and total is not None, "there is at least one model"
    note_unmoved(moved)
    return Regression(c, t, total, few_rows)


def from_grams(deltas: Any, grams: Matrices, weight: Any = 1.0, *, normalize: bool = False) -> Regression:
    """Return the regression with given G_i, (n, n); with `normalize` each divided by its trace."""
    c, t, total = None, None, None
    for k, b in enumerate(spread(weight, len(grams))):
        delta = deltas[k]
        g = grams[k].to(delta.device, torch.float64)
        trace = float(g.trace()) if normalize else 1.0
        g = g * (b / trace if trace > 0 else 0.0)
        moment = product(delta, g, torch.float64)
        c = g if c is None else c.add_(g)
        t = moment if t is None else t.add_(moment)
        total = delta.clone() if total is None else total.add_(delta)
    assert c is not None and t is not None and total is not None, "there is at least one model"
    return Regression(c, t, total)


def start(init: Init, total: Tensor, count: int) -> Tensor:
    """Return where a solution starts, or stays: the sum of the task vectors, their mean, or zero."""
    return total if init == "sum" else total / count if init == "mean" else torch.zeros_like(total)


def uses_data(source: MixedSource) -> bool:
    """Return whether Gram matrices of data are to be used: "auto" does so where any is given.

    Raises:
        MethodError: "data" or "hybrid", and none is given of any tensor.
    """
    is_given = source != "task_vector" and any(key.startswith("gram/") for key in current().statistics)
    if source in ("data", "hybrid") and not is_given:
        raise MethodError(f"gram: {source}, and no model has Gram matrices", right=collect_command("gram"))
    return is_given


def given_gram(kind: Literal["gram", "outgram"], count: int, side: int) -> Matrices | None:
    """Return the Gram matrices (side, side) given for this tensor; see `given_matrices`.

    They are the statistics `gram/model0/<module>`, of the inputs, or `outgram/…`, of the gradients of the outputs.
    """
    return given_matrices(kind, count, (side, side))


def given_matrices(kind: str, count: int, shape: tuple[int, int]) -> Matrices | None:
    """Return the statistic of a kind that is given for this tensor, one a model, each read when it is asked for.

    None where no model has one. A trailing `.weight` of its name is accepted.

    Raises:
        MethodError: only some models have one, or one is of another shape or not finite.
    """
    call = current()
    tensor = call.place.tensor
    found: list[str | None] = []
    for k in range(count):
        keys = (f"{kind}/model{k}/{tensor}", f"{kind}/model{k}/{module_of(tensor)}")
        found.append(next((key for key in keys if key in call.statistics), None))
    if not any(found):
        return None
    if None in found:
        number = found.index(None)
        raise MethodError(
            f"some models have {kind} of this tensor, and model {number}, counted from 0, has none",
            where=f"statistic {kind}/model{number}/{module_of(tensor)}",
            right=f"one for every model: {collect_command(kind)}",
        )

    def load(k: int) -> Tensor:
        key = str(found[k])
        one: Tensor = call.statistics[key]
        if kind == "fisher" and call.place.transposed and one.dim() == 2:  # it lies as the weights do
            one = one.mT
        where = f"statistic {key}"
        what = "diagonal Fisher" if kind == "fisher" else "Gram matrix"
        if tuple(one.shape) != shape:
            raise MethodError(f"a {what} of shape {tuple(one.shape)}", where=where, right=f"shape {shape}")
        if not bool(torch.isfinite(one).all()):
            raise MethodError(f"a {what} with NaN or Inf", where=where, right="collect it again")
        return one

    return Matrices((count, *shape), load)


def _mixed(deltas: Any, grams: Matrices, mix: float) -> Matrices:
    """Return mix · G_i / tr G_i + (1 − mix) · τ_iᵀτ_i / ‖τ_i‖²."""

    def load(k: int) -> Tensor:
        mine, given = unit_gram(deltas[k]), grams[k].double()
        trace = float(given.trace())
        return mine.mul_(1 - mix).add_(given.to(mine.device), alpha=mix / trace if trace > 0 else 0.0)

    return Matrices(grams.shape, load)


def unit_gram(delta: Tensor, side: Literal["columns", "rows"] = "columns") -> Tensor:
    """Return τᵀτ / ‖τ‖², (n, n), or ττᵀ / ‖τ‖², (m, m), in float64; zeros of a model that has not moved."""
    squares = gram(delta, side)
    norm = float(squares.trace())
    return squares.mul_(1 / norm if has_moved(norm, delta.numel()) else 0.0)


def posterior_mean(
    deltas: Any,
    anchor: Tensor | Init,
    weight: Any,
    precision: float,
    source: MixedSource,
    gram_norm: GramNorm,
    mix: float = 0.5,
) -> Tensor:
    """Return Θ = (T + λ A)(C + λ I)⁻¹: the mean of the posterior whose prior lies around the anchor A, (m, n).

    Args:
        deltas: (K, m, n).
        anchor: the matrix, or how it is made of the task vectors.
        weight: b_i.
        precision: λ of the prior; 0: the regression alone, and the anchor where it says nothing.
        source, gram_norm: where G_i come from, and in what unit they are. Of "hybrid", each is `mix` times that of data and
            1 − mix times that of the task vector, both of trace 1; without one of data, the latter.
    """
    count, columns = len(deltas), deltas.shape[2]
    per_model = gram_norm == "delta_frobenius"
    if uses_data(source):
        grams = given_gram("gram", count, columns)
        if source == "hybrid":
            grams = (
                _mixed(deltas, grams, mix)
                if grams
                else Matrices((count, columns, columns), lambda k: unit_gram(deltas[k]))
            )
        if grams is None:
            noted(fallback="the anchor: no Gram matrices of it")
            return start(anchor, weighted_sum(deltas), count) if isinstance(anchor, str) else anchor
        found = from_grams(deltas, grams, weight, normalize=per_model)
    else:
        found = from_task_vectors(deltas, weight, normalize=gram_norm != "none")
    trace = found.trace
    if isinstance(anchor, str):
        anchor = start(anchor, found.total, count)
    if trace <= 0:
        noted(fallback="the anchor: no model has moved, or none has been given an input")
        return anchor
    if gram_norm == "mean_diagonal":
        found.scale(columns / trace)
        trace = float(columns)
    floor = FLOOR * trace / count
    return gram_solve(found.spectrum, found.t, anchor, lambda values: values / (values + precision), floor)
