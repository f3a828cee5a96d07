"""Publishing: a model is written beside its place, under a hidden name, and appears by one rename when all is there.

out/                        the published model, or nothing
.out.cuvee-1a2b3c4d5e6f/    a run on its way, named by its plan
    model/                  what will be out/
    journal.jsonl           which tensors are finished; kept until the model has its name, so that no failure loses work
.out.cuvee-learned/         layers that were trained for out/; kept until it is published
.out.cuvee.lock             held while a run writes to out/
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cuvee.checkpoints import fs
from cuvee.errors import ResourceError

__all__ = [
    "JOURNAL_NAME",
    "MODEL_NAME",
    "STAGING",
    "check_target",
    "give_up",
    "in_words",
    "learned_folder",
    "leftovers",
    "lock_file",
    "locked",
    "os_errors",
    "publish",
    "staging_folder",
]

JOURNAL_NAME = "journal.jsonl"
MODEL_NAME = "model"
STAGING = re.compile(r"\.(?P<out>.+)\.cuvee-(?P<plan>[0-9a-f]{12})", re.DOTALL)


def staging_folder(out: Path, plan_id: str) -> Path:
    """Return the folder of the run of a plan, in which the model is written.

    Args:
        out: the folder to publish.
        plan_id: hexadecimal; the first twelve digits count.
    """
    return out.parent / f".{out.name}.cuvee-{plan_id[:12]}"


def learned_folder(out: Path) -> Path:
    """Return the folder of what was learned towards `out`, and need not be learned again."""
    return out.parent / f".{out.name}.cuvee-learned"


def lock_file(out: Path) -> Path:
    """Return the file that is locked while a run writes to `out`."""
    return out.parent / f".{out.name}.cuvee.lock"


def leftovers(out: Path) -> list[Path]:
    """Return the staging folders that runs towards `out` have left."""
    if not fs.is_folder(out.parent):
        return []
    matches = map(STAGING.fullmatch, fs.listdir(out.parent))
    return [out.parent / match[0] for match in matches if match and match["out"] == out.name]


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a target that is taken, or named like a file of weights.

    Raises:
        ResourceError: it is a file, or a folder that holds something and `overwrite` is not given.
    """
    if out.suffix.lower() in _FILES:
        raise ResourceError(
            "the output is a folder, and this is the name of a file",
            where=str(out),
            right=f"{out.with_suffix('')}, in which model.safetensors is the one file, up to --shard-size",
        )
    with os_errors(out):
        if not fs.exists(out):
            return
        is_folder = fs.is_folder(out) and not fs.is_link(out)
        is_empty = is_folder and not fs.listdir(out)
    if not is_folder:
        raise ResourceError("the output is not a folder", where=str(out), right="name a folder that does not exist yet")
    if not is_empty and not overwrite:
        raise ResourceError(
            "the output folder exists and is not empty",
            where=str(out),
            right="another folder, or --overwrite, which replaces it when the merge has succeeded",
        )


_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs away from `out`.

    Raises:
        ResourceError: another process is writing to it.
    """
    with os_errors(out.parent):
        _make_durable(out.parent)
    path = lock_file(out)
    with ExitStack() as stack:
        try:
            with os_errors(path):
                stack.enter_context(fs.lock(path))
                # A run that was killed may have swapped two folders that the disk still knows by their old names: what we
                # write into the one would come to light under the other, were the power to fail now.
                fs.fsync_folder(out.parent)
        except BlockingIOError:
            raise ResourceError(
                "another cuvee is writing to this folder", where=str(out), right="wait for it, or name another folder"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # an empty file that stays does no harm
                fs.unlink(path)


def _make_durable(folder: Path) -> None:
    """Make a folder with its parents, so that none of those that are new is forgotten."""
    missing = [parent for parent in (folder, *folder.parents) if not fs.exists(parent)]
    fs.mkdir(folder)
    for made in missing:
        fs.fsync_folder(made.parent)


def publish(staging: Path, out: Path) -> list[str]:
    """Give the finished model in `staging` its name, in one step; an old one is removed only after that.

    Returns:
        What could not be cleaned up, a sentence each: the model is published all the same.

    Raises:
        ResourceError: the file system cannot swap two folders in one step, or the disk failed at the last.
    """
    model = staging / MODEL_NAME
    _sync_folders(model)
    if fs.exists(out) and fs.listdir(out):
        try:
            fs.exchange(model, out)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            raise ResourceError(
                "this file system cannot replace a folder in one step",
                where=str(out),
                right=f"name a new folder, or remove {out} first; the finished model waits in {model}",
            ) from None
    else:
        fs.rename(model, out)
    try:
        fs.fsync_folder(out.parent)
    except OSError as error:
        raise ResourceError(
            f"the model has its name, but the disk did not confirm it: {error.strerror}",
            where=str(out),
            right="check the disk, then the model: cuvee verify " + str(out),
        ) from None
    return give_up(staging)


def give_up(folder: Path) -> list[str]:
    """Remove what is needed no more; where the disk refuses, return a sentence that says so: the model is there."""
    try:
        fs.remove_tree(folder)
    except OSError as error:
        return [f"{folder} could not be removed: {error.strerror}; nothing in it is needed any more"]
    return []


def _sync_folders(folder: Path) -> None:
    """Make the names in a folder durable, and those in all folders below it."""
    for name in fs.listdir(folder):
        path = folder / name
        if fs.is_folder(path) and not fs.is_link(path):
            _sync_folders(path)
    fs.fsync_folder(folder)


_WORDS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EMFILE: "too many open files",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        raise in_words(error, place) from None


def in_words(error: OSError, place: Path) -> ResourceError:
    """Return what the user is told of an error of the operating system.

    Args:
        place: where it happened, if the error does not say.
    """
    folder = "free space or another folder" if error.errno in _FULL else "another folder"
    return ResourceError(
        _WORDS.get(error.errno or 0, error.strerror or str(error)),
        where=str(error.filename or place),
        right=f"{folder}; running the same command again goes on where this run stopped",
    )
