"""Spherical interpolation between two models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cuvee.methods.measuring import measured
from cuvee.methods.pieces.sphere import linear_combination, slerp_coefficients
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import ENDPOINT, WEIGHTS, Bound, Fraction, Paper, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper(
        "Animating rotation with quaternion curves (Shoemake)", year=1985, url="https://doi.org/10.1145/325165.325242"
    ),
    on=WEIGHTS,
    base=ENDPOINT,
    models=(2, 2),
    cost="two visits of each tensor",
    arrays=True,
    formula="out = [sin((1−t)φ)·θ_0 + sin(tφ)·θ_1] / sin φ,  cos φ = ⟨θ_0, θ_1⟩ / ‖θ_0‖‖θ_1‖",
    differs="As mergekit. Tensors with |cos φ| > dot_threshold take the straight line: among fine-tunes of one base that "
    "is most of them; the report says how many.",
)
def slerp(
    weights: Tensor, *, t: Fraction, dot_threshold: float = 0.9995, eps: Annotated[float, Bound(0)] = 1e-8
) -> Tensor:
    """Interpolate along the arc between two models, tensor by tensor.

    Args:
        weights: (2, …): the base (t = 0) and the other model (t = 1).
        t: where on the arc; may be a gradient over the layers.
        dot_threshold: beyond this |cosine|, (1 − t)·θ_0 + t·θ_1.
        eps: a tensor with a norm up to this is not normalised: an all-zero one counts as orthogonal.

    Returns:
        (…); equal norms keep that norm.
    """
    gram = measured(Gram(), weights)
    return linear_combination(weights, slerp_coefficients(gram, t, near=dot_threshold, unit_floor=eps))
