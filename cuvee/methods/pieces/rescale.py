"""Rescale a sparsified task vector, so that dropping entries does not shrink it: where libraries differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cuvee.methods.measuring import measured
from cuvee.methods.reductions import Sums

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rescale", "rescale_kept"]

Rescale = Literal["l1", "expected", "none"] | bool
_FLOOR = 1e-7


def rescale_kept(kept: Tensor, delta: Tensor, rescale: Rescale, probability: float | Tensor) -> Tensor:
    """Scale what was kept of `delta`.

    Args:
        kept: (…), `delta` with entries zeroed, in memory of its own: it is scaled in place.
        rescale: "l1" (or True) gives the tensor its old Σ|x| back, unless either sum is below 1e-7 (mergekit);
            "expected" divides each entry by its own probability of being kept (the papers); "none" (or False).
        probability: of being kept, one or one an entry.

    Source: DARE, arXiv 2311.03099; DELLA, arXiv 2406.11617; mergekit's `rescale`.
    """
    if rescale == "expected":
        kept /= probability
        return kept
    if rescale is False or rescale == "none":
        return kept
    before, after = measured(Sums("abs"), (delta, kept))
    if before < _FLOOR or after < _FLOOR:
        return kept
    kept *= float(before / after)
    return kept
