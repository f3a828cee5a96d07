"""Texts that statistics are collected on: a file of lines, or of JSON values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.checkpoints import fs
from cuvee.errors import RecipeError

__all__ = ["digest_of_texts", "read_texts", "write_texts"]

_MOST_BYTES = 1 << 30
_LINES = (".jsonl", ".ndjson")


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: its lines; of a .jsonl file what each line holds, a text or {"text": …}.

    Empty lines are none.

    Raises:
        RecipeError: it cannot be read, is not UTF-8, or holds no texts.
    """
    where = str(path)
    try:
        content = fs.read_file(path, limit=_MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        found = f"the texts cannot be read: {error.strerror}"
        raise RecipeError(found, where=where, right="the path of a file, one text a line") from None
    except (OverflowError, UnicodeDecodeError):
        raise RecipeError("the file is no text in UTF-8 of up to 1 GB", where=where, right="one text a line") from None
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix.lower() in _LINES:
        texts = [_text_of(line, f"{where}:{number}") for number, line in lines]
    else:
        texts = [line.rstrip("\r") for _, line in lines]
    if not texts:
        raise RecipeError("the file holds no texts", where=where, right="one text a line")
    return texts


def _text_of(line: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, str) or not value:
        raise RecipeError("the line is neither a text nor an object with one", where=where, right='{"text": "…"}')
    return value


def write_texts(path: Path, texts: Sequence[str]) -> None:
    """Write texts as a file of JSON values, which `read_texts` reads: texts may hold line breaks.

    Raises:
        OSError: the disk refuses.
    """
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    fs.replace_file(path, "".join(lines).encode("utf-8", "surrogatepass"))


def digest_of_texts(texts: Sequence[str], max_tokens: int) -> str:
    """Return what tells one set of texts, as far as models are shown them, from another."""
    said = json.dumps([list(texts), max_tokens])
    return blake3(said.encode()).hexdigest()
