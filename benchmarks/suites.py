"""What suites of experts cost: time and memory to build each, and to run methods on it; the size of the report.

    python benchmarks/suites.py [--suites lm vision] [--full] [--device cuda] [--methods ties tsv_m | all] [--again]

Each suite is built by `cuvee bench build` in a home of its own that has the packages and nothing else, then scored by
`cuvee bench run`: whole processes. What a row found is kept: the same command goes on with the rows that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_speed import BENCHMARKS, WIDTH_IN_A_FILE
from process_cost import ProcessCost, run_measured
from rich.console import Console
from rich.table import Table
from speed_report import machine_in_words

from cuvee.evaluation.home import cuvee_home
from cuvee.evaluation.packages import archive
from cuvee.evaluation.suites import SUITES, suite

METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "tsv_m", "iso_c")
WITHOUT_TASKS = ("pairs-chgnet",)
REPORT_LIMIT = 3_000_000
HEADINGS = (
    "suite",
    "build s",
    "CPU s",
    "anon MB",
    "run s",
    "CPU s",
    "anon MB",
    "report KB",
    "models MB",
)
NOTES = (
    "build: `cuvee bench build`, packages there, nothing built before. run: `cuvee bench run` of {methods}; nine coefficients "
    "each, all experts and fewer, and experts of a quarter of the training. s: wall time of the whole process; CPU s: of all "
    "its threads, which a busy machine changes less. anon MB: peak anonymous memory. models MB: base, experts, and experts of "
    "a quarter of the training.",
)


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    suites: Sequence[str]
    methods: Sequence[str]
    full: bool
    device: str
    again: bool
    results: Path

    @property
    def label(self) -> str:
        return f"suites-{'full' if self.full else 'quick'}-{self.device}"


def main() -> None:
    """Measure what is missing, and write the table."""
    options = parse_options()
    console = Console(width=None if sys.stdout.isatty() else WIDTH_IN_A_FILE)
    kept = options.results / options.label
    kept.mkdir(parents=True, exist_ok=True)
    console.print(f"{machine_in_words()}, {options.device}", highlight=False)
    for name in options.suites:
        file = kept / f"{name}.json"
        if options.again or not file.exists():
            row = measure(name, options)
            file.write_text(json.dumps(row, indent=2) + "\n")
    rows = [json.loads(file.read_text()) for name in SUITES if (file := kept / f"{name}.json").exists()]
    console.print(table_of(rows, options))
    console.print(notes(options), highlight=False)
    path = options.results / f"{options.label}.md"
    path.write_text(markdown(rows, options))
    console.print(f"written: {os.path.relpath(path)}", highlight=False)


def parse_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=list(SUITES), metavar="SUITE")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="METHOD", help="all: every registered one"
    )
    parser.add_argument("--full", action="store_true", help="the full forms, an hour of two cores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    args = parser.parse_args()
    return Options(args.suites, args.methods, args.full, args.device, args.again, args.results)


def measure(name: str, options: Options) -> dict[str, Any]:
    """Return what a suite takes, or why it could not be built or run."""
    found = suite(name)
    for package in found.packages if options.full else found.quick_packages:
        archive(package)  # downloads are not what is measured
    packages = cuvee_home() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    form = [] if options.full else ["--quick"]
    with tempfile.TemporaryDirectory(prefix="cuvee-suites-") as folder:
        home, out = Path(folder) / "home", Path(folder) / "out"
        home.mkdir()
        (home / "packages").symlink_to(packages)
        common = [*form, "--device", options.device, "--quiet"]
        row: dict[str, Any] = {"suite": name, "build": _cost(["build", name, *common], home)}
        row["models_mb"] = _bytes(home / "suites") / 1e6
        if name in WITHOUT_TASKS or "failed" in row["build"]:
            return row
        methods = [] if "all" in options.methods else ["--methods", *options.methods]
        row["run"] = _cost(["run", name, *common, "--out", str(out), *methods], home)
        if (report := out / "report.html").exists():
            row["report_kb"] = report.stat().st_size / 1e3
        return row


def _cost(arguments: Sequence[str], home: Path) -> dict[str, Any]:
    cost: ProcessCost = run_measured(
        [sys.executable, "-m", "cuvee", "bench", *arguments], env={**os.environ, "CUVEE_HOME": str(home)}
    )
    found: dict[str, Any] = {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "anon_mb": cost.peak_anon_bytes / 1e6}
    return {**found, "failed": cost.last_words} if cost.returncode else found


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row as it is printed."""

    def of(stage: str) -> list[str]:
        cost = row.get(stage)
        if cost is None:
            return ["–"] * 3
        if "failed" in cost:
            return [cost["failed"], "", ""]
        return [f"{cost['wall_s']:.0f}", f"{cost['cpu_s']:.0f}", f"{cost['anon_mb']:.0f}"]

    report = f"{row['report_kb']:.0f}" if "report_kb" in row else "–"
    return [row["suite"], *of("build"), *of("run"), report, f"{row['models_mb']:.0f}"]


def table_of(rows: Sequence[Mapping[str, Any]], options: Options) -> Table:
    made = Table(title=f"suites, {'in full' if options.full else 'quick'}, {options.device}")
    for heading in HEADINGS:
        made.add_column(heading, justify="left" if heading == "suite" else "right")
    for row in rows:
        made.add_row(*cells(row))
    return made


def notes(options: Options) -> str:
    """Return what the numbers are, and a word on reports that are too large."""
    said = "every method" if "all" in options.methods else ", ".join(options.methods)
    return " ".join(NOTES).format(methods=said)


def markdown(rows: Sequence[Mapping[str, Any]], options: Options) -> str:
    large = [row["suite"] for row in rows if 1000 * row.get("report_kb", 0) > REPORT_LIMIT]
    lines = [
        f"`python benchmarks/suites.py{' --full' if options.full else ''}`; {machine_in_words()}, {options.device}",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| --- |" + " ---: |" * (len(HEADINGS) - 1),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        notes(options),
        *([f"Reports over 3 MB: {', '.join(large)}."] if large else []),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
