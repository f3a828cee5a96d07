"""A campaign against merges and readers: `python benchmarks/faults.py`, or `make bench-faults`.

Merges of 2 MB models are killed at random steps of the disk, in the middle of writes and after random times; steps fail, once
and for ever; the power fails after every prefix of a run's changes, and again while that is mended. After each, the output's
name must hold nothing, the old model, or the whole new one, and the same command must give the same bytes. Then mutated files
of every kind are read, each safetensors file judged against the safetensors package, and the coverage-guided target runs.

Prints what was tried and found. Ends with 1 when anything is bad.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "tests" / "fault"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(FAULTS)]
os.environ["CUVEE_KERNELS"] = "0"  # a fork must not inherit the threads of compiled kernels

import crashing  # noqa: E402
import fuzzing  # noqa: E402
import torch  # noqa: E402
from crashing import Finding, Variant  # noqa: E402
from disk import WRITES, die_before, die_within, fail_at, fits  # noqa: E402
from models import family, write_model  # noqa: E402

import cuvee  # noqa: E402

SHAPES = {f"model.layers.{n}.mlp.{w}_proj.weight": (256, 160) for n in range(4) for w in ("up", "gate", "down")}
SHAPES |= {f"model.layers.{n}.input_layernorm.weight": (160,) for n in range(4)} | {"model.norm.weight": (160,)}
VARIANTS = (
    Variant("ties", (("density", 0.5),), 400_000),
    Variant("linear", (), 10**9),
    Variant("dare_ties", (("density", 0.5),), 700_000),
    Variant("ties", (("density", 0.4), ("trim_scope", "model")), 1_000_000),
)


@dataclass
class Tally:
    """What became of one kind of fault."""

    title: str
    tried: int = 0
    published: int = 0
    nothing: int = 0
    resumed: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, finding: Finding, *, old: bool) -> None:
        """Count a finding; what must never be is kept with its point."""
        self.tried += 1
        self.published += finding["found"] == "new"
        self.nothing += finding["found"] == ("old" if old else "nothing")
        fine = finding["found"] in ("new", "old" if old else "nothing") and finding.get("died") != "bug"
        if "again" in finding:
            identical = finding["again"] in ("done", "already there") and finding["identical"] and not finding["left"]
            self.resumed += identical
            fine = fine and identical
        if not fine:
            self.bad.append(f"{self.title}: {finding}")

    def row(self) -> str:
        cells = (self.tried, self.published, self.nothing, self.resumed, len(self.bad))
        return f"| {self.title} | " + " | ".join(f"{cell:,}".replace(",", " ") for cell in cells) + " |"


def kills(draws: random.Random, *, old: bool) -> Iterator[Finding]:
    """Kill merges for ever: each before a random step that changes the disk, or within one that writes."""
    known = {variant: _reference(variant, old=old) for variant in VARIANTS}
    while True:
        variant = draws.choice(VARIANTS)
        crashing.use(variant)
        files, steps = known[variant]
        step = draws.choice([step for step in steps if step.changes])
        within = step.name in WRITES and draws.random() < 0.5
        fault = die_within(step.number, draws) if within else die_before(step.number)
        crashing.clean(old=old)
        died, said = crashing.under(fault, old=old, threads=draws.choice((1, 2)))
        point = f"{variant.method}, step {step.number} of {len(steps)}, {step.name}"
        yield {"point": point, "died": died, "before": said, **crashing.afterwards(files, old=old)}


def failures(draws: random.Random, *, old: bool) -> Iterator[Finding]:
    """Have random steps fail for ever, in every way that they can, once or from then on."""
    known = {variant: _reference(variant, old=old) for variant in VARIANTS}
    while True:
        variant = draws.choice(VARIANTS)
        crashing.use(variant)
        files, steps = known[variant]
        step, code = draws.choice(steps), draws.choice(crashing.CODES)
        if not fits(step, code):
            continue
        for_ever = step.changes and draws.random() < 0.5
        crashing.clean(old=old)
        died, said = crashing.under(fail_at(step.number, code, for_ever=for_ever), old=old)
        point = f"{variant.method}, step {step.number}, {step.name}: {errno.errorcode[code]}, for ever: {for_ever}"
        yield {"point": point, "died": died, "before": said, **crashing.afterwards(files, old=old)}


def random_times(draws: random.Random, *, old: bool) -> Iterator[Finding]:
    """Kill merges in two threads after random times, for ever."""
    while True:
        crashing.use(draws.choice(VARIANTS))
        yield from crashing.kill_at_random(old=old, times=25, seed=draws.randrange(1 << 30))


def power(draws: random.Random, *, old: bool) -> Iterator[Finding]:
    """Lose power for ever: images of every prefix of a run, recoveries, and crashes of these."""
    while True:
        crashing.use(draws.choice(VARIANTS))
        yield from crashing.lose_power(old=old, at_random=12, every=60, seed=draws.randrange(1 << 30))


def kill_power(draws: random.Random, *, old: bool) -> Iterator[Finding]:
    """For ever: kill a run, begin the same again, and look at what a power loss may leave of both."""
    while True:
        crashing.use(draws.choice(VARIANTS))
        seed, every = draws.randrange(1 << 30), draws.randrange(20, 60)
        yield from crashing.kill_then_lose_power(old=old, every=every, last=12, seed=seed)


def _reference(variant: Variant, *, old: bool):  # type: ignore[no-untyped-def]
    crashing.use(variant)
    files, steps, _ = crashing.reference(old=old)
    return files, steps


def run(title: str, findings: Iterable[Finding], points: int, *, old: bool) -> Tally:
    """Try so many points of one kind."""
    tally = Tally(title + (", overwriting" if old else ""))
    for finding in itertools.islice(findings, points):
        tally.add(finding, old=old)
    print(tally.row(), *tally.bad[:3], sep="\n", flush=True)
    return tally


def fuzz(inputs: int, seeds: fuzzing.Seeds, draws: random.Random) -> int:
    """Read so many mutated files; returns how many were taken wrongly."""
    folder = fuzzing.scratch_folder()
    verdicts: Counter[str] = Counter()
    wrong: list[str] = []
    begin = time.perf_counter()
    for _ in range(inputs):
        kind, content = seeds.pick(draws)
        try:
            verdicts[fuzzing.judge(kind, content, folder)] += 1
        except fuzzing.Wrong as error:
            wrong.append(f"{kind}: {error}: {content[:200]!r}")
    shutil.rmtree(folder)
    print(f"\nmutations: {inputs:,} inputs in {time.perf_counter() - begin:.0f} s, of every kind: "
          f"{verdicts['refused']:,} refused, {verdicts['accepted']:,} accepted; wrong = {len(wrong)}", flush=True)  # fmt: skip
    print(*wrong[:10], sep="\n", end="\n" if wrong else "")
    return len(wrong)


def guided(inputs: int, seeds: fuzzing.Seeds) -> int:
    """Run the coverage-guided target; returns 1 where it found something."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("coverage-guided: not run; pip install cuvee[fuzz]")
        return 0
    corpus = fuzzing.scratch_folder()
    for number, kind in enumerate(fuzzing.JUDGES):
        for place, content in enumerate([*seeds.valid[kind], *seeds.attacks[kind]]):
            (corpus / f"{kind}-{place}").write_bytes(bytes([number]) + content)
    command = [sys.executable, str(FAULTS / "fuzz_target.py"), str(corpus), f"-atheris_runs={inputs}", "-max_len=8192",
               "-timeout=20", "-rss_limit_mb=3000", f"-artifact_prefix={corpus}/"]  # fmt: skip
    begin = time.perf_counter()
    scratch = fuzzing.scratch_folder()
    environment = {**os.environ, "CUVEE_FUZZ_FOLDER": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    shutil.rmtree(scratch)
    ran = max([0, *(int(n) for n in re.findall(r"^(?:#|Done )(\d+)", done.stderr, re.MULTILINE))])
    covered = re.findall(r"cov: (\d+)", done.stderr)
    kept = len(list(corpus.iterdir()))
    shutil.rmtree(corpus)
    found = int(done.returncode != 0)
    print(f"coverage-guided: {ran:,} inputs in {time.perf_counter() - begin:.0f} s, {covered[-1] if covered else '?'} edges, "
          f"{kept} inputs kept; crashes, hangs, wrong acceptances = {found}", flush=True)  # fmt: skip
    if found:
        print(done.stderr[-3000:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--points", type=int, default=400, help="of each kind of kill and failure, and again overwriting"
    )
    parser.add_argument("--images", type=int, default=10_000, help="of a disk after power loss, and again overwriting")
    parser.add_argument("--inputs", type=int, default=100_000, help="of each of the two fuzzers")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = fuzzing.scratch_folder()
    base, experts = family(2, SHAPES)
    for name, tensors in zip(("base", "math", "code"), (base, *experts), strict=True):
        others = {"tokenizer.json": "{}", "extra/notes.txt": "carried over"}
        write_model(folder / name, {**tensors, "steps": torch.arange(3)}, {"model_type": "llama"}, others=others)
    small = {"w": torch.randn(4, 3), "v": torch.randn(5).bfloat16()}
    cuvee.merge(cuvee.Recipe("linear", models=[small, small]), folder / "small")
    seeds = fuzzing.seeds(FAULTS / "attacks" / "files", folder / "small")
    crashing.prepare(str(folder))
    print(f"seed {asked.seed}; models of {sum(t.nbytes for t in base.values()) / 1e6:.1f} MB\n")
    print("| fault | tried | published and valid | nothing (or the old) | resumed to identical bytes | bad |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    draws = random.Random(asked.seed)
    bad: list[str] = []
    for old in (False, True):
        bad += run("kill at a step", kills(draws, old=old), asked.points, old=old).bad
        bad += run("kill at a time", random_times(draws, old=old), asked.points // 4, old=old).bad
        bad += run("a step fails", failures(draws, old=old), asked.points, old=old).bad
        bad += run("power loss", power(draws, old=old), asked.images, old=old).bad
        bad += run("kill, rerun, power loss", kill_power(draws, old=old), asked.images, old=old).bad
    print(f"\nbad = {len(bad)}", flush=True)
    shutil.rmtree(folder)
    fuzzing.watch_for_code()
    wrong = fuzz(asked.inputs, seeds, draws) + guided(asked.inputs, seeds) if asked.inputs else 0
    print(f"wrong acceptances = {wrong}")
    sys.exit(1 if bad or wrong else 0)


if __name__ == "__main__":
    main()
