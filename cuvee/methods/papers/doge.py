"""DOGE: task arithmetic with a shared correction, learned by projected gradient descent without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cuvee.methods.combination import Matrices
from cuvee.methods.measuring import measured_each
from cuvee.methods.pieces.descent import adam
from cuvee.methods.pieces.regression import has_moved, note_unmoved
from cuvee.methods.reductions import Ranks
from cuvee.methods.registry import MATRIX, Bound, Paper, merge_method
from cuvee.methods.spectral import decomposition_bytes, svd
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.order import digits_of

if TYPE_CHECKING:
    from torch import Tensor


def doge_bytes(rows: int, columns: int, models: int, _: Mapping[str, Any]) -> int:
    """Return the bytes that it holds: all task vectors, base, result, the correction and its descent, the subspace."""
    side = min(rows, columns)
    return 4 * ((models + 9) * rows * columns + 3 * rows * side) + decomposition_bytes(side)


@dataclass(frozen=True)
class KeepPercent:
    """How many of n elements reach the threshold of the official code: int(n · percent / 100) and one more."""

    percent: float

    def __call__(self, n: int) -> tuple[int, ...]:
        return (min(n, int(n * self.percent / 100) + 1),)


@merge_method(
    paper=Paper(
        "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent", arxiv="2501.01230", year=2025
    ),
    unit=MATRIX,
    others="base",
    workspace=doge_bytes,
    cost="two rounds over the model; K + 1 decompositions; steps · (4 K + 4 r) m n operations, r = min(m, n) / subspace",
    formula="λ_i = lambda_ / ‖τ_i‖;  E = argmin Σ ‖rowsum(τ_i ∘ (τ_i − Σ_j λ_j (τ_j + E)))‖², gradients less their part in the "
    "shared subspace;  out = θ_0 + scaling · Σ λ_i · top_i ∘ (τ_i + E)",
    differs="As the official code: the projection is of gradients, and Adam leaves the complement again; the official "
    "code works on the encoder's weights only (its 0.07 is tuned for CLIP: each matrix of the result has a norm of about "
    "0.07 √K whatever the task vectors are). A model that has not moved takes no part.",
)
def doge(
    deltas: Matrices,
    *,
    lambda_: Annotated[float, Bound(0)] = 0.07,
    subspace: Annotated[int, Bound(1)] = 6,
    keep_percent: Annotated[float, Bound(0, 100)] = 30,
    steps: Annotated[int, Bound(0)] = 400,
    lr: Annotated[float, Bound(0)] = 1e-4,
) -> Tensor:
    """Add task vectors of equal length, corrected so that they disturb one another less, and only where each is large.

    Args:
        deltas: (K, m, n).
        lambda_: the length that each task vector is given in every matrix.
        subspace: the gradients' part in the leading min(m, n) / subspace directions that models share is left out.
        keep_percent: the elements of each model that count, by magnitude over all matrices of the model.
        steps, lr: of Adam; each element of the correction moves by at most about lr a step.

    Returns:
        (m, n).
    """
    thresholds = [0.0] * len(deltas)
    if keep_percent < 100:
        ranks = Ranks(KeepPercent(keep_percent), resolve_ties=False, digits=digits_of(deltas[0].dtype))
        thresholds = [ranked.value for (ranked,) in measured_each(ranks, deltas, scope="model")]
    count, m, n = deltas.shape
    together = deltas[0].new_empty(m, count, n)  # rows of all models side by side
    for k, delta in enumerate(deltas):
        together[:, k] = delta
    norms = [float(torch.linalg.vector_norm(together[:, k], dtype=torch.float64)) for k in range(count)]
    moved = [has_moved(norm**2, m * n) for norm in norms]
    note_unmoved(moved)
    lambdas = [lambda_ / norm if there else 0.0 for norm, there in zip(norms, moved, strict=True)]
    correction = adam(torch.zeros_like(delta), _projected_gradient(together, lambdas, subspace), steps, lr)
    merged = torch.zeros_like(delta)
    for k, (threshold, share) in enumerate(zip(thresholds, lambdas, strict=True)):
        kept = together[:, k].abs() >= threshold
        merged += share * (together[:, k] + correction) * kept
    return merged


def _projected_gradient(together: Tensor, lambdas: list[float], subspace: int) -> Callable[[Tensor], Tensor]:
    """Return the gradient of Σ ‖rowsum(τ_i ∘ (τ_i − Σ_j λ_j (τ_j + E)))‖² at E, outside the shared subspace.

    What it returns is overwritten by the next call.

    Args:
        together: (m, K, n).
    """
    m, count, n = together.shape
    weight = together.new_tensor(lambdas)
    total = weight.sum()
    leading = [svd(together[:, k], min(m, n) // count).u for k in range(count)]
    shared = svd(torch.cat(leading, 1), min(m, n) // subspace).u
    # rowsum(τ_i ∘ (τ_i − Σ λ_j τ_j)), (m, 1, K), by the Gram matrix of each row; both factors of a step have −2 Σ λ_j
    products = together @ together.mT
    own = (products.diagonal(dim1=1, dim2=2) - products @ weight)[:, None]
    own *= -2 * total
    slope = float(2 * total * total)
    g = together.new_empty(m, n)

    def gradient(e: Tensor) -> Tensor:
        left = torch.baddbmm(own, e[:, None], together.mT, alpha=slope)
        torch.bmm(left, together, out=g[:, None])
        return g.addmm_(shared, shared.mT @ g, alpha=-1)

    return gradient
