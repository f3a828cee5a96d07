"""RobustMerge, first called CoPA-Merging: the factors of adapters trimmed, and lifted by what the trim took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.calls import current
from cuvee.methods.measuring import each
from cuvee.methods.pieces.combine import mean, weighted_sum
from cuvee.methods.pieces.factors import down_beside, is_down, is_up, rank_gain
from cuvee.methods.pieces.trim import keep_largest
from cuvee.methods.registry import ADAPTERS, NONE, Fraction, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "RobustMerge: Parameter-Efficient Model Merging for MLLMs with Direction Robustness",
        arxiv="2502.17159",
        year=2025,
    ),
    on=ADAPTERS,
    base=NONE,
    formula="Â_i, B̂_i keep the largest entries;  c_i = Σ|A_i| / Σ|Â_i| along each row, lifted to the clamp_top largest;  "
    "A = factor_scale · Σ Â_i,  B = factor_scale · Σ c_i B̂_i / Σ c_i",
    differs="As the official code, which adds up A and averages B, and multiplies both by 2, so that B A holds B̂_i Â_j of "
    "different adapters too. A row that the trim leaves empty counts with c = 1 before it is lifted (0/0 there). What is no "
    "factor (saved modules, biases, magnitudes) is averaged.",
)
def copa_merging(
    factors: Tensor, *, density: Fraction = 0.2, clamp_top: Fraction = 0.2, factor_scale: float = 2.0
) -> Tensor:
    """Merge LoRA adapters of one base into one adapter of the same rank.

    Models are the folders of adapters, of one rank, lora_alpha and target modules; the output is a folder like them, with the
    adapter_config.json of the first.

    Args:
        factors: (K, …): one factor, or another tensor, of every adapter.
        density: share of entries kept of each factor, all that reach its threshold.
        clamp_top: share of ranks whose c stays as it is; the others get the smallest of theirs.
        factor_scale: coefficient of both factors, so its square of their product.

    Returns:
        (…). One adapter does not come out as it went in, unless density and factor_scale are 1.
    """
    tensor = current(factors[0]).place.tensor
    if is_down(tensor):
        return weighted_sum(each(keep_largest, factors, density, inclusive=True), factor_scale)
    if not is_up(tensor):
        return mean(factors)
    kept = each(keep_largest, factors, density, inclusive=True)
    gains = [rank_gain(down_beside(tensor, k, factors), density, clamp_top) for k in range(len(factors))]
    shares = [gain / sum(gains) for gain in gains]
    return weighted_sum(kept, [share.reshape(-1, *[1] * (factors.dim() - 3)) for share in shares]) * factor_scale
