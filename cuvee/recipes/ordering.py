"""Whether models stand in the order of their training, as far as numbers in names say: shells list 1000 before 200."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from cuvee.recipes.findings import Findings
from cuvee.recipes.parts import Expert
from cuvee.recipes.resolving import Resolver

__all__ = ["check_order"]

_NUMBER = re.compile(r"\d+")


def check_order(resolver: Resolver, experts: Sequence[Expert], findings: Findings) -> None:
    """Warn where a method takes the first model for the oldest, and their numbers neither rise nor stay."""
    method = resolver.method
    if not any(resolver.constant(name) in values for name, values in method.sequence.items()):
        return
    steps = _steps([expert.entry.model for expert in experts])
    if steps != sorted(steps):
        said = ", ".join(map(str, steps))
        first = experts[0].path
        findings.warn(f"{method.name} takes the first model for the oldest, and their numbers are {said}", first)


def _steps(models: Sequence[Any]) -> list[int]:
    """Return the number by which the names of all models differ, of each; nothing where they differ otherwise."""
    names = [os.fspath(one) if isinstance(one, str | os.PathLike) else "" for one in models]
    found = [[int(number) for number in _NUMBER.findall(str(name))] for name in names]
    if len({_NUMBER.sub("#", str(name)) for name in names}) > 1:
        return []
    apart = [numbers for numbers in zip(*found, strict=True) if len(set(numbers)) > 1]
    return list(apart[0]) if len(apart) == 1 else []
