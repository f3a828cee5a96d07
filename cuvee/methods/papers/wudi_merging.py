"""WUDI: the merged task vector that interferes least with the inputs of every model, in closed form or by Adam."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.methods.combination import Matrices
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.descent import adam
from cuvee.methods.pieces.regression import FLOOR, Init, from_task_vectors, regression_bytes, start
from cuvee.methods.pieces.spectral_filters import Filter, RankRule, directions_kept, response_of, within
from cuvee.methods.reductions import MeanOfTensors
from cuvee.methods.registry import MATRIX, Bound, Paper, merge_method
from cuvee.methods.spectral import gram_solve

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors",
        arxiv="2503.08099",
        year=2025,
    ),
    unit=MATRIX,
    workspace=regression_bytes,
    cost="1 eigendecomposition; of the input side; adam: steps · 2 m n² operations",
    formula="C = Σ τ_iᵀτ_i / ‖τ_i‖² = Q diag(λ) Qᵀ,  T = Σ τ_i τ_iᵀτ_i / ‖τ_i‖²;  "
    "X = X_0 + (T Q diag(1/λ) − X_0 Q) diag(f(λ)) Qᵀ;  out = θ_0 + scaling · X",
    differs="The paper minimises Σ ‖(X − τ_i) τ_iᵀ‖² / ‖τ_i‖² by 300 steps of Adam (solver: adam), whose path has an absolute "
    "length of steps · lr: task vectors that are much smaller or larger behave otherwise. The closed forms are those "
    "of arXiv 2606.07289: iwudi (filter: exponential, the default), swudi (and keep_ratio: 0.65), aswudi (filter: "
    "none, rank_rule: participation_sqrt). Directions with eigenvalues of 1e-8 or less stay where they start. The "
    "official code of the paper leaves all but the linear layers of the encoder at the base (others: base); that of "
    "the closed forms solves for embeddings too (not_matrix: [lm_head.weight]). With init: sum, what the filter "
    "leaves has about K times the size of one task vector: for language models init: mean, or scaling: 1/K. Of the "
    "knobs of swudi that are off by default time_exponent is here; its mix with Tikhonov, filter of outputs and weights of "
    "consensus are not, since their formulas were not seen.",
)
def wudi_merging(
    deltas: Matrices,
    *,
    solver: Literal["closed_form", "adam"] = "closed_form",
    init: Init = "sum",
    filter: Filter = "exponential",
    time: Annotated[float, Bound(0)] = 300.0,
    time_exponent: float = 0.0,
    alpha: Annotated[float, Bound(0)] = 0.01,
    eta_ratio: Annotated[float, Bound(0, 1)] = 0.9,
    steps: Annotated[int, Bound(0)] | None = None,
    lr: Annotated[float, Bound(0)] = 1e-5,
    keep_ratio: Annotated[float, Bound(0, 1, open_low=True)] | None = None,
    rank_rule: RankRule | None = None,
    variance: Annotated[float, Bound(0, 1)] = 0.95,
) -> Tensor:
    """Find the task vector that answers the inputs of every model as that model's own task vector does.

    The rows of a task vector span the inputs that it was trained on, so no data is needed.

    Args:
        deltas: (K, m, n). Models that have not moved take no part.
        solver: closed_form, at once and free of scale; adam, as in the paper.
        init: where the solution starts, and stays in directions that are filtered out.
        filter: how far each eigendirection is solved: exponential, gradient flow for so long a `time`; tikhonov, a ridge of
            `alpha`; landweber, so many `steps` of gradient descent (without it 150) with step size eta_ratio / the largest
            eigenvalue; none, exactly.
        time_exponent: ρ: each matrix has a time of its own, time · (g / λ_1)^ρ, g the geometric mean of the largest eigenvalues
            of all matrices; 0: all have the same.
        steps: also those of adam; without it 300.
        lr: of adam.
        keep_ratio: the share of eigendirections that are solved for, the leading ones.
        rank_rule: their number by the spectrum of each matrix; `variance` belongs to cumvar.

    Returns:
        (m, n). One model gives its own task vector.
    """
    found = from_task_vectors(deltas)
    anchor = start(init, found.total, len(deltas))
    if solver == "adam":
        return adam(anchor.clone(), found.gradient(anchor.dtype), 300 if steps is None else steps, lr)
    spectrum = found.spectrum
    top = float(spectrum[0].max()) if time_exponent and len(spectrum[0]) else 0.0
    if top > 0:
        said = anchor.new_tensor(math.log(top), dtype=spectrum[0].dtype).expand(anchor.numel())
        time *= math.exp(time_exponent * (measured(MeanOfTensors(), said, scope="model") - math.log(top)))
    response = response_of(filter, time=time, alpha=alpha, steps=150 if steps is None else steps, eta_ratio=eta_ratio)
    if keep_ratio is not None:
        response = within(response, lambda values: math.ceil(len(values) * keep_ratio - 1e-9))
    if rank_rule is not None:
        shape = deltas.shape[1:]
        response = within(response, lambda values: directions_kept(rank_rule, values, shape, variance))
    return gram_solve(spectrum, found.t, anchor, response, FLOOR)
