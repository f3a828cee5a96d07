"""OptMerge (WUDI v2): interference measured on the leading inputs of each task vector, against its truncation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.methods.calls import noted
from cuvee.methods.combination import Matrices
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.pieces.descent import adam, momentum_descent
from cuvee.methods.pieces.regression import FLOOR, Init, Regression, has_moved, note_unmoved, start
from cuvee.methods.pieces.spectral_filters import Filter, response_of
from cuvee.methods.registry import MATRIX, Bound, Paper, merge_method
from cuvee.methods.spectral import decomposition_bytes, gram_solve, svd, truncated
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def optmerge_bytes(rows: int, columns: int, models: int, _: Mapping[str, Any]) -> int:
    """Return the bytes that it holds: base, sum, anchor, result; a task vector, its parts and T in float64; the probes."""
    side = min(rows, columns)
    return (4 * 4 + 8 * 6) * rows * columns + 3 * 8 * side * columns + decomposition_bytes(side)


@merge_method(
    paper=Paper(
        "Unifying Multimodal Large Language Model Capabilities and Modalities via Model Merging",
        arxiv="2505.19892",
        year=2025,
    ),
    unit=MATRIX,
    workspace=optmerge_bytes,
    cost="K + 1 decompositions; with center 2 K + 1; sgd and adam: steps · 4 m n min(m, n) operations",
    formula="τ_i ≈ U_i S_i V_iᵀ, rank r;  L_i = S_i V_iᵀ;  t_i = U_i S_i V_iᵀ;  "
    "X → argmin Σ ‖(X − t_i) L_iᵀ‖² / ‖τ_i‖², from X_0, as far as f(λ) goes;  out = θ_0 + scaling · X",
    differs="The official code has two flavours: for merged LoRA experts solver: sgd, init: mean; for fully fine-tuned ones "
    "solver: adam, init: sum, center: true (t_i is then the mean plus the truncation of τ_i − mean), with scaling: 0.1 for "
    "large models. The closed form is ours, and stops short of where the iterations would lead, as they do (filter: "
    "exponential, as in wudi_merging; none solves exactly, which weak directions make many times larger than any task "
    "vector); outside the probed inputs it stays at init. The official code keeps all that is no matrix, and the vision "
    "tower, at the base (others: base).",
)
def optmerge(
    deltas: Matrices,
    *,
    solver: Literal["closed_form", "sgd", "adam"] = "closed_form",
    init: Init = "mean",
    center: bool = False,
    rank_ratio: Annotated[float, Bound(0, 1, open_low=True)] | None = None,
    filter: Filter = "exponential",
    time: Annotated[float, Bound(0)] = 300.0,
    alpha: Annotated[float, Bound(0)] = 0.01,
    steps: Annotated[int, Bound(0)] = 300,
    lr: Annotated[float, Bound(0)] | None = None,
    momentum: Annotated[float, Bound(0, 1, open_high=True)] = 0.9,
) -> Tensor:
    """Find the task vector that answers the leading inputs of every model as that model's truncated task vector does.

    Args:
        deltas: (K, m, n). Models that have not moved take no part.
        solver: closed_form, at once; sgd and adam, as in the official code.
        init: where the solution starts, and stays outside the inputs that are probed.
        center: keep the mean whole, and truncate what each task vector differs from it by.
        rank_ratio: the share of min(m, n) directions that a model is truncated to; without it 1 / K.
        filter, time, alpha: how far the closed form solves each eigendirection; see `wudi_merging`.
        steps, momentum: of sgd and adam; steps also of filter: landweber.
        lr: of those; without it 1e-4 and 1e-5.

    Returns:
        (m, n). One model gives its own task vector.
    """
    found = probed(deltas, center, rank_ratio)
    anchor = start(init, found.total, len(deltas))
    if solver == "closed_form":
        response = response_of(filter, time=time, alpha=alpha, steps=steps)
        return gram_solve(found.spectrum, found.t, anchor, response, FLOOR)
    if solver == "adam":
        return adam(anchor.clone(), found.gradient(anchor.dtype), steps, 1e-5 if lr is None else lr)
    rate = 1e-4 if lr is None else lr
    return momentum_descent(anchor.clone(), found.gradient(anchor.dtype), steps, rate, momentum)


def probed(deltas: Matrices, center: bool, rank_ratio: float | None) -> Regression:
    """Return the regression of targets t_i on G_i = L_iᵀL_i / ‖τ_i‖², held as the rows L_i / ‖τ_i‖."""
    count, m, n = deltas.shape
    rank = max(1, min(m, n) // count if rank_ratio is None else int(min(m, n) * rank_ratio))
    total = weighted_sum(deltas)
    middle = total / count if center else None
    probes, moved, t = [], [], total.new_zeros((m, n), dtype=torch.float64)
    for delta in deltas:
        squared = float(delta.double().square().sum())
        moved.append(has_moved(squared, delta.numel()))
        if not moved[-1]:
            continue
        u, s, vh = svd(delta.double(), rank)
        probes.append(s[:, None] * vh / squared**0.5)
        if middle is None:
            t.addmm_(u * s**3, vh, alpha=1 / squared)
        else:
            target = truncated((delta - middle).double(), rank).add_(middle)
            t.addmm_(target @ vh.mT * s**2, vh, alpha=1 / squared)
    note_unmoved(moved)
    noted(rank=[len(probe) for probe in probes])
    return Regression(torch.cat(probes) if probes else t[:0], t, total, is_rows=True)
