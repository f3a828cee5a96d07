"""LoRE-Merging: estimate the base that models share, and what each adds to it in few directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cuvee.methods.combination import Matrices, spread
from cuvee.methods.pieces.combine import mean
from cuvee.methods.registry import MATRIX, NONE, WEIGHTS, Bound, Paper, PerModel, merge_method
from cuvee.methods.spectral import holding, spectral_norm, with_singular_values
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "LoRE-Merging: Exploring Low-Rank Estimation For Large Language Model Merging", arxiv="2502.10749", year=2025
    ),
    on=WEIGHTS,
    base=NONE,
    unit=MATRIX,
    others=None,
    workspace=holding(matrices=9),  # mean, estimated base, a model, what it adds, two sums, products
    cost="20 K decompositions; K an iteration, and every model is read as often",
    formula="in turns, `iterations` times: θ̂ = mean(θ_i − δ_i), δ_i = (θ_i − θ̂) with singular values max(s − mu, 0);  "
    "out = θ̂ + scaling · Σ weight_i δ_i",
    differs="From summaries and another's implementation: neither the paper's text nor official code was seen. They weigh by "
    "1/K, and with that and scaling 1 the method converges to the plain average of the models, whatever mu is; so what the "
    "models add is summed here (weight 1). The objective Σ ‖θ̂ + δ_i − θ_i‖² + mu ‖δ_i‖_* would ask for a threshold of mu/2; it "
    "is mu, as theirs.",
    status="reconstruction",
)
def lore_merging(
    models: Any,
    *,
    weight: PerModel[float] = 1.0,
    mu: Annotated[float, Bound(0)] = 0.01,
    mu_unit: Literal["weights", "relative"] = "weights",
    iterations: Annotated[int, Bound(1)] = 20,
    scaling: float = 1.0,
) -> Tensor:
    """Split models without a base into one that they share and low-rank parts, and add the parts up on it.

    Any other method merges the parts where this one, with scaling: 0, is a stage that the other names as its base_model, with
    before: [low_rank: {shrink: mu}].

    Args:
        models: (K, m, n), or the (K, …) blocks of what is no matrix, which is averaged.
        weight: of each model's part in the sum.
        mu: by how much singular values of the parts shrink.
        mu_unit: of mu: weights, as it is; relative: a fraction of the largest singular value of θ_i − mean, the median over the
            models.
        iterations: turns at most; it ends when nothing changes any more.
        scaling: of the sum of the parts.

    Returns:
        (m, n). Equal models give that model.
    """
    average = mean(models)
    if not isinstance(models, Matrices):
        return average
    if mu_unit == "relative":
        tops = [spectral_norm(models[k].sub_(average)) for k in range(len(models))]
        mu *= float(torch.tensor(tops, dtype=torch.float64).median())
    weights, shared, parts = spread(weight, len(models)), average, torch.zeros_like(average)
    for _ in range(iterations):
        added, parts = torch.zeros_like(average), torch.zeros_like(average)
        for k, w in enumerate(weights):
            own = with_singular_values(models[k].sub_(shared), lambda s: (s - mu).clamp(min=0), keep=False)
            added += own
            parts += own * w
        before, shared = shared, average - added / len(models)
        if torch.equal(before, shared):
            break
    return before + scaling * parts
