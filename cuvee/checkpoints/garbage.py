"""What killed runs have left beside their targets: found, told apart from what is in use, and removed."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from cuvee.checkpoints import fs
from cuvee.checkpoints.publishing import JOURNAL_NAME, MODEL_NAME, STAGING, lock_file, os_errors
from cuvee.errors import CheckpointError

__all__ = ["GRACE_S", "Leftover", "collect", "find_leftovers"]

GRACE_S = 86_400.0
_DEEPEST = 64
_STAGE = "cuvee.json"  # a stage of a recipe is published beside the output, and read from there
_LOCK = re.compile(r"\.(?P<out>.+)\.cuvee\.lock", re.DOTALL)
_LEARNED = re.compile(r"\.(?P<out>.+)\.cuvee-learned", re.DOTALL)
_LAYER = re.compile(r"\.?[0-9a-f]{64}\.layer(\.\d+\.\d+)?")  # or one that was being written


@dataclass(frozen=True)
class Leftover:
    """One thing that a run has left.

    Attributes:
        path: a staging folder, a folder of learned layers, or a lock file.
        out: the target it belongs to.
        size: bytes on the disk.
        age_s: seconds since anything in it changed.
        kept: why it is not removed; empty where it may be.
    """

    path: Path
    out: Path
    size: int
    age_s: float
    kept: str = ""


def find_leftovers(folder: Path, *, older_than_s: float = GRACE_S) -> list[Leftover]:
    """Return what runs have left in a folder, or beside it on the way to it; what is kept, and why, too.

    Args:
        folder: where models are published, or a model.
        older_than_s: what has changed since is kept: its run may be resumed.

    Raises:
        CheckpointError: the folder is none, or cannot be read.
    """
    try:
        whole = Path(os.path.abspath(folder))
        if not fs.is_folder(whole.parent):
            raise CheckpointError(
                "there is no such folder", where=str(folder), right="the folder that holds the models"
            )
        inside = [folder / name for name in (fs.listdir(folder) if fs.is_folder(folder) else []) if _target(name)]
        beside = [whole.parent / name for name in fs.listdir(whole.parent) if _target(name) == whole.name != ""]
        return [_look(path, older_than_s) for path in (*inside, *beside)]
    except OSError as error:
        raise CheckpointError(
            f"cannot read the folder: {error.strerror}", where=str(error.filename or folder), right="check the path"
        ) from None


def _target(name: str) -> str:
    match = STAGING.fullmatch(name) or _LEARNED.fullmatch(name) or _LOCK.fullmatch(name)
    return match["out"] if match else ""


def _look(path: Path, older_than_s: float) -> Leftover:
    out = path.parent / _target(path.name)
    if not _is_ours(path):
        return Leftover(path, out, 0, 0.0, "not what cuvee leaves: look for yourself")
    size, changed = _measure(path)
    age = time.time() - changed
    kept = ""
    if _is_locked(out):
        kept = "in use by a run"
    elif age < older_than_s:  # a clock that was set back makes it young, never old
        kept = "too young: the same command may go on with it"
    return Leftover(path, out, size, age, kept)


def _is_ours(path: Path) -> bool:
    if path == lock_file(path.parent / _target(path.name)):
        return fs.is_own_file(path) and fs.fingerprint(path).size == 0
    if not fs.is_own_folder(path):
        return False
    names = set(fs.listdir(path))
    if _LEARNED.fullmatch(path.name):
        return all(map(_LAYER.fullmatch, names))
    return names <= {JOURNAL_NAME, MODEL_NAME} or _STAGE in names


def _measure(path: Path, depth: int = 0) -> tuple[int, float]:
    """Return the bytes that a file, or a folder with all in it, takes, and when anything in it changed last."""
    size, changed = fs.allocated_bytes(path), fs.changed_at(path)
    if depth < _DEEPEST and fs.is_folder(path) and not fs.is_link(path):
        for name in fs.listdir(path):
            more, later = _measure(path / name, depth + 1)
            size, changed = size + more, max(changed, later)
    return size, changed


def _is_locked(out: Path) -> bool:
    if not fs.exists(lock_file(out)):
        return False
    try:
        with fs.lock(lock_file(out)):
            return False
    except BlockingIOError:
        return True


def collect(leftover: Leftover) -> bool:
    """Remove what a run has left, unless a run has begun to use it; returns whether it is gone.

    Raises:
        ResourceError: it cannot be removed.
    """
    if leftover.kept:
        return False
    with os_errors(leftover.path):
        try:
            with fs.lock(lock_file(leftover.out)):
                fs.remove_tree(leftover.path)
                fs.unlink(lock_file(leftover.out))
        except BlockingIOError:
            return False
    return True
