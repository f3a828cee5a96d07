"""WUDI: the merged task vector that interferes least with the inputs of every model, in closed form or by Adam."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.methods.combination import Matrices
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.descent import adam
from cuvee.methods.pieces.regression import FLOOR, Init, from_task_vectors, has_moved, regression_bytes, start
from cuvee.methods.pieces.spectral_filters import Filter, RankRule, directions_kept, response_of, times, within
from cuvee.methods.reductions import MeanOfTensors
from cuvee.methods.registry import MATRIX, Bound, Fraction, Paper, merge_method
from cuvee.methods.spectral import gram_solve, product
from cuvee.tensors.lazy_torch import torch

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
    "leaves has about K times the size of one task vector: for language models init: mean, or scaling: 1/K. The knobs "
    "of swudi that are off by default: time_exponent, ridge, gamma, consensus_power, and, as an edit that follows any "
    "method, its filter of outputs (after: [output_filter: …]). What a model shares a direction with is counted among "
    "the models that have moved.",
)
def wudi_merging(
    deltas: Matrices,
    *,
    solver: Literal["closed_form", "adam"] = "closed_form",
    init: Init = "sum",
    filter: Filter = "exponential",
    time: Annotated[float, Bound(0)] = 300.0,
    time_exponent: Annotated[float, Bound(-10, 10)] = 0.0,
    gamma: Annotated[float, Bound(0, open_low=True)] = 1.0,
    ridge: Annotated[float, Bound(0)] = 0.0,
    alpha: Annotated[float, Bound(0)] = 0.01,
    eta_ratio: Annotated[float, Bound(0, 1)] = 0.9,
    steps: Annotated[int, Bound(0)] | None = None,
    lr: Annotated[float, Bound(0)] = 1e-5,
    keep_ratio: Annotated[float, Bound(0, 1, open_low=True)] | None = None,
    rank_rule: RankRule | None = None,
    variance: Annotated[float, Bound(0, 1)] = 0.95,
    consensus_power: Annotated[float, Bound(0)] = 0.0,
    consensus_floor: Fraction = 0.0,
) -> Tensor:
    """Find the task vector that answers the inputs of every model as that model's own task vector does.

    The rows of a task vector span the inputs that it was trained on, so no data is needed.

    Args:
        deltas: (K, m, n). Models that have not moved take no part.
        solver: closed_form, at once and free of scale; adam, as in the paper.
        init: where the solution starts, and stays in directions that are filtered out.
        filter: how far each eigendirection is solved: exponential, gradient flow for so long a `time`; tikhonov, a ridge of
            `alpha`; landweber, so many `steps` of gradient descent; none, exactly.
        time: of filter: exponential, f(λ) = 1 − exp(−λ · time); the longer, the more exactly.
        time_exponent: ρ: each matrix has a time of its own, time · (g / λ_1)^ρ, g the geometric mean of the largest eigenvalues
            of all matrices; 0: all have the same.
        gamma, ridge: of filter: exponential, f(λ) = (1 − exp(−λ · time))^gamma · λ / (λ + ridge).
        alpha: of filter: tikhonov, f(λ) = λ / (λ + alpha).
        eta_ratio: of filter: landweber, f(λ) = 1 − (1 − λ · eta_ratio / λ_1)^steps, λ_1 the largest eigenvalue.
        steps: of filter: landweber, without it 150; of solver: adam, without it 300.
        lr: of solver: adam.
        keep_ratio: the share of eigendirections that are solved for, the leading ones.
        rank_rule: their number by the spectrum of each matrix.
        variance: of rank_rule: cumvar, the share of Σ λ that the directions hold, of which there are as few as possible.
        consensus_power: f is multiplied by consensus_floor + (1 − consensus_floor) · c^consensus_power, where c K is how many
            models, by effective number, share direction q: c = (Σ w_i)² / (K Σ w_i²), w_i = ‖τ_i q‖² / ‖τ_i‖²; 0: it is not.
        consensus_floor: with consensus_power, the least that f is multiplied by.

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
    response = response_of(
        filter,
        time=time,
        gamma=gamma,
        ridge=ridge,
        alpha=alpha,
        steps=150 if steps is None else steps,
        eta_ratio=eta_ratio,
    )
    if keep_ratio is not None:
        response = within(response, lambda values: math.ceil(len(values) * keep_ratio - 1e-9))
    if rank_rule is not None:
        shape = deltas.shape[1:]
        response = within(response, lambda values: directions_kept(rank_rule, values, shape, variance))
    if consensus_power:
        shared = consensus(deltas, spectrum[1]) ** consensus_power
        response = times(response, consensus_floor + (1 - consensus_floor) * shared)
    return gram_solve(spectrum, found.t, anchor, response, FLOOR)


def consensus(deltas: Matrices, directions: Tensor) -> Tensor:
    """Return the share of models, by effective number, that have a part in each direction: in [1 / K, 1], (q,), float64.

    Args:
        deltas: (K, m, n), of which those that have not moved are not counted.
        directions: q of them, unit columns (n, q).
    """
    parts = []
    for delta in deltas:
        size = float(delta.double().square().sum())
        if has_moved(size, delta.numel()):
            parts.append(product(delta, directions, torch.float64).square().sum(0) / size)
    if not parts:
        return directions.new_ones(directions.shape[1], dtype=torch.float64)
    weights = torch.stack(parts)
    weights /= weights.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return 1 / (len(parts) * weights.square().sum(0)).clamp(min=1 / len(parts))
