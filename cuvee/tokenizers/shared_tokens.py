"""Shared tokens: which tokens of two tokenizers mean the same text, whatever alphabet each writes it in.

A token is compared by the bytes that it stands for, a space for the mark of a word's start; a special token by its role
(both begin a text), else by its string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.tokenizers.reading import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Meanings", "byte_letters", "match_tokens", "meanings", "prefix_tokens"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def byte_letters() -> Mapping[int, str]:
    """Return the letter that byte-level BPE writes for each byte: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def _letter_bytes() -> Mapping[str, int]:
    return {letter: byte for byte, letter in byte_letters().items()}


@dataclass(frozen=True, eq=False)
class Meanings:
    """What the tokens of a tokenizer stand for.

    Attributes:
        texts: id -> bytes, for ordinary tokens.
        bytes: id -> byte, for those written `<0xNN>`.
        specials: id -> string, for special tokens.
    """

    texts: Mapping[int, bytes]
    bytes: Mapping[int, int]
    specials: Mapping[int, str]


def meanings(tokenizer: Tokenizer) -> Meanings:
    """Return what each token stands for."""
    texts: dict[int, bytes] = {}
    single: dict[int, int] = {}
    specials: dict[int, str] = {}
    special = {t for t, one in tokenizer.added.items() if one.special} | set(tokenizer.roles.values())
    for token, number in tokenizer.vocabulary.items():
        if token in special:
            specials[number] = token
        elif token in tokenizer.added:
            texts[number] = token.encode("utf-8", "surrogatepass")
        elif tokenizer.alphabet == "bytes":
            letters = _letter_bytes()
            is_written = all(letter in letters for letter in token)
            texts[number] = bytes(letters[c] for c in token) if is_written else token.encode("utf-8", "surrogatepass")
        elif tokenizer.alphabet == "spaces" and (found := _BYTE.fullmatch(token)):
            single[number] = int(found[1], 16)
        elif tokenizer.kind == "WordPiece":
            spoken = token.removeprefix("##") if token.startswith("##") else f" {token}"
            texts[number] = spoken.encode("utf-8", "surrogatepass")
        else:
            texts[number] = token.replace("▁", " ").encode("utf-8", "surrogatepass")
    return Meanings(texts, single, specials)


def match_tokens(
    donor: Tokenizer, base: Tokenizer, *, rows: int, byte_match: bool = False
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return for each id of the donor the id of the base's token of the same meaning, −1 where there is none.

    Args:
        rows: of the base's embedding; tokens beyond it have no row.
        byte_match: `<0x41>` of one tokenizer is the `A` of another.

    Returns:
        (donor.size,) and how many were matched, by how.
    """
    theirs, ours = meanings(donor), meanings(base)
    by_text = _inverse(ours.texts, rows)
    by_byte = _inverse(ours.bytes, rows)
    by_special = _inverse(ours.specials, rows)
    found = np.full(donor.size, -1, np.int64)
    counts = {"same text": 0, "same role": 0, "same byte": 0}

    def note(number: int, own: int | None, how: str) -> None:
        if own is not None and found[number] < 0:
            found[number] = own
            counts[how] += 1

    for number, text in theirs.texts.items():
        note(number, by_text.get(text), "same text")
        if byte_match and len(text) == 1:
            note(number, by_byte.get(text[0]), "same byte")
    for number, byte in theirs.bytes.items():
        note(number, by_byte.get(byte), "same byte")
        if byte_match:
            note(number, by_text.get(bytes([byte])), "same byte")
    for number, token in theirs.specials.items():
        for role in [role for role, spoken in donor.roles.items() if spoken == token]:
            if role in base.roles and base.vocabulary[base.roles[role]] < rows:
                note(number, base.vocabulary[base.roles[role]], "same role")
        note(number, by_special.get(token), "same text")
    return found, {how: count for how, count in counts.items() if count}


def _inverse(found: Mapping[int, Any], rows: int) -> dict[Any, int]:
    """Return meaning -> id, the lowest id where several mean one thing."""
    return {meaning: number for number, meaning in sorted(found.items(), reverse=True) if number < rows}


def prefix_tokens(donor: Tokenizer, base: Tokenizer, matched: NDArray[np.int64], *, rows: int) -> NDArray[np.int64]:
    """Return for each unmatched id of the donor the base's token that is the longest beginning of it, else −1."""
    by_text = _inverse(meanings(base).texts, rows)
    found = np.full(len(matched), -1, np.int64)
    for number, text in meanings(donor).texts.items():
        if matched[number] >= 0:
            continue
        ends = range(len(text) - 1, 0, -1)
        found[number] = next((by_text[text[:end]] for end in ends if text[:end] in by_text), -1)
    return found
