"""Publishing: a model is written beside its place, under a hidden name, and appears by one rename when all is there.

out/                        the published model, or nothing
.out.cuvee-1a2b3c4d5e6f/    a run on its way, named by its plan; journal.jsonl tells what is finished
.out.cuvee.lock             held while a run writes to out/
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuvee.checkpoints import fs
from cuvee.errors import ResourceError

__all__ = ["JOURNAL_NAME", "check_target", "leftovers", "locked", "os_errors", "publish", "staging_folder"]

JOURNAL_NAME = "journal.jsonl"


def staging_folder(out: Path, plan_id: str) -> Path:
    """Return the folder in which the run of a plan is written."""
    return out.parent / f".{out.name}.cuvee-{plan_id[:12]}"


def leftovers(out: Path) -> list[Path]:
    """Return the staging folders that runs towards `out` have left."""
    if not out.parent.is_dir():
        return []
    prefix = f".{out.name}.cuvee-"
    return [out.parent / name for name in fs.listdir(out.parent) if name.startswith(prefix)]


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that is taken.

    Raises:
        ResourceError: it is a file, or a folder that holds something and `overwrite` is not given.
    """
    if not fs.exists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise ResourceError("the output is not a folder", where=str(out), right="name a folder that does not exist yet")
    if fs.listdir(out) and not overwrite:
        raise ResourceError(
            "the output folder exists and is not empty",
            where=str(out),
            right="another folder, or --overwrite, which replaces it when the merge has succeeded",
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs away from `out`.

    Raises:
        ResourceError: another process is writing to it.
    """
    with os_errors(out.parent):
        fs.mkdir(out.parent)
    path = out.parent / f".{out.name}.cuvee.lock"
    try:
        with fs.lock(path):
            try:
                yield
            finally:
                fs.unlink(path)
    except BlockingIOError:
        raise ResourceError(
            "another cuvee is writing to this folder", where=str(out), right="wait for it, or name another folder"
        ) from None


def publish(staging: Path, out: Path) -> None:
    """Give the finished folder its name, in one step; an old model is removed only after that.

    Raises:
        ResourceError: the file system cannot swap two folders in one step.
    """
    fs.fsync_folder(staging)
    if fs.exists(out) and fs.listdir(out):
        try:
            fs.exchange(staging, out)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            raise ResourceError(
                "this file system cannot replace a folder in one step",
                where=str(out),
                right=f"name a new folder, or remove {out} first; the finished model waits in {staging}",
            ) from None
        fs.fsync_folder(out.parent)
        fs.remove_tree(staging)
    else:
        fs.rename(staging, out)
    fs.fsync_folder(out.parent)


_WORDS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EMFILE: "too many open files",
}


@contextmanager
def os_errors(place: Path) -> Iterator[None]:
    """Say an error of the operating system in words.

    Raises:
        ResourceError: for any `OSError`.
    """
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        found = _WORDS.get(error.errno or 0, error.strerror or str(error))
        raise ResourceError(
            found,
            where=str(error.filename or place),
            right="free space or another folder; running the same command again goes on where this run stopped",
        ) from None
