"""What a disk may hold after the power fails: every prefix of a run's steps, with what was not synced there, lost or torn.

A record of the steps below one folder is replayed in memory. A synced write is there. Of the others, any may be lost, torn
at a multiple of 512 bytes, or there without those before it; a size may be there without the data, with garbage in its
place; a name may be new, old or missing, whatever is in the file. A rename is one change, of both names.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disk import Step

SECTOR = 512
Tree = dict[str, Any]
"""Name -> bytes of a file, or the tree of a folder."""


@dataclass(frozen=True)
class Event:
    """One change, or one sync.

    Attributes:
        kind: "write", "size", "names" or "sync".
        inodes: the file, or the folders whose names change.
        what: (offset, bytes); the size; [(folder, name, inode or None), …]; nothing.
    """

    kind: str
    inodes: tuple[int, ...]
    what: Any = None


@dataclass
class Record:
    """The steps of a run below `root`, as changes of numbered files and folders. What lies there before is durable."""

    root: Path
    events: list[Event] = field(default_factory=list)
    _names: dict[int, dict[str, int]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    _open: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = Path(os.path.abspath(self.root))
        self.content: dict[int, bytes] = {}
        self._load(self.root)
        self.start = {inode: dict(names) for inode, names in self._names.items()}

    def _load(self, path: Path) -> int:
        inode = self._new()
        if not path.is_dir():
            self.content[inode] = path.read_bytes()
            self._sizes[inode] = len(self.content[inode])
            return inode
        self._names[inode] = {}
        for child in sorted(path.iterdir()):
            self._names[inode][child.name] = self._load(child)
        return inode

    def _new(self) -> int:
        return len(self._names) + len(self._sizes)

    def _place(self, path: Any) -> tuple[int, str] | None:
        """Return folder and name of a path, None where it is not below the root."""
        full = Path(os.path.abspath(path))
        if not full.is_relative_to(self.root) or full == self.root:
            return None
        folder = 0
        *above, name = full.relative_to(self.root).parts
        for part in above:
            folder = self._names[folder][part]
        return folder, name

    def __call__(self, step: Step, result: Any) -> None:
        """Take a step that has succeeded."""
        if (taken := getattr(self, f"on_{step.name}", None)) is not None:
            taken(*step.arguments[: 2 if step.name == "open" else None], result=result)

    def is_folder(self, inode: int) -> bool:
        """True for folders, whether they are still there or not."""
        return inode in self._names

    def _names_change(self, *entries: tuple[int, str, int | None]) -> None:
        for folder, name, inode in entries:
            if inode is None:
                self._names[folder].pop(name, None)
            else:
                self._names[folder][name] = inode
        self.events.append(Event("names", tuple(folder for folder, _, _ in entries), entries))

    def on_open(self, path: Any, flags: int, result: int) -> None:
        if Path(os.path.abspath(path)) == self.root:
            self._open[result] = 0
            return
        if (place := self._place(path)) is None:
            return
        folder, name = place
        if name not in self._names[folder]:
            inode = self._new()
            self._sizes[inode] = 0
            self._names_change((folder, name, inode))
        self._open[result] = self._names[folder][name]

    def on_close(self, fd: int, result: Any) -> None:
        self._open.pop(fd, None)

    def on_pwrite(self, fd: int, data: Any, offset: int, result: int) -> None:
        if (inode := self._open.get(fd)) is not None:
            self.events.append(Event("write", (inode,), (offset, bytes(data[:result]))))
            self._sizes[inode] = max(self._sizes[inode], offset + result)

    def on_write(self, fd: int, data: Any, result: int) -> None:
        if (inode := self._open.get(fd)) is not None:
            self.on_pwrite(fd, data, self._sizes[inode], result=result)

    def on_ftruncate(self, fd: int, size: int, result: Any) -> None:
        if (inode := self._open.get(fd)) is not None and self._sizes[inode] != size:
            self.events.append(Event("size", (inode,), size))
            self._sizes[inode] = size

    def on_posix_fallocate(self, fd: int, offset: int, size: int, result: Any) -> None:
        if (inode := self._open.get(fd)) is not None:
            self.on_ftruncate(fd, max(self._sizes[inode], offset + size), result)

    def on_fsync(self, fd: int, result: Any) -> None:
        if (inode := self._open.get(fd)) is not None:
            self.events.append(Event("sync", (inode,)))

    on_fdatasync = on_fsync

    def on_mkdir(self, path: Any, result: Any) -> None:
        if place := self._place(path):
            inode = self._new()
            self._names[inode] = {}
            self._names_change((*place, inode))

    def on_rename(self, source: Any, target: Any, result: Any) -> None:
        one, other = self._place(source), self._place(target)
        assert one and other
        self._names_change((*one, None), (*other, self._names[one[0]][one[1]]))

    def on_exchange(self, source: Any, target: Any, result: Any) -> None:
        one, other = self._place(source), self._place(target)
        assert one and other
        first, second = self._names[one[0]][one[1]], self._names[other[0]][other[1]]
        self._names_change((*one, second), (*other, first))

    def on_unlink(self, path: Any, result: Any) -> None:
        if place := self._place(path):
            self._names_change((*place, None))

    on_rmdir = on_unlink


def images(record: Record, draws: random.Random, *, at_random: int) -> Iterator[tuple[str, Tree]]:
    """Yield what the disk may hold after each prefix of the record: four that are certain, and some at random."""
    for length in range(len(record.events) + 1):
        for plan in ("nothing", "everything", "names only", "data only", *["some"] * at_random):
            yield f"after {length} of {len(record.events)} changes, {plan} unsynced", image(record, length, plan, draws)


def image(record: Record, length: int, plan: str, draws: random.Random) -> Tree:
    """Return what the disk may hold after the first `length` changes.

    Args:
        plan: what survives of that which was not synced: "nothing", "everything", "names only", "data only", "some".
    """
    events = record.events[:length]
    synced: dict[int, int] = {}
    for at, event in enumerate(events):
        if event.kind == "sync":
            synced[event.inodes[0]] = at
    names: dict[int, dict[str, int | None]] = {inode: dict(entries) for inode, entries in record.start.items()}
    files = {inode: bytearray(content) for inode, content in record.content.items()}
    late: list[Event] = []
    for at, event in enumerate(events):
        durable = any(at < synced.get(inode, -1) for inode in event.inodes)
        if event.kind == "names":
            # a folder's own names may survive one by one; its being there at all is its parent's name
            if durable or _survives(plan, "names", draws):
                for folder, name, inode in event.what:
                    names.setdefault(folder, {})[name] = inode
        elif event.kind != "sync":
            if durable:
                _apply(files.setdefault(event.inodes[0], bytearray()), event, draws)
            elif _survives(plan, "data", draws):
                late.append(event)
    if plan == "some":
        draws.shuffle(late)
    for event in late:
        _apply(
            files.setdefault(event.inodes[0], bytearray()), event, draws, torn=plan == "some" and draws.random() < 0.3
        )
    return _tree(0, names, files, record)


def _survives(plan: str, kind: str, draws: random.Random) -> bool:
    return plan in ("everything", f"{kind} only") or (plan == "some" and draws.random() < 0.5)


def _apply(content: bytearray, event: Event, draws: random.Random, *, torn: bool = False) -> None:
    if event.kind == "size":
        if event.what < len(content):
            del content[event.what :]
        else:
            content.extend(b"\xa5" * (event.what - len(content)))  # whatever lay there before
        return
    offset, data = event.what
    if torn:
        data = data[: SECTOR * draws.randrange(len(data) // SECTOR + 1)]
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _tree(inode: int, names: dict[int, dict[str, int | None]], files: dict[int, bytearray], record: Record) -> Tree:
    tree: Tree = {}
    for name, child in names.get(inode, {}).items():
        if child is not None:
            is_folder = record.is_folder(child)
            tree[name] = _tree(child, names, files, record) if is_folder else bytes(files.get(child, b""))
    return tree


def flat(tree: Tree, prefix: str = "") -> dict[str, bytes]:
    """Return every file of a tree, by relative name."""
    found: dict[str, bytes] = {}
    for name, what in tree.items():
        found |= flat(what, f"{prefix}{name}/") if isinstance(what, dict) else {prefix + name: what}
    return found


def lay_down(tree: Tree, folder: Path) -> None:
    """Write a tree into an empty folder."""
    for name, what in tree.items():
        if isinstance(what, dict):
            (folder / name).mkdir()
            lay_down(what, folder / name)
        else:
            (folder / name).write_bytes(what)
