"""The Riemannian (Karcher) mean of models on the sphere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cuvee.methods.measuring import measured
from cuvee.methods.pieces.sphere import linear_combination
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import MEMBER, WEIGHTS, Bound, Paper, merge_method

if TYPE_CHECKING:
    from typing import Annotated

    from numpy.typing import NDArray
    from torch import Tensor
else:
    from typing import Annotated

_ANTIPODAL = 1e-6
"""The sine of an angle near π up to which there is no one way to go: a cosine rounded in its last bit moves it by 1e-8."""


@merge_method(
    paper=Paper("Functionality-Oriented LLM Merging on the Fisher-Rao Manifold", arxiv="2603.04972", year=2026),
    on=WEIGHTS,
    base=MEMBER,
    cost="two visits of each tensor",
    arrays=True,
    formula="out = (mean ‖θ_i‖) · argmin_u Σ angle(u, θ_i)²",
    differs="As mergekit (equal weights, a base is one more model), iterated on the K×K Gram matrix in float64.",
)
def karcher(
    weights: Tensor, *, max_iter: Annotated[int, Bound(1)] = 10, tol: Annotated[float, Bound(0)] = 1e-5
) -> Tensor:
    """Take the mean direction on the sphere and the mean norm of K tensors.

    Args:
        weights: (K, …). A tensor with a norm up to `tol` has no direction, but counts in the mean norm.
        max_iter: steps of the fixed-point iteration.
        tol: it stops at a step shorter than this.

    Returns:
        (…); all-zero tensors give zeros.
    """
    if len(weights) == 1:
        return weights[0]
    gram = measured(Gram(), weights)
    return linear_combination(weights, _karcher_coefficients(gram, max_iter, tol))


def _karcher_coefficients(gram: NDArray[np.float64], max_iter: int, tol: float) -> NDArray[np.float64]:
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    kept = norms > tol
    if not kept.any():
        return np.zeros(len(norms))
    inverse = np.where(kept, 1.0 / np.where(kept, norms, 1.0), 0.0)
    cosines = gram * np.outer(inverse, inverse)  # of the unit vectors; zero where one was dropped
    share = kept / kept.sum()

    def length(u: NDArray[np.float64]) -> float:
        return float(np.sqrt(max(u @ cosines @ u, 0.0)))

    u = share.copy()
    u = u / length(u) if length(u) > tol else np.eye(len(u))[int(np.argmax(kept))]
    for _ in range(max_iter):
        d = np.clip(cosines @ u, -1.0, 1.0)
        theta = np.arccos(d)
        sine = np.sin(theta)
        moving = kept & (theta >= tol) & (sine > _ANTIPODAL)
        pull = np.where(moving, share * theta / np.where(moving, sine, 1.0), 0.0)
        tangent = pull - (pull @ d) * u
        step = length(tangent)
        if step <= tol:
            break
        u = np.cos(step) * u + np.sin(step) * tangent / step
        u = u / length(u)
    return u * inverse * norms.mean()
