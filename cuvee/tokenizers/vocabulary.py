"""The output's vocabulary: the tokens of one tokenizer, what the others add, and each model's row of every id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cuvee.tokenizers.reading import AddedToken, Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Member", "Tokens", "Vocabulary", "build_vocabulary", "unite"]


@dataclass(frozen=True, eq=False)
class Member:
    """A model, as far as its tokens are concerned.

    Attributes:
        label: how the user named it.
        tokenizer: its own.
        rows: of its embedding; a token with a larger id has no row.
    """

    label: str
    tokenizer: Tokenizer
    rows: int


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The output's vocabulary.

    Attributes:
        owner: the tokenizer that it is or extends.
        ids: every token's id.
        appended: the tokens that `owner` lacks, with the model they come from (None: the recipe), by id.
        added: those among them that are added tokens; the others are pieces of a model's own segmentation.
        rows: of the output's embedding, padding included.
        maps: for each model, (rows,): its row for each id of the output, −1 where it has none.
        padded: (rows,), true where an id has no token.
        notes: for the user.
    """

    owner: Tokenizer
    ids: Mapping[str, int]
    appended: Mapping[str, int | None]
    added: Mapping[str, AddedToken]
    rows: int
    maps: Mapping[int, NDArray[np.int64]]
    padded: NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """One more than the largest id that has a token."""
        return max(self.ids.values()) + 1


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of the output, before rows are thought of."""

    ids: dict[str, int]
    appended: dict[str, int | None]
    added: dict[str, AddedToken]
    notes: list[str]


def unite(owner: Tokenizer, members: Mapping[int, Member], others: Sequence[str] = (), *, union: bool = True) -> Tokens:
    """Return the owner's tokens, then (for a union) those of the other models that it lacks, then `others`.

    New ids are given in this order: the pieces of each model's own segmentation, by model and id; then the added tokens
    of each; then `others`. A string that one model adds and another segments to is an added token. The first
    definition of an added token counts.
    """
    ids = dict(owner.vocabulary)
    appended: dict[str, int | None] = {}
    added: dict[str, AddedToken] = {}
    notes: list[str] = []
    following = owner.size

    def append(token: str, number: int | None) -> None:
        nonlocal following
        if token not in ids:
            ids[token] = following
            appended[token] = number
            following += 1

    known = dict(owner.added)
    asked = list(members.items()) if union else []
    definitions = {t: d for _, one in reversed(asked) for t, d in one.tokenizer.added.items()}
    for number, one in asked:
        for token in _in_order(one):
            if token not in definitions:
                append(token, number)
    for number, one in asked:
        for token in _in_order(one):
            if token not in one.tokenizer.added:
                continue
            definition = one.tokenizer.added[token]
            if token in known and known[token] != definition:
                notes.append(
                    f"added token {token!r} is defined differently in {one.label}; the first definition counts"
                )
            known.setdefault(token, definition)
            append(token, number)
    for token in others:
        known.setdefault(token, AddedToken(token, special=True))
        append(token, None)
    added = {token: known[token] for token in appended if token in known}
    return Tokens(ids, appended, added, list(dict.fromkeys(notes)))


def _in_order(one: Member) -> list[str]:
    """Return the tokens of a model that have a row, by id."""
    pairs = sorted(one.tokenizer.vocabulary.items(), key=lambda pair: pair[1])
    return [token for token, number in pairs if number < one.rows]


def build_vocabulary(
    tokens: Tokens,
    owner: Tokenizer,
    members: Mapping[int, Member],
    *,
    pad_to_multiple_of: int | None = None,
    keep_padding: bool = True,
) -> Vocabulary:
    """Give every model a row for every id of the output.

    Rows beyond the tokens are kept: as many as the longest of the models has whose ids the output keeps, and their rows
    stay theirs.

    Args:
        keep_padding: false: the output has no row without a token, but for `pad_to_multiple_of` (mergekit).
    """
    size = max(tokens.ids.values()) + 1
    maps = {number: _map(tokens.ids, size, one) for number, one in members.items()}
    keeping = [number for number, one in members.items() if _keeps_ids(maps[number], one)] if keep_padding else []
    rows = max([size, *(members[number].rows for number in keeping)])
    if pad_to_multiple_of:
        rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
    padded = np.ones(rows, np.bool_)
    padded[np.fromiter(tokens.ids.values(), np.int64, len(tokens.ids))] = False
    for number, one in members.items():
        whole = np.full(rows, -1, np.int64)
        whole[:size] = maps[number]
        if number in keeping:
            free = np.flatnonzero(padded[: min(rows, one.rows)])
            whole[free] = free
        maps[number] = whole
    notes = [*tokens.notes, *_without_rows(members)]
    return Vocabulary(owner, tokens.ids, tokens.appended, tokens.added, rows, maps, padded, tuple(notes))


def _map(ids: Mapping[str, int], size: int, one: Member) -> NDArray[np.int64]:
    found = np.full(size, -1, np.int64)
    vocabulary = one.tokenizer.vocabulary
    for token, number in ids.items():
        old = vocabulary.get(token, -1)
        if 0 <= old < one.rows:
            found[number] = old
    return found


def _keeps_ids(found: NDArray[np.int64], one: Member) -> bool:
    """True when every token of the model has its own id in the output."""
    has = np.flatnonzero(found >= 0)
    held = len({number for number in one.tokenizer.vocabulary.values() if number < one.rows})
    return bool(np.array_equal(found[has], has)) and len(has) == held


def _without_rows(members: Mapping[int, Member]) -> list[str]:
    notes = []
    for one in members.values():
        beyond = sum(number >= one.rows for number in one.tokenizer.vocabulary.values())
        if beyond:
            notes.append(
                f"{one.label}: {beyond} tokens have ids beyond the {one.rows} rows of its embedding, and no row"
            )
    return notes
