"""A process that kills merges: `python crashing.py FOLDER SCENARIO` forks a child for each point, and prints what it found.

FOLDER holds the models `base`, `math` and `code`. In each child, every call through `cuvee.checkpoints.fs` is counted, and
before the nth (or in the middle of it, where it writes) the child kills itself by SIGKILL. Then the same merge runs
unharmed. It runs in a fresh interpreter with one thread, because forking is safe only there.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models import contents

import cuvee
from cuvee.checkpoints import fs
from cuvee.checkpoints.journal import read_journal
from cuvee.checkpoints.publishing import JOURNAL_NAME
from cuvee.errors import ResourceError
from cuvee.recipes import Recipe

WRITES = ("pwrite", "append")
# Being killed before one of these is being killed before the next call that changes something.
LOOKS = [
    "close",
    "exists",
    "fingerprint",
    "is_file",
    "is_folder",
    "listdir",
    "open_read",
    "pread_into",
    "read_file",
    "real_path",
    "free_bytes",
]
OLD = {"old.txt": b"an old model", "config.json": b"{}"}


def seam() -> list[str]:
    """Return the functions of the seam."""
    return [name for name in fs.__all__ if inspect.isfunction(getattr(fs, name))]


def count_calls(on_call: Callable[[int, str, tuple[Any, ...]], None]) -> list[str]:
    """Have `on_call(number, name, arguments)` called before every call of the seam; returns the growing list of names."""
    called: list[str] = []

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            on_call(len(called), name, arguments)
            return function(*arguments, **options)

        return counted

    for name in seam():
        setattr(fs, name, wrap(name, getattr(fs, name)))
    return called


def recipe() -> Recipe:
    return Recipe("ties", models=["math", "code"], base_model="base", parameters={"density": 0.5})


def merge(out: str, *, overwrite: bool = False, threads: int = 1) -> cuvee.Report:
    return cuvee.merge(recipe(), out, overwrite=overwrite, threads=threads, shard_size=6000)


def in_child(action: Callable[[], Any], *, kill_after: float | None = None) -> tuple[str, Any]:
    """Run `action` in a fork; returns ("done", its value), ("failed", error), or ("killed", None)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = ["done", action()]
        except BaseException as error:
            answer = ["failed", f"{type(error).__name__}: {error}"]
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    answer = b""
    while chunk := os.read(reader, 65536):
        answer += chunk
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed", None
    result, value = json.loads(answer)
    return result, value


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".out"))


def journaled(folder: Path) -> int:
    """Return how many tensors the staging folder's journal names."""
    return sum(max(0, len(read_journal(path)) - 1) for path in folder.glob(f".out.cuvee-*/{JOURNAL_NAME}"))


def clean(*, old: bool) -> None:
    shutil.rmtree("out", ignore_errors=True)
    for name in hidden(Path()):
        shutil.rmtree(name) if Path(name).is_dir() else os.unlink(name)
    if old:
        Path("out").mkdir()
        for name, content in OLD.items():
            Path("out", name).write_bytes(content)


def after_a_crash(reference: dict[str, bytes], *, old: bool) -> dict[str, Any]:
    """Say what lies at `out`, then run the merge again and say what that gave."""
    before = contents(Path("out")) if Path("out").exists() else None
    found = "nothing" if before is None else "new" if before == reference else "old" if before == OLD else "garbage"
    promised = journaled(Path())
    result, value = in_child(lambda: merge("out", overwrite=old).resumed)
    if found == "new" and not old and result == "failed" and ResourceError.__name__ in value:
        result = "already there"
    return {
        "found": found,
        "again": result,
        "error": value if result == "failed" else None,
        "identical": contents(Path("out")) == reference,
        "left": hidden(Path()) if result == "done" else [],
        "promised": promised,
        "resumed": value if result == "done" else None,
    }


def reference() -> tuple[dict[str, bytes], list[str]]:
    """Merge once, unharmed; returns the files and the names of the seam's calls."""
    clean(old=False)

    def action() -> list[str]:
        called = count_calls(lambda *_: None)
        merge("out")
        return called

    result, named = in_child(action)
    assert result == "done", named
    return contents(Path("out")), named


def kill_at_every_call(*, old: bool) -> list[dict[str, Any]]:
    """Kill before each call of the seam, and in the middle of each write."""
    files, called = reference()
    clean(old=old)
    if old:

        def overwriting() -> list[str]:
            calls = count_calls(lambda *_: None)
            merge("out", overwrite=True)
            return calls

        _, called = in_child(overwriting)
    findings = []
    for number, name in enumerate(called, 1):
        if name in LOOKS:
            continue
        for halfway in (False, True) if name in WRITES else (False,):
            clean(old=old)

            def dying(number: int = number, halfway: bool = halfway) -> None:
                plain = {name: getattr(fs, name) for name in WRITES}

                def on_call(at: int, what: str, arguments: tuple[Any, ...]) -> None:
                    if at == number:
                        if halfway:
                            fd, data, *rest = arguments
                            plain[what](fd, memoryview(data)[: len(data) // 2], *rest)
                        os.kill(os.getpid(), signal.SIGKILL)

                count_calls(on_call)
                merge("out", overwrite=old)

            result, value = in_child(dying)
            point = f"{number} of {len(called)}, {'in' if halfway else 'before'} {name}"
            findings.append({"point": point, "died": result, "value": value, **after_a_crash(files, old=old)})
    return findings


def kill_at_random(*, old: bool) -> list[dict[str, Any]]:
    """Kill a merge in two threads after random times."""
    files, _ = reference()
    clean(old=old)
    begin = time.perf_counter()
    in_child(lambda: merge("out", overwrite=old, threads=2).resumed)
    took = time.perf_counter() - begin
    draws = random.Random(0)
    findings = []
    for _ in range(15):
        clean(old=old)
        delay = draws.uniform(0, took)
        result, value = in_child(lambda: merge("out", overwrite=old, threads=2).resumed, kill_after=delay)
        point = f"after {delay * 1000:.0f} of {took * 1000:.0f} ms"
        findings.append({"point": point, "died": result, "value": value, **after_a_crash(files, old=old)})
    return findings


def kill_again_and_again() -> list[dict[str, Any]]:
    """Kill one merge over and over, each time a little further; it must come to an end, and lose nothing on the way."""
    files, _ = reference()
    clean(old=False)
    findings = []
    for _ in range(20):
        before = journaled(Path())

        def dying() -> int:
            appended = 0

            def on_call(_: int, name: str, arguments: tuple[Any, ...]) -> None:
                nonlocal appended
                appended += name == "append"
                if appended == 3:
                    os.write(arguments[0], arguments[1][:7])  # a torn line
                    os.kill(os.getpid(), signal.SIGKILL)

            count_calls(on_call)
            return merge("out").resumed

        result, value = in_child(dying)
        findings.append({"died": result, "value": value, "before": before, "after": journaled(Path())})
        if result != "killed":
            break
    findings.append({"identical": Path("out").exists() and contents(Path("out")) == files})
    return findings


SCENARIOS: dict[str, Callable[[], Any]] = {
    "every call": lambda: kill_at_every_call(old=False),
    "every call, overwriting": lambda: kill_at_every_call(old=True),
    "random": lambda: kill_at_random(old=False),
    "random, overwriting": lambda: kill_at_random(old=True),
    "again and again": kill_again_and_again,
}

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    import torch

    torch.set_num_threads(1)
    merge("out")  # what is imported here is not imported by every child
    print(json.dumps(SCENARIOS[sys.argv[2]]()))
