"""SentencePiece models: the pieces of a `tokenizer.model`, read from its protocol buffer without the library."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cuvee.errors import CheckpointError

__all__ = ["Piece", "read_pieces"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES = 1  # ModelProto.pieces; in SentencePiece: 1 piece, 2 score, 3 type
_CONTROL, _UNKNOWN, _USER_DEFINED = 3, 2, 4


@dataclass(frozen=True)
class Piece:
    """One piece: its text, its score, and whether it is a control or unknown symbol, or one that a user defined."""

    text: str
    score: float
    is_special: bool
    is_user_defined: bool


def read_pieces(content: bytes, where: str) -> list[Piece]:
    """Return the pieces of a model in the order of their ids.

    Raises:
        CheckpointError: it is no SentencePiece model.
    """
    try:
        pieces = [_piece(bytes(value)) for number, value in _fields(content) if number == _PIECES]
    except (ValueError, IndexError, struct.error, TypeError):
        pieces = []
    if not pieces:
        raise CheckpointError("this is no SentencePiece model", where=where, right="fetch the file again")
    return pieces


def _piece(content: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(content):
        if number == 1:
            text = bytes(value).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", bytes(value))
        elif number == 3:
            kind = int(value) if isinstance(value, int) else kind
    return Piece(text, score, kind in (_CONTROL, _UNKNOWN), kind == _USER_DEFINED)


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield field numbers and values of one message."""
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(content):
            raise ValueError("cut short")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
