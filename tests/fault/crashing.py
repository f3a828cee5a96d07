"""A process that breaks merges: `python crashing.py FOLDER SCENARIO` prints what it found, one JSON object a point.

FOLDER holds the models `base`, `math` and `code`; outputs lie in `place/`. What is imported is imported once; each merge then
runs in a fork that dies, fails or records at a step of the disk (disk.py), and the same merge runs unharmed after it. A fresh
interpreter with one thread, because forking is safe only there.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk import WRITES, Disk, Fault, Step, come_short, die_before, die_within, fail_at, fits
from models import contents
from power_loss import Record, Tree, flat, images, lay_down

import cuvee
from cuvee.checkpoints.journal import read_journal
from cuvee.checkpoints.publishing import JOURNAL_NAME
from cuvee.errors import CuveeError
from cuvee.recipes import Recipe

PLACE = Path("place")
OUT = PLACE / "out"
OLD = {"old.txt": b"an old model", "config.json": b"{}", "deep/er.txt": b"in a folder"}
Finding = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """Which merge is broken."""

    method: str = "ties"
    parameters: tuple[tuple[str, Any], ...] = (("density", 0.5),)
    shard_size: int = 6000


variant = Variant()


def use(other: Variant) -> None:
    """Break this merge from now on."""
    global variant
    variant = other


def merge(*, overwrite: bool = False, threads: int = 1) -> cuvee.Report:
    base = None if variant.method == "linear" else "base"
    recipe = Recipe(variant.method, models=["math", "code"], base_model=base, parameters=dict(variant.parameters))
    return cuvee.merge(recipe, OUT, overwrite=overwrite, threads=threads, shard_size=variant.shard_size)


def in_child(action: Callable[[], Any], *, kill_after: float | None = None) -> tuple[str, Any]:
    """Run `action` in a fork; returns ("done", its value), ("failed", what the user reads), ("bug", …) or ("killed", None)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = ["done", action()]
        except CuveeError as error:
            answer = ["failed", str(error)]
        except BaseException as error:
            answer = ["bug", f"{type(error).__name__}: {error}"]
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed", None
    result, value = json.loads(answer)
    return result, value


def under(fault: Fault, *, old: bool, threads: int = 1) -> tuple[str, Any]:
    """Merge in a fork with a fault; the value of what is done is how many tensors were resumed."""

    def action() -> int:
        with Disk(fault):
            return merge(overwrite=old, threads=threads).resumed

    return in_child(action)


def clean(*, old: bool) -> None:
    """Make the place empty, but for an old model."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    if old:
        for name, content in OLD.items():
            (OUT / name).parent.mkdir(parents=True, exist_ok=True)
            (OUT / name).write_bytes(content)


def what_is(found: dict[str, bytes] | None, reference: dict[str, bytes]) -> str:
    """Say what lies at the output's name: nothing, the old model, the new one, or what never should."""
    return "nothing" if found is None else "new" if found == reference else "old" if found == OLD else "garbage"


def at_out() -> dict[str, bytes] | None:
    return contents(OUT) if OUT.exists() else None


def journaled() -> int:
    """Return how many tensors the journals name."""
    return sum(max(0, len(read_journal(path)) - 1) for path in PLACE.glob(f".out.cuvee-*/{JOURNAL_NAME}"))


def afterwards(reference: dict[str, bytes], *, old: bool) -> Finding:
    """Say what lies at the output, then run the merge again, unharmed, and say what that gave."""
    found = what_is(at_out(), reference)
    promised = journaled()
    result, value = in_child(lambda: merge(overwrite=old).resumed)
    if found == "new" and not old and result == "failed" and "exists and is not empty" in value:
        result = "already there"
    return {
        "found": found,
        "again": result,
        "said": value if result in ("failed", "bug") else None,
        "identical": at_out() == reference,
        "left": sorted(set(os.listdir(PLACE)) - {"out"}) if result == "done" else [],
        "promised": promised,
        "resumed": value if result == "done" else None,
    }


def reference(*, old: bool) -> tuple[dict[str, bytes], list[Step], Record]:
    """Merge once, unharmed; returns the files, the steps, and their record."""
    clean(old=old)
    record = Record(PLACE)
    with Disk(done=record) as disk:
        merge(overwrite=old)
    return contents(OUT), disk.steps, record


def kill_at_every_step(*, old: bool) -> Iterator[Finding]:
    """Kill before each step that changes the disk, and in the middle of each write."""
    files, steps, _ = reference(old=old)
    draws = random.Random(0)
    for step in steps:
        if not step.changes:
            continue  # to be killed before it is to be killed before the next that does
        for fault in (die_before(step.number), die_within(step.number, draws))[: 1 + (step.name in WRITES)]:
            clean(old=old)
            died, said = under(fault, old=old)
            point = f"{step.number} of {len(steps)}, {step.name}"
            yield {"point": point, "died": died, "before": said, **afterwards(files, old=old)}


def kill_at_random(*, old: bool, times: int = 15, seed: int = 0) -> Iterator[Finding]:
    """Kill a merge in two threads after random times."""
    files, _, _ = reference(old=old)
    clean(old=old)
    begin = time.perf_counter()
    in_child(lambda: merge(overwrite=old, threads=2).resumed)
    took = time.perf_counter() - begin
    draws = random.Random(seed)
    for _ in range(times):
        clean(old=old)
        delay = draws.uniform(0, took)
        died, said = in_child(lambda: merge(overwrite=old, threads=2).resumed, kill_after=delay)
        point = f"after {delay * 1000:.0f} of {took * 1000:.0f} ms"
        yield {"point": point, "died": died, "before": said, **afterwards(files, old=old)}


def kill_again_and_again() -> Iterator[Finding]:
    """Kill one merge over and over, each time a little further; it must come to an end, and lose nothing on the way."""
    files, _, _ = reference(old=False)
    clean(old=False)
    for _ in range(20):
        before = journaled()
        appended = 0

        def dying(step: Step) -> None:
            nonlocal appended
            appended += step.name == "write"
            if appended == 3:
                os.write(step.arguments[0], step.arguments[1][:7])  # a torn line
                os.kill(os.getpid(), signal.SIGKILL)

        died, said = under(dying, old=False)
        yield {"died": died, "said": said, "before": before, "after": journaled()}
        if died != "killed":
            break
    yield {"identical": at_out() == files}


CODES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EMFILE)


def fail_at_every_step(*, old: bool, codes: tuple[int, ...] = CODES, every: int = 1) -> Iterator[Finding]:
    """Have each step (or every so-manieth) fail, once and for ever, in every way that its call can."""
    files, steps, _ = reference(old=old)
    turn = 0
    for step in steps:
        for code in codes:
            if not fits(step, code):
                continue
            for for_ever in (False, True) if step.changes else (False,):
                turn += 1
                if turn % every:
                    continue
                clean(old=old)
                died, said = under(fail_at(step.number, code, for_ever=for_ever), old=old)
                name = errno.errorcode[code] + (" for ever" if for_ever else "")
                point = f"{step.number} of {len(steps)}, {step.name}: {name}"
                yield {"point": point, "died": died, "before": said, **afterwards(files, old=old)}


def come_short_at_random(*, times: int = 6) -> Iterator[Finding]:
    """Have reads and writes give and take a few bytes at a time, under a storm of signals."""
    files, _, _ = reference(old=False)
    for seed in range(times):
        clean(old=False)

        def action(seed: int = seed) -> int:
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            with Disk(come_short(random.Random(seed))):
                return merge(threads=2).resumed

        died, said = in_child(action)
        yield {"point": f"seed {seed}", "died": died, "before": said, "identical": at_out() == files}


def lose_power(*, old: bool, at_random: int = 6, every: int = 40, seed: int = 0) -> Iterator[Finding]:
    """Look at what every prefix of a run may leave on the disk; run the merge again on every so-manieth, and crash that too."""
    files, _, record = reference(old=old)
    draws = random.Random(seed)
    for number, (point, tree) in enumerate(images(record, draws, at_random=at_random)):
        seen = {"point": point, "found": what_is(flat(tree["out"]) if "out" in tree else None, files)}
        if number % every:
            yield seen
            continue
        again = recorded(tree, old=old)
        lay(tree)
        yield {**seen, **afterwards(files, old=old)}
        if again is None:
            continue
        for deeper, below in _some(images(again, draws, at_random=at_random), draws, 3):
            lay(below)
            yield {"point": f"{point}; then {deeper}", **afterwards(files, old=old)}


def _some(found: Iterator[tuple[str, Tree]], draws: random.Random, count: int) -> list[tuple[str, Tree]]:
    everything = list(found)
    return draws.sample(everything, min(count, len(everything)))


def lay(tree: Tree) -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    lay_down(tree, PLACE)


def recorded(tree: Tree, *, old: bool) -> Record | None:
    """Return the record of the merge that recovers from an image; None where it has nothing to do."""
    lay(tree)
    record = Record(PLACE)
    try:
        with Disk(done=record):
            merge(overwrite=old)
    except CuveeError:
        return None
    return record


class Killed(BaseException):
    """The run ends here, and does nothing more to the disk."""


def stop_at(number: int) -> Fault:
    """End a run at a step as a kill does, but let this process live, and the system keep what it has not written yet."""

    def fault(step: Step) -> None:
        if step.number >= number and step.changes:
            raise Killed

    return fault


def kill_then_lose_power(
    *, old: bool, every: int = 9, last: int = 16, at_random: int = 2, seed: int = 0
) -> Iterator[Finding]:
    """Kill a run, begin the same again, and lose power while that works on what the first may not have made durable."""
    files, steps, _ = reference(old=old)
    changing = [step.number for step in steps if step.changes]
    draws = random.Random(seed)
    for number in sorted({*changing[::every], *changing[-last:]}):
        clean(old=old)
        record = Record(PLACE)
        with suppress(Killed, CuveeError), Disk(stop_at(number), done=record):
            merge(overwrite=old)
        with suppress(CuveeError), Disk(done=record):
            merge(overwrite=old)
        for point, tree in images(record, draws, at_random=at_random):
            found = what_is(flat(tree["out"]) if "out" in tree else None, files)
            yield {"point": f"killed at {number} of {len(steps)}; then {point}", "found": found}


SCENARIOS: dict[str, Callable[[], Iterator[Finding]]] = {
    "every step": lambda: kill_at_every_step(old=False),
    "every step, overwriting": lambda: kill_at_every_step(old=True),
    "random": lambda: kill_at_random(old=False),
    "random, overwriting": lambda: kill_at_random(old=True),
    "again and again": kill_again_and_again,
    "failing": lambda: fail_at_every_step(old=False, every=7),
    "failing, overwriting": lambda: fail_at_every_step(old=True, every=11),
    "short": come_short_at_random,
    "power": lambda: lose_power(old=False),
    "power, overwriting": lambda: lose_power(old=True),
    "kill, power": lambda: kill_then_lose_power(old=False),
    "kill, power, overwriting": lambda: kill_then_lose_power(old=True),
}


def prepare(folder: str) -> None:
    """Go to the models, and import once what every merge imports."""
    import torch

    os.chdir(folder)
    torch.set_num_threads(1)
    clean(old=False)
    merge()


if __name__ == "__main__":
    prepare(sys.argv[1])
    for finding in SCENARIOS[sys.argv[2]]():
        print(json.dumps(finding))
