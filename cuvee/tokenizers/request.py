"""What a recipe asks of the output's tokenizer: whose it is, which tokens it has, where their rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RowOf", "TokenRule", "TokenizerRequest", "ZeroRow"]


@dataclass(frozen=True)
class RowOf:
    """The row of a token in one model: `token`, or `token_id`; neither: the token that the rule is about."""

    model: Any
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True)
class ZeroRow:
    """A row of zeros."""


@dataclass(frozen=True)
class TokenRule:
    """Where the row of one token comes from in the models that lack it.

    Attributes:
        source: None: as for any other token.
        force: the models that have the token get that row too.
    """

    source: RowOf | ZeroRow | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerRequest:
    """The output's tokenizer.

    Attributes:
        source: "union", "base", or a model whose tokenizer it is.
        tokens: rules for single tokens; a token that the vocabulary lacks is added.
        pad_to_multiple_of: rows are added up to a multiple of this.
    """

    source: Any = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
