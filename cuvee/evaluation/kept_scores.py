"""Scores that are kept: by what was scored, on what, and by which code; a repeated run computes only what changed.

One SQLite file under `CUVEE_HOME`. Each entry is written as it is found, so a run that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from blake3 import blake3

import cuvee
from cuvee.errors import ResourceError
from cuvee.evaluation.suites.suite import Built, Corruption, Score, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KeptScores", "code_of", "digest_of", "kept_score", "key_of"]

MERGING = ("methods", "engine", "recipes", "tensors", "checkpoints/adapted.py", "checkpoints/adapters.py")
"""What decides the bytes of a merge."""
SCORING = (
    "evaluation/suites",
    "evaluation/ani.py",
    "evaluation/byte_text.py",
    "evaluation/candidates.py",
    "evaluation/images.py",
    "evaluation/tiny_llama.py",
)
"""What decides a score."""


class KeptScores:
    """A file of results by key; safe for several threads, and for several processes.

    Args:
        path: made where it is not there.

    Raises:
        ResourceError: here and later, the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def record(self, key: str) -> dict[str, Any] | None:
        """Return what is known of a merge, or None."""
        with self._told():
            value = self._get(key)
            return None if value is None else dict(json.loads(value))

    def put_record(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep what is known of a merge."""
        self._put(key, json.dumps(value).encode())

    def items(self, key: str) -> NDArray[np.float32] | None:
        """Return a score item by item, or None."""
        with self._told():
            value = self._get(key)
            return None if value is None else np.frombuffer(zlib.decompress(value), np.float32)

    def put_items(self, key: str, items: NDArray[np.float32]) -> None:
        """Keep a score item by item."""
        self._put(key, zlib.compress(np.ascontiguousarray(items, np.float32).tobytes()))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _get(self, key: str) -> bytes | None:
        with self._lock:
            row = self._file.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def _put(self, key: str, value: bytes) -> None:
        with self._lock, self._told():
            self._file.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, value))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, zlib.error, ValueError, OSError) as error:
            raise ResourceError(
                f"the scores that are kept cannot be read or written: {error}",
                where=str(self._path),
                right="a CUVEE_HOME that can be written; if the file is damaged, remove it, and they are found again",
            ) from None


def kept_score(
    kept: KeptScores,
    built: Built,
    digest: str,
    tensors: Callable[[], Mapping[str, torch.Tensor]],
    task: str,
    *,
    split: Split = "test",
    limit: int | None = None,
    corruption: Corruption | None = None,
) -> Score:
    """Return a score of a suite: what is kept of it, or what is found now and kept.

    Args:
        kept: what was found before.
        built: the suite.
        digest: of the candidate's tensors, as `digest_of` makes it.
        tensors: gives them, where somebody has to look.
        task, split, limit, corruption: as of `Built.score`.
    """
    shift = None if corruption is None else (corruption.name, corruption.severity)
    place = (built.suite.name, built.key, task, split, limit, shift)
    key = key_of("score", code_of(SCORING), torch.__version__, digest, *place)
    items = kept.items(key)
    if items is None:
        items = built.score(tensors(), task, split=split, limit=limit, corruption=corruption).items
        kept.put_items(key, items)
    return Score(items, built.tasks[task].higher_is_better)


def key_of(*parts: Any) -> str:
    """Return the key of what is printed as these parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of names, dtypes, shapes and bytes."""
    whole = blake3()
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest(16)


@cache
def code_of(places: Sequence[str]) -> str:
    """Return a digest of Cuvée's own source at these places: what other code has found is found again."""
    root = Path(cuvee.__file__).parent
    files = [
        file for place in places for file in ([root / place] if place.endswith(".py") else (root / place).rglob("*"))
    ]
    whole = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix in (".py", ".c")):
        whole.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return whole.hexdigest()[:16]
