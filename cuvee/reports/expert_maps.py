"""Maps of experts: layer by role, how far their task vectors go and where they interfere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cuvee.engine.comparing import Comparison, Contrast
from cuvee.errors import printable

__all__ = ["HeatMap", "expert_maps"]

_LOWEST_END = 0.8


@dataclass(frozen=True)
class HeatMap:
    """Numbers by row and column.

    Attributes:
        title: what they are.
        rows: their names.
        values: for each row one number a layer; NaN where there is none.
        as_share: True to print the scale in percent.
    """

    title: str
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    as_share: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """The ends of the scale: the smallest and the largest number, zeros not counted.

        Where they are close, the scale begins lower, so that noise does not look like a difference.
        """
        known = [value for row in self.values for value in row if not math.isnan(value) and value != 0]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        return min(low, _LOWEST_END * high) if high > 0 else low, high


def expert_maps(found: Comparison) -> list[HeatMap]:
    """Return layer by role: how far the experts have gone, and where they interfere."""
    nothing = Contrast.none(len(found.experts))
    cells = found.by(lambda place: (place.stack, place.layer, place.role))
    maps = []
    for stack, length in found.stacks.items():
        roles = [role for role in found.roles if any((stack, layer, role) in cells for layer in range(length))]
        rows = [[cells.get((stack, layer, role), nothing) for layer in range(length)] for role in roles]
        of = f" in {printable(stack)}" if len(found.stacks) > 1 else ""
        maps.append(HeatMap(f"‖τ‖/‖θ₀‖{of}", roles, [[cell.mean_ratio for cell in row] for row in rows]))
        if len(found.experts) > 1:
            shares = [[cell.interference for cell in row] for row in rows]
            maps.append(HeatMap(f"interference{of}", roles, shares, as_share=True))
    return maps
