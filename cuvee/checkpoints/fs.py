"""Every file call on a model, a manifest or a journal: the one seam for fault tests and other file systems.

Calls loop over short reads and writes. Errors stay `OSError` here; the callers, who know what the file is, turn them
into Cuvée's own. Each step on the disk is one call of `os`, so that a test can put a stand-in in its place that fails,
dies or forgets at any of them (`tests/fault/disk.py`). One kernel reads inputs beside this (`kernels.stream`), and writes
nothing; what it cannot read is read again here, which says why.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Fingerprint",
    "allocated_bytes",
    "allow_many_files",
    "append",
    "changed_at",
    "close",
    "create",
    "exchange",
    "exists",
    "fallocate",
    "fdatasync",
    "fingerprint",
    "forget",
    "free_bytes",
    "fsync",
    "fsync_folder",
    "is_file",
    "is_folder",
    "is_link",
    "is_own_file",
    "is_own_folder",
    "listdir",
    "lock",
    "mkdir",
    "open_append",
    "open_read",
    "pread_into",
    "pwrite",
    "read_file",
    "real_path",
    "remove_tree",
    "rename",
    "reopen",
    "replace_file",
    "truncate",
    "unlink",
    "write_file",
    "write_scratch",
]


@dataclass(frozen=True)
class Fingerprint:
    """What tells that a file is still the same one: size in bytes, mtime in ns, inode."""

    path: str
    size: int
    mtime_ns: int
    inode: int


def fingerprint(path: Path, fd: int | None = None) -> Fingerprint:
    """Return the fingerprint of `path`, or of the open file `fd` under that name."""
    found = os.fstat(fd) if fd is not None else os.stat(path)
    return Fingerprint(str(path), found.st_size, found.st_mtime_ns, found.st_ino)


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES)


def _look(path: Path, *, follow: bool) -> os.stat_result | None:
    """Return what the disk says of a name; None where nothing can be reached by it. A failing disk is no answer."""
    try:
        return os.stat(path, follow_symlinks=follow)
    except ValueError:  # a name that holds NUL
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def exists(path: Path) -> bool:
    """True when something, even a dangling link, has this name."""
    return _look(path, follow=False) is not None


def is_file(path: Path) -> bool:
    """True for a regular file, or a link to one; false for pipes and devices, and for what cannot be reached."""
    found = _look(path, follow=True)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """True for a folder, or a link to one."""
    found = _look(path, follow=True)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_link(path: Path) -> bool:
    """True for a symbolic link."""
    found = _look(path, follow=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def is_own_file(path: Path) -> bool:
    """True for a regular file of this user that has no other name: what is written into it changes nothing else."""
    found = _look(path, follow=False)
    if found is None or not stat.S_ISREG(found.st_mode):
        return False
    return found.st_uid == os.geteuid() and found.st_nlink == 1


def is_own_folder(path: Path) -> bool:
    """True for a folder of this user, no link to one."""
    found = _look(path, follow=False)
    return found is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def allocated_bytes(path: Path) -> int:
    """Return the bytes that a file takes on the disk, 0 where there is none."""
    found = _look(path, follow=False)
    return found.st_blocks * 512 if found is not None else 0


def changed_at(path: Path) -> float:
    """Return when a file, or the names in a folder, changed last: seconds since 1970; 0 where there is none."""
    found = _look(path, follow=False)
    return found.st_mtime if found is not None else 0.0


def real_path(path: Path) -> Path:
    """Return the path with every link followed; what does not exist stays as it is."""
    return Path(os.path.realpath(path))


def allow_many_files() -> None:
    """Raise this process's limit of open files to what the system allows: sharded models hold many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def open_read(path: Path) -> int:
    """Open for reading, without waiting for the other end of a pipe; returns a file descriptor."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def create(path: Path) -> int:
    """Create a file that must not exist (mode 0666 less the umask); returns a descriptor for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def reopen(path: Path) -> int:
    """Open an existing file, no link to one, for reading and writing, without truncating it."""
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_append(path: Path) -> int:
    """Open a file, no link to one, for appending, creating it where it is missing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def close(fd: int) -> None:
    """Close a descriptor."""
    os.close(fd)


def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; returns the bytes read, fewer only at the end of the file."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def pwrite(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += _taken(os.pwrite(fd, view[done:], offset + done))


def append(fd: int, data: bytes) -> None:
    """Append all of `data`."""
    view = memoryview(data)
    while view:
        view = view[_taken(os.write(fd, view)) :]


def _taken(count: int) -> int:
    """Refuse to ask for ever a disk that takes nothing."""
    if count == 0:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return count


def fallocate(fd: int, size: int) -> None:
    """Reserve `size` bytes on disk; where the file system cannot, set the size only."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, size)


def truncate(fd: int, size: int) -> None:
    """Cut an open file to `size` bytes."""
    os.ftruncate(fd, size)


def fsync(fd: int) -> None:
    """Make a file durable. An error is final: the kernel may have dropped the pages, so it is never retried."""
    os.fsync(fd)


def fdatasync(fd: int) -> None:
    """Start and await the write-back of what was written so far."""
    os.fdatasync(fd)


def forget(fd: int) -> None:
    """Drop what memory holds of an open file, where it is durable: what is read next is read from the disk."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_file(path: Path, *, limit: int | None = None) -> bytes:
    """Return the bytes of a file.

    Raises:
        OverflowError: it is larger than `limit` bytes.
    """
    fd = open_read(path)
    try:
        size = os.fstat(fd).st_size
        if limit is not None and size > limit:
            raise OverflowError(f"{size} bytes, more than {limit}")
        buffer = bytearray(size)
        return bytes(buffer[: pread_into(fd, memoryview(buffer), 0)])
    finally:
        close(fd)


def read_text_of_system(name: str) -> str:
    """Return what Linux says under /proc, "" elsewhere; such files have no size."""
    try:
        return Path("/proc", name).read_text()
    except OSError:
        return ""


def write_file(path: Path, data: bytes) -> None:
    """Write a new small file and make it durable."""
    fd = create(path)
    try:
        pwrite(fd, data, 0)
        fsync(fd)
    finally:
        close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file and make it durable, whole or not at all, in place of one that is there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    if exists(beside):
        unlink(beside)
    write_file(beside, data)
    rename(beside, path)


def write_scratch(path: Path, data: memoryview) -> None:
    """Write a new file that need not outlive this process."""
    fd = create(path)
    try:
        pwrite(fd, data, 0)
    finally:
        close(fd)


def is_writable(path: Path) -> bool:
    """True where this process may write: into a folder, files."""
    return os.access(path, os.W_OK)


def mkdir(path: Path) -> None:
    """Make one folder, with its parents; fine when it is there already."""
    try:
        os.mkdir(path)
    except FileNotFoundError:
        if path.parent == path or exists(path.parent):  # such as in /proc, where nothing can be made
            raise
        mkdir(path.parent)
        mkdir(path)
    except FileExistsError:
        if not is_folder(path):
            raise


def listdir(path: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(os.listdir(path))


def rename(source: Path, target: Path) -> None:
    """Rename; the target must not be a folder that holds something."""
    os.rename(source, target)


_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (Linux `renameat2`).

    Raises:
        OSError: the file system or the system cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one))
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))


def unlink(path: Path) -> None:
    """Remove a file; fine when it is gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, without following links; fine when it is gone already."""
    found = _look(path, follow=False)
    if found is None or not stat.S_ISDIR(found.st_mode):
        unlink(path)
        return
    fd = os.open(path, _FOLDER)
    try:
        _empty(fd)
    finally:
        os.close(fd)
    os.rmdir(path)


_DEEPEST = 64


def _empty(folder: int, depth: int = 0) -> None:
    """Remove all in an open folder. By descriptors: a folder that becomes a link meanwhile leads nowhere."""
    if depth > _DEEPEST:
        raise OSError(errno.ELOOP, f"folders lie in each other more than {_DEEPEST} deep")
    for name in sorted(os.listdir(folder)):
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        fd = os.open(name, _FOLDER, dir_fd=folder)
        try:
            _empty(fd, depth + 1)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=folder)


def free_bytes(path: Path) -> int:
    """Return the bytes that this user can still write on the file system of `path`."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; the system lets go of it when the process dies.

    Raises:
        BlockingIOError: another process holds it.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us removed the file after we had opened it: what we locked has no name any more.
            named = _look(path, follow=False)
            if named is not None and named.st_ino == os.fstat(fd).st_ino:
                yield
                return
        finally:
            os.close(fd)
