"""What the speed benchmark found, as a table, as Markdown and as JSON."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from process_cost import ProcessCost
from rich.table import Table
from speed_recipes import SpeedCase

MET, MISSED = "✓", "✗"
NONE = "–"
HEADINGS = (
    "method",
    "floor s",
    "Cuvée s",
    "merge phase s",
    "mergekit s",
    "phase / floor",
    "mergekit / Cuvée",
    "anon MB Cuvée",
    "anon MB mergekit",
    "RSS MB Cuvée",
    "RSS MB mergekit",
)
TERMINAL_COLUMNS = 9
"""What fits a terminal; the resident sizes, which count the mapped files too, are in the written results."""
HOW_MEASURED = (
    "Wall time of whole processes, the best run of each; peak memory is the largest of all runs. "
    "Inputs are warm in the page cache for all, and so is free memory; every output is deleted before the next run.",
    "floor: a process of its own reads every input once in 8 MiB reads and writes and fsyncs as many bytes as "
    "the merge does (better of 1 and 2 threads). Cuvée fsyncs its output too, mergekit does not.",
    "merge phase: Cuvée's plan, merge and publish; the rest of its process is start-up, imports and reading the recipe. Every "
    "Cuvée run starts without measurements "
    "of an earlier one. mergekit leaves out the tokenizer and the model card.",
)


@dataclass(frozen=True)
class CuveeCost:
    """One run of Cuvée and its own account of the seconds, where it gave one."""

    process: ProcessCost
    phases: dict[str, float] | None

    @property
    def is_complete(self) -> bool:
        """Whether the merge succeeded and said how long its parts took."""
        return self.process.returncode == 0 and self.phases is not None


@dataclass(frozen=True)
class Timing:
    """The best time and the largest memory of some runs of one program."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_anon_bytes: int

    @classmethod
    def best_of(cls, costs: Sequence[ProcessCost]) -> Timing:
        best = min(costs, key=lambda cost: cost.wall_s)
        return cls(
            best.wall_s,
            best.cpu_s,
            max(cost.peak_rss_bytes for cost in costs),
            max(cost.peak_anon_bytes for cost in costs),
        )


@dataclass(frozen=True)
class MethodSpeed:
    """What one method took: the floor, Cuvée and the peer; None for a program that failed or was left out."""

    method: str
    floor: Timing | None
    cuvee: Timing | None
    cuvee_phases_s: dict[str, float] | None
    peer: Timing | None
    floor_bar: float | None
    peer_bar: float
    failures: list[str]

    @classmethod
    def best_of(
        cls, case: SpeedCase, floors: list[ProcessCost], cuvee: list[CuveeCost], peers: list[ProcessCost]
    ) -> MethodSpeed:
        """Choose each program's best run; a program counts only if all its runs succeeded."""
        failed = [
            (name, cost.last_words)
            for name, costs in (
                ("floor", floors),
                ("Cuvée", [run.process for run in cuvee]),
                ("mergekit", peers),
            )
            for cost in costs[-1:]
            if cost.returncode != 0
        ]
        done = all(run.is_complete for run in cuvee)
        if not done and all(run.process.returncode == 0 for run in cuvee):
            failed.append(("Cuvée", "its JSON does not say `seconds`"))
        best = min(cuvee, key=_phase_of) if done else None
        return cls(
            method=case.method,
            floor=_timing(floors),
            cuvee=Timing.best_of([run.process for run in cuvee]) if done else None,
            cuvee_phases_s=best.phases if best else None,
            peer=_timing(peers),
            floor_bar=case.floor_bar,
            peer_bar=case.peer_bar,
            failures=[f"{case.method}: {name} failed: {words}" for name, words in failed],
        )

    @property
    def merge_phase_s(self) -> float | None:
        """Cuvée's seconds without start-up and imports, in the run where they were fewest."""
        return merge_phase(self.cuvee_phases_s) if self.cuvee_phases_s else None

    @property
    def times_floor(self) -> float | None:
        """Merge phase over copy floor."""
        phase = self.merge_phase_s
        return phase / self.floor.wall_s if phase is not None and self.floor else None

    @property
    def times_faster(self) -> float | None:
        """The peer's whole process over Cuvée's."""
        return self.peer.wall_s / self.cuvee.wall_s if self.cuvee and self.peer else None

    def in_words(self) -> str:
        """One line for the reader who waits."""
        named = (("floor", self.floor), ("Cuvée", self.cuvee), ("mergekit", self.peer))
        parts = [f"{name} {timing.wall_s:.2f} s" for name, timing in named if timing]
        return f"{self.method}: {', '.join(parts) or 'nothing ran'}"

    def cells(self) -> list[str]:
        """The method's line of the table, under `HEADINGS`."""
        return [
            self.method,
            _seconds(self.floor),
            _seconds(self.cuvee),
            _number(self.merge_phase_s, "{:.2f}"),
            _seconds(self.peer),
            _against_bar(self.times_floor, self.floor_bar, "{:.2f}x", "≤", operator.le),
            _against_bar(self.times_faster, self.peer_bar, "{:.1f}x", "≥", operator.ge),
            *(_megabytes(timing.peak_anon_bytes if timing else None) for timing in (self.cuvee, self.peer)),
            *(_megabytes(timing.peak_rss_bytes if timing else None) for timing in (self.cuvee, self.peer)),
        ]


@dataclass(frozen=True)
class SpeedReport:
    """All that one run of the benchmark found."""

    device: str
    scale: float
    parameters: int
    model_bytes: int
    runs: int
    load_averages: tuple[float, float]
    peer: str | None
    peer_threads: tuple[int, ...]
    speeds: list[MethodSpeed]
    startup_s: dict[str, float]
    remarks: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        peer = self.peer or "no peer"
        size = f"{self.parameters / 1e6:.0f} M bf16 parameters"
        return f"Merge speed: {size}, {self.device}, {machine_in_words()}; {peer}"

    @property
    def notes(self) -> list[str]:
        """What the reader of the table has to know."""
        startup = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.startup_s.items())
        before, after = self.load_averages
        return [
            *HOW_MEASURED,
            *self._peer_notes,
            f"load average {before:.1f} before and {after:.1f} after; above the core count, wall times hold waiting too.",
            f"start-up: {startup or 'nothing ran'}",
            *self.remarks,
        ]

    @property
    def _peer_notes(self) -> list[str]:
        threads = " and ".join(map(str, self.peer_threads))
        note = f"mergekit ran with {threads} thread(s); the best counts. With more threads than free cores it loses."
        return [note] if self.peer else []


def machine_in_words() -> str:
    """The machine as core count and memory, and nothing else."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{len(os.sched_getaffinity(0))} cores, {memory / 1e9:.0f} GB"


def result_table(report: SpeedReport) -> Table:
    """The results as a table for the terminal."""
    table = Table(title=report.title)
    for heading in HEADINGS[:TERMINAL_COLUMNS]:
        is_ratio = " / " in heading
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=is_ratio)
    for speed in report.speeds:
        table.add_row(*speed.cells()[:TERMINAL_COLUMNS])
    return table


def write_results(folder: Path, report: SpeedReport) -> list[Path]:
    """Write the results as JSON and Markdown and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"merge_speed-{report.device}-x{report.scale:g}"
    as_json, as_markdown = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".md")
    as_json.write_text(json.dumps(_record(report), indent=2, ensure_ascii=False) + "\n")
    as_markdown.write_text(_markdown(report))
    return [as_json, as_markdown]


def _record(report: SpeedReport) -> dict[str, object]:
    derived = [
        {"merge_phase_s": s.merge_phase_s, "times_floor": s.times_floor, "times_faster": s.times_faster}
        for s in report.speeds
    ]
    record: dict[str, object] = asdict(report)
    record["speeds"] = [asdict(speed) | extra for speed, extra in zip(report.speeds, derived, strict=True)]
    return {"machine": machine_in_words()} | record


def _markdown(report: SpeedReport) -> str:
    lines = [
        f"# {report.title}",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|---|{'---:|' * (len(HEADINGS) - 1)}",
        *(f"| {' | '.join(speed.cells())} |" for speed in report.speeds),
        "",
        *(f"* {line}" for line in report.notes),
        "",
        f"Made by `make bench-merge DEVICE={report.device} SCALE={report.scale:g}`.",
    ]
    return "\n".join(lines) + "\n"


def _phase_of(cost: CuveeCost) -> float:
    return merge_phase(cost.phases) if cost.phases else float("inf")


def merge_phase(phases: Mapping[str, float]) -> float:
    """Return Cuvée's seconds without start-up, imports and reading the recipe."""
    return sum(phases[phase] for phase in ("plan", "merge", "publish"))


def _timing(costs: list[ProcessCost]) -> Timing | None:
    return Timing.best_of(costs) if costs and all(cost.returncode == 0 for cost in costs) else None


def _seconds(timing: Timing | None) -> str:
    return _number(timing.wall_s if timing else None, "{:.2f}")


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:.0f}"


def _number(value: float | None, template: str) -> str:
    return NONE if value is None else template.format(value)


def _against_bar(
    found: float | None, bar: float | None, template: str, sign: str, meets: Callable[[float, float], bool]
) -> str:
    """The ratio found, with its bar and a mark: `1.43x (≤ 2 ✓)`."""
    ratio = _number(found, template)
    if bar is None:
        return ratio
    mark = "" if found is None else f" {MET if meets(found, bar) else MISSED}"
    return f"{ratio} ({sign} {bar:g}{mark})"
