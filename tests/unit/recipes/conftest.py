"""Small methods and edits that exist only in these tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from cuvee.errors import CuveeError, Problems
from cuvee.methods import registry
from cuvee.methods.registry import (
    DELTAS,
    ENDPOINT,
    MEMBER,
    NONE,
    OPTIONAL,
    REQUIRED,
    WEIGHTS,
    Fraction,
    Paper,
    PerModel,
    Role,
    edit,
    merge_method,
)

NOWHERE = Paper("a test")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register methods of every kind, beside the real ones, for the length of a test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry.methods()))
    monkeypatch.setattr(registry, "_EDITS", dict(registry.edits()))

    @merge_method(paper=NOWHERE, on=DELTAS, base=REQUIRED)
    def fake_deltas(
        deltas,
        *,
        weight: PerModel[float] = 1.0,
        density: PerModel[Fraction] = 1.0,
        normalize: bool = True,
        steps: int = 3,
        tie_sign: Literal["plus", "majority"] = "plus",
    ):
        """Test."""

    @merge_method(paper=NOWHERE, on=WEIGHTS, base=NONE)
    def fake_weights(weights, *, weight: PerModel[float] = 1.0, normalize: bool = True):
        """Test."""

    @merge_method(paper=NOWHERE, on=WEIGHTS, base=ENDPOINT, models=(2, 2))
    def fake_ends(weights, *, t: Fraction):
        """Test."""

    @merge_method(paper=NOWHERE, on=WEIGHTS, base=MEMBER, models=(2, None))
    def fake_members(weights):
        """Test."""

    @merge_method(paper=NOWHERE, on=WEIGHTS, base=OPTIONAL, models=(2, 2))
    def fake_optional(values, *, weight: PerModel[float]):
        """Test."""

    @edit(role=Role.FILTER, paper=NOWHERE)
    def fake_filter(delta, *, share: Fraction, exact: bool = False):
        """Test."""

    @edit(role=Role.REFINER, paper=NOWHERE)
    def fake_refiner(merged, deltas, *, alpha: float = 0.5):
        """Test."""


def _told(act: Callable[..., Any], *arguments: Any, **named: Any) -> list[CuveeError]:
    try:
        act(*arguments, **named)
    except Problems as several:
        return list(several.errors)
    except CuveeError as error:
        return [error]
    return []


@pytest.fixture
def told() -> Callable[..., list[CuveeError]]:
    """Calls something and returns the errors it raised, apart."""
    return _told
