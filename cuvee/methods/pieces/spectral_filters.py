"""Spectral filters: how much of each eigendirection of C is solved for, and how much stays where it started."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Filter", "RankRule", "Response", "directions_kept", "response_of", "times", "within"]

Response: TypeAlias = "Callable[[Tensor], Tensor]"
"""A filter f: from eigenvalues λ, falling, to shares in [0, 1]."""

Filter: TypeAlias = Literal["none", "exponential", "tikhonov", "landweber"]
RankRule: TypeAlias = Literal[
    "participation_sqrt", "participation", "entropy", "entropy_sq", "stable_rank", "cumvar", "gavish_donoho"
]


def response_of(
    kind: Filter,
    *,
    time: float = 300.0,
    gamma: float = 1.0,
    ridge: float = 0.0,
    alpha: float = 0.01,
    steps: int = 150,
    eta_ratio: float = 0.9,
) -> Response:
    """Return a filter.

    Args:
        kind: "none": 1; "exponential": (1 − exp(−λ · time))^gamma · λ / (λ + ridge), gradient flow where gamma is 1 and ridge
            0; "tikhonov": λ / (λ + alpha), a ridge around the start; "landweber": 1 − (1 − ηλ)^steps, gradient descent,
            with η = eta_ratio / the largest λ.
    """

    def response(values: Tensor) -> Tensor:
        if kind == "exponential":
            return (-torch.expm1(-values * time)) ** gamma * (values / (values + ridge))
        if kind == "tikhonov":
            return values / (values + alpha)
        if kind == "landweber":
            return 1 - (1 - values * (eta_ratio / values[0])).clamp(0, 1) ** steps
        return torch.ones_like(values)

    return response


def times(response: Response, shares: Tensor) -> Response:
    """Return a filter times a share in [0, 1] for each of the leading directions, (q,)."""

    def shared(values: Tensor) -> Tensor:
        f = response(values)
        f[: len(shares)] *= shares
        return f

    return shared


def within(response: Response, kept: Callable[[Tensor], int]) -> Response:
    """Return a filter that is 0 but for the leading directions, as many as `kept(λ)` says."""

    def masked(values: Tensor) -> Tensor:
        f = response(values)
        f[kept(values) :] = 0
        return f

    return masked


def directions_kept(rule: RankRule, values: Tensor, shape: tuple[int, int], variance: float = 0.95) -> int:
    """Return how many directions a rule finds in eigenvalues λ, falling: at least 1, at most all.

    Args:
        rule: "participation_sqrt": (Σ√λ)² / Σλ; "participation": (Σλ)² / Σλ²; "entropy": exp of the entropy of λ / Σλ, or of
            λ² / Σλ² ("entropy_sq"); "stable_rank": Σλ² / λ_1²; "cumvar": the fewest that hold `variance` of Σλ;
            "gavish_donoho": those with √λ over ω times the median, ω by the shape of the matrix.
        values: (n,), float64, positive.
        shape: (m, n) of the matrix.
    """
    if rule == "cumvar":
        found = int((values.cumsum(0) < variance * values.sum()).sum()) + 1
    elif rule == "gavish_donoho":
        roots = values.sqrt()
        found = int((roots > _threshold_ratio(min(shape) / max(shape)) * roots.median()).sum())
    else:
        found = math.ceil(_effective_rank(rule, values) * (1 - 1e-12))
    return min(max(found, 1), len(values))


def _effective_rank(rule: RankRule, values: Tensor) -> float:
    if rule == "stable_rank":
        return float(values.square().sum() / values[0].square())
    if rule in ("entropy", "entropy_sq"):
        mass = values if rule == "entropy" else values.square()
        return float(torch.special.entr(mass / mass.sum()).sum().exp())
    sizes = values.sqrt() if rule == "participation_sqrt" else values
    return float(sizes.sum().square() / sizes.square().sum())


def _threshold_ratio(aspect: float) -> float:
    """Return ω(β) of Gavish and Donoho, with the approximation of the median that the official code of WUDI has."""
    edge = math.sqrt(2 * (aspect + 1) + 8 * aspect / (aspect + 1 + math.sqrt(aspect**2 + 14 * aspect + 1)))
    median = math.sqrt(2 + math.sqrt(3)) if aspect > 0.9999 else math.sqrt((1 - aspect) ** 2 + aspect)
    return edge / median
