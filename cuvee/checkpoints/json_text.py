"""JSON from outside: read with a limit on its size, refused in words, never by a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cuvee.checkpoints import fs
from cuvee.errors import CheckpointError, printable

__all__ = ["parse_object", "read_object"]


def read_object(path: Path, *, limit: int, strict: bool = True) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: a regular file.
        limit: the most bytes it may have.
        strict: see `parse_object`.

    Raises:
        CheckpointError: the file is missing, larger than `limit`, or holds something else.
    """
    if not fs.is_file(path):
        raise CheckpointError("there is no such file", where=str(path), right="check the path, or fetch the file")
    try:
        text = fs.read_file(path, limit=limit)
    except OverflowError as error:
        raise CheckpointError(f"the file has {error}", where=str(path), right="fetch the file again") from None
    except OSError as error:
        raise CheckpointError(
            f"cannot read the file: {error.strerror}", where=str(path), right="check its permissions and the disk"
        ) from None
    try:
        return parse_object(text, strict=strict)
    except CheckpointError as error:
        raise CheckpointError(error.found, where=str(path), right="fetch the file again, or mend it") from None


def parse_object(text: bytes, *, strict: bool = True) -> dict[str, Any]:
    """Return the JSON object in `text`, which is UTF-8.

    Args:
        text: what to parse.
        strict: refuse keys written twice, NaN and Infinity; some published config.json have them.

    Raises:
        CheckpointError: it is not JSON, not an object, nested too deep, or holds text that is not Unicode.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _unique, "parse_constant": _no_constant} if strict else {}
    try:
        decoded = text.decode("utf-8")
        if decoded.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark")
        value = json.loads(decoded, **hooks)
        # "\ud800" parses, but cannot be written again
        if "\\" in decoded:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError("the text holds half a surrogate pair, which is not Unicode") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"this is not JSON: {_short(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"this is JSON, but not an object: it is a {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise CheckpointError(f"it names {printable(name)[:200]!r} twice")
            seen.add(name)
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _short(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
