"""A stand-in for `os` below the seam: every step on the disk is counted, and fails, dies or comes short where it is told to.

`with Disk(fault): …` puts it under `cuvee.checkpoints.fs`. A step is one call of the system: what the seam does in several
steps (removing a tree, writing a small file) is seen as several.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cuvee.checkpoints import fs

LOOKS = ("stat", "fstat", "listdir", "statvfs", "preadv", "realpath", "close", "posix_fadvise")
CHANGES = (
    "open", "pwrite", "write", "posix_fallocate", "ftruncate", "fsync", "fdatasync", "mkdir", "rename", "unlink", "rmdir",
    "exchange", "flock",
)  # fmt: skip
WRITES = ("pwrite", "write")
_PURE = ("fspath", "fsdecode", "fsencode", "strerror", "geteuid", "stat_result", "error")


@dataclass(frozen=True)
class Step:
    """One call of the system, counted from 1."""

    number: int
    name: str
    arguments: tuple[Any, ...]

    @property
    def changes(self) -> bool:
        """True when the disk is not the same after it."""
        if self.name == "open":
            return bool(self.arguments[1] & os.O_CREAT)
        return self.name in CHANGES and self.name != "flock"


Fault = Callable[[Step], Any]
"""Called before every step. It may raise or kill; a returned number is how many bytes the step gives or takes."""


@dataclass
class Disk:
    """The stand-in. `done(step, result)` is told of every step that has succeeded."""

    fault: Fault = lambda step: None
    done: Callable[[Step, Any], None] = lambda step, result: None
    steps: list[Step] = field(default_factory=list)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def __getattr__(self, name: str) -> Any:
        if name in LOOKS or name in CHANGES:
            return self._step(name, getattr(os, name))
        if name in _PURE or name.startswith(("O_", "POSIX_")):
            return getattr(os, name)
        raise AttributeError(f"fs.py calls os.{name}, which tests/fault/disk.py does not know: teach it")

    @property
    def path(self) -> Any:
        return SimpleNamespace(realpath=self._step("realpath", os.path.realpath))

    def _step(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            folder = options.get("dir_fd")
            if folder is not None:
                arguments = (os.path.join(os.readlink(f"/proc/self/fd/{folder}"), arguments[0]), *arguments[1:])
                options = {key: value for key, value in options.items() if key != "dir_fd"}
            with self._counting:
                step = Step(len(self.steps) + 1, name, arguments)
                self.steps.append(step)
            count = self.fault(step)
            if count is not None and name == "preadv":
                arguments = (arguments[0], [arguments[1][0][:count]], *arguments[2:])
            elif count is not None and name in WRITES:
                arguments = (arguments[0], arguments[1][:count], *arguments[2:])
            result = plain(*arguments, **options)
            self.done(Step(step.number, name, arguments), result)
            return result

        return call

    def __enter__(self) -> Disk:
        self._before = fs.os, fs.exchange, fs.fcntl
        exchange, flock = fs.exchange, fs.fcntl.flock
        fs.os = self
        fs.exchange = self._step("exchange", exchange)
        fs.fcntl = SimpleNamespace(flock=self._step("flock", flock), LOCK_EX=fs.fcntl.LOCK_EX, LOCK_NB=fs.fcntl.LOCK_NB)
        return self

    def __exit__(self, *_: object) -> None:
        fs.os, fs.exchange, fs.fcntl = self._before


def die_before(number: int) -> Fault:
    """Kill the process before a step."""

    def fault(step: Step) -> None:
        if step.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def die_within(number: int, draws: random.Random) -> Fault:
    """Kill the process when a step that writes has written a part; before it where another thread's has its number."""

    def fault(step: Step) -> None:
        if step.number == number:
            if step.name in WRITES:
                fd, data, *rest = step.arguments
                part = memoryview(data)[: draws.randrange(max(1, len(data)))]
                getattr(os, step.name)(fd, part, *rest)
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def fail_at(number: int, code: int, *, for_ever: bool = False) -> Fault:
    """Have a step fail; with `for_ever` all after it too that would change the disk (a full one, a dead one)."""

    def fault(step: Step) -> None:
        if step.number == number or (for_ever and step.number > number and step.changes):
            raise OSError(code, os.strerror(code))

    return fault


def come_short(draws: random.Random) -> Fault:
    """Give and take a few bytes at a time, as any system call may."""
    return lambda step: draws.randint(1, 200) if step.name in (*WRITES, "preadv") else None


def fits(step: Step, code: int) -> bool:
    """True when a call of the system may fail so."""
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        creates = step.name == "open" and step.changes
        return creates or step.name in (*WRITES, "posix_fallocate", "fsync", "fdatasync", "mkdir", "rename", "exchange")
    if code in (errno.EROFS, errno.EACCES):
        return step.changes and step.name not in (*WRITES, "ftruncate", "posix_fallocate", "fsync", "fdatasync")
    if code == errno.EMFILE:
        return step.name in ("open", "listdir")
    return step.name not in ("close", "flock")
