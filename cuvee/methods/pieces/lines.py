"""LiNeS: scale a merged task vector by depth, little in the first layers, much in the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cuvee.methods.calls import current
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.reductions import Sums
from cuvee.methods.registry import Bound, Paper, Role, edit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["lines"]


@edit(
    role=Role.REFINER,
    arrays=True,
    paper=Paper("LiNeS: Post-training Layer Scaling", arxiv="2410.17146", year=2024),
    once="scaled by depth twice, layers are scaled by a product that grows with depth no more evenly",
    cost="two rounds over the model; with a number for alpha one pass",
    formula="alpha: auto = ‖Σ τ_i‖₁ / (K ‖τ‖₁) over the model,  beta = 1 − alpha without a value;  "
    "τ_l ← (alpha + beta · l / (L − 1)) · τ_l in layer l = 0 … L − 1,  alpha · τ outside the layers",
    differs='The official code finds layers by ".l." anywhere in a name, also of an expert or a convolution; here they are '
    "those of the architecture, each stack with its own L. A single layer, 0 / 0 there, is the last. The head is scaled by "
    "alpha though it comes last, as there (head: deep: as the last layer). Of several tasks the paper searches beta on "
    "validation data; here it is 1 − alpha, as there of one task, where nothing is said.",
)
def lines(
    merged: Tensor,
    deltas: Tensor,
    *,
    alpha: float | Literal["auto"] = "auto",
    beta: float | None = None,
    num_blocks: Annotated[int, Bound(1)] | None = None,
    head: Literal["shallow", "deep"] = "shallow",
) -> Tensor:
    """Scale the merged task vector by alpha + beta · l / (L − 1) in layer l of L, and by alpha outside the layers.

    Args:
        alpha: scale of the first layer; auto: ‖Σ τ_i‖₁ / (K ‖merged‖₁) over the model, which is 1/K for a sum.
        beta: what the last layer has more; without it 1 − alpha.
        num_blocks: L; without it the number of layers of the stack that a tensor belongs to. A single layer is the last.
        head: the head is scaled as in the official code, by alpha ("shallow"), or as the last layer ("deep").
    """
    place = current(merged).place
    first = _first_scale(merged, deltas) if alpha == "auto" else float(alpha)
    rest = 1 - first if beta is None else beta
    layers = num_blocks or place.layers
    if place.layer is not None:
        depth = min(1.0, place.layer / (layers - 1)) if layers > 1 else 1.0
    else:
        depth = float(head == "deep" and place.role == "head")
    return merged * (first + rest * depth)


def _first_scale(merged: Tensor, deltas: Tensor) -> float:
    total, found = measured(Sums("abs"), [weighted_sum(deltas, 1.0), merged], scope="model")
    return float(total / found) / len(deltas) if found > 0 else 1 / len(deltas)
