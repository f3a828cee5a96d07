"""Layer swapping: the outer layers of a language expert around the middle ones of a task expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.errors import MethodError
from cuvee.methods.calls import Place, current
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import NONE, WEIGHTS, Bound, Fraction, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor

Count = Annotated[int, Bound(0)]


@merge_method(
    paper=Paper("Layer Swapping for Zero-Shot Cross-Lingual Transfer in LLMs", arxiv="2410.01335", year=2024),
    on=WEIGHTS,
    base=NONE,
    models=(2, 2),
    arrays=True,
    formula="layers 0 … bottom−1 and the last `top` of θ_1 (language), those between of θ_0 (task);  "
    "at both seams, and outside the layers, (1−t)·θ_0 + t·θ_1",
    differs="No official code was found; the numbers are the paper's for 32 layers. That what lies outside the layers is "
    "averaged is an assumption.",
)
def layer_swapping(
    weights: Tensor,
    *,
    bottom: Count | None = None,
    top: Count | None = None,
    transition_bottom: Count | None = None,
    transition_top: Count | None = None,
    t: Fraction = 0.5,
) -> Tensor:
    """Take the first and last layers from a language expert and the others from a task expert of the same base.

    Args:
        weights: (2, …): the task expert, then the language expert.
        bottom: how many first layers are the language expert's; without it 5 of 32, in proportion, at least one
            where there are two.
        top: how many last layers are; without it 2 of 32, at least one where there are three.
        transition_bottom, transition_top: how many layers within them are averaged; without it one, where there is room.
        t: share of the language expert in an average.

    Raises:
        MethodError: there are fewer layers than these.
    """
    place = current(None).place
    # one layer at least is the task expert's, where nobody says otherwise
    bottom = min(max(1, place.layers * 5 // 32), max(0, place.layers - 1)) if bottom is None else bottom
    top = min(max(1, place.layers * 2 // 32), max(0, place.layers - 2)) if top is None else top
    seam = int(bottom + top + 2 <= place.layers)
    low, high = (seam if given is None else given for given in (transition_bottom, transition_top))
    share = _share(place, bottom, top, low, high, t) if place.layers else t
    return weights[int(share)] if share in (0.0, 1.0) else weighted_sum(weights, [1 - share, share])


def _share(place: Place, bottom: int, top: int, low_seam: int, high_seam: int, t: float) -> float:
    """Return the share of the language expert in a layer."""
    needed, layers = bottom + top + low_seam + high_seam, place.layers
    if needed > layers:
        raise MethodError(
            f"{needed} layers are swapped or averaged, and the model has {layers}",
            right=f"bottom, top and both transitions that make {layers} at most, or leave them out",
        )
    layer = place.layer or 0
    from_top = layers - 1 - layer
    if layer < bottom or from_top < top:
        return 1.0
    return t if layer < bottom + low_seam or from_top < top + high_seam else 0.0
