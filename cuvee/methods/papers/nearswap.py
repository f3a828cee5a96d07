"""NearSwap: move each weight towards another model by at most t."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.measuring import each
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import Bound, Paper, merge_method
from cuvee.tensors.rows import Act, Row

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("NearSwap (alchemonaut)", url="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"),
    models=(1, 1),
    status="community",
    arrays=True,
    formula="out = θ_0 + clamp(t / |τ|, 0, 1) · τ",
    differs="As mergekit. A step below half the spacing of a low-precision output dtype vanishes in rounding.",
)
def nearswap(deltas: Tensor, *, t: Annotated[float, Bound(0)]) -> Tensor:
    """Move every weight of the base towards the other model, by at most t.

    Args:
        deltas: (1, …).
        t: the largest step, in units of a weight (about 1e-4), not a share.
    """
    return weighted_sum(each(shorten, deltas, t))


def shorten(delta: Tensor, t: float) -> Tensor:
    """Return clamp(t / |τ|, 0, 1) · τ."""
    if isinstance(delta, Row):
        return delta.then(Act.SHORTEN, t)
    return delta * (abs(delta).clamp(min=1e-6).reciprocal() * t).clamp(0, 1)
