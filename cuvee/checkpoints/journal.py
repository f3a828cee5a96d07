"""The journal of a run: which tensors are finished, so that a killed run can go on.

Each line is a checksum and a JSON value. A torn or altered line and all that follows it count as not written. What the
journal says is never trusted alone: a tensor counts as finished only when its bytes still have the digest it names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.checkpoints import fs

__all__ = ["Journal", "read_journal"]


class Journal:
    """A journal open for appending."""

    def __init__(self, path: Path) -> None:
        """Open it, without the damaged lines at its end: what is appended to a torn line would be lost with it."""
        _, size = _read_intact(path)
        self._fd = fs.open_append(path)
        fs.truncate(self._fd, size)

    def append(self, record: dict[str, Any]) -> None:
        """Append one record."""
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8")
        fs.append(self._fd, _checksum(text) + b" " + text + b"\n")

    def sync(self) -> None:
        """Make durable what was appended so far."""
        fs.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        fs.close(self._fd)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the records up to the first damaged line; none when there is no journal."""
    records, _ = _read_intact(path)
    return records


def _read_intact(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records up to the first damaged line, and the bytes that they take."""
    try:
        lines = fs.read_file(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return [], 0
    records: list[dict[str, Any]] = []
    size = 0
    for line in lines:
        checksum, _, text = line.partition(b" ")
        if checksum != _checksum(text):
            break
        record = json.loads(text)
        if not isinstance(record, dict):
            break
        records.append(record)
        size += len(line) + 1
    return records, size


def _checksum(text: bytes) -> bytes:
    return blake3(text).hexdigest(8).encode("ascii")
