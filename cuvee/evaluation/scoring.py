"""Scores: bits per byte on held-out text, and how much of the experts' gains a merge has kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cuvee.errors import ResourceError

__all__ = ["DEFINITION", "Kind", "Row", "ScoreBoard", "recovered"]

Kind = Literal["base", "expert", "merge"]

DEFINITION = (
    "Scores are bits per byte on held-out text: lower is better. Normalised score: the share of each expert's gain over "
    "the base, on its own domain, that a model has, averaged over the experts' domains; the base has 0 %, an expert "
    "on its own domain 100 %, below 0 % is worse than the base."
)


def recovered(base: float, expert: float, model: float) -> float:
    """Return the share of the expert's gain over the base that a model has: 0 for the base's score, 1 for the expert's.

    Raises:
        ResourceError: the expert is no better than the base.
    """
    if expert >= base:
        raise ResourceError(
            f"an expert scores {expert:.3f} bits per byte on its own domain, the base {base:.3f}: it has learned nothing",
            right="remove the trained models, and run again",
        )
    return (base - model) / (base - expert)


@dataclass(frozen=True)
class Row:
    """One model's scores.

    Attributes:
        name: of the model; an expert's is that of its domain.
        kind: base, expert or merge.
        bits: by domain.
    """

    name: str
    kind: Kind
    bits: Mapping[str, float]


@dataclass(frozen=True)
class ScoreBoard:
    """All models' scores.

    Attributes:
        titles: of the domains, by name, in the order of columns.
        rows: the base, the experts, the merges.
    """

    titles: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def base(self) -> Row:
        """The row of the base."""
        return next(row for row in self.rows if row.kind == "base")

    @property
    def experts(self) -> Mapping[str, Row]:
        """The experts' rows by domain."""
        return {row.name: row for row in self.rows if row.kind == "expert"}

    @property
    def merges(self) -> Sequence[Row]:
        """The merges, best first."""
        return sorted((row for row in self.rows if row.kind == "merge"), key=self.normalised, reverse=True)

    def recovered(self, row: Row) -> dict[str, float]:
        """Return what a model has of each expert's gain, by the expert's domain."""
        base = self.base.bits
        return {name: recovered(base[name], own.bits[name], row.bits[name]) for name, own in self.experts.items()}

    def normalised(self, row: Row) -> float:
        """Return the mean of `recovered`."""
        shares = self.recovered(row).values()
        return math.fsum(shares) / len(shares)
