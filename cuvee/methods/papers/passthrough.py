"""Passthrough: one model as it is, scaled where asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.registry import NONE, WEIGHTS, Paper, PerModel, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    paper=Paper("Passthrough (frankenmerges)", url="https://github.com/arcee-ai/mergekit"),
    on=WEIGHTS,
    base=NONE,
    models=(1, 1),
    status="community",
    arrays=True,
    formula="out = scale · θ",
    differs="As mergekit.",
)
def passthrough(weights: Tensor, *, scale: PerModel[float] | None = None) -> Tensor:
    """Copy a model's tensors, times `scale`.

    Args:
        weights: (1, …).
        scale: a factor, usually by filter: 0 on o_proj and down_proj makes a duplicated layer the identity.

    Returns:
        (…); the same bits where no scale is given.
    """
    (only,) = weights
    factor = scale[0] if isinstance(scale, list | tuple) else scale
    return only if factor is None else only * factor
