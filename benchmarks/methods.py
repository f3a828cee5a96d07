"""What every merge method and edit costs: time, memory, and ratios to what it cannot avoid and to peers, in one run.

    python benchmarks/methods.py [--quick] [--methods ties tsv_m] [--runs 2] [--no-peers] [--again]

Makes a base and four experts of 100 M bf16 parameters from a seed, and merges them by every method of the registry, and
every edit around one, as a process of its own. Elementwise methods are held against the copy floor, methods on matrices
against the time of the decompositions that they cannot avoid (`decompositions.py`), and those that mergekit or FusionBench
have against these.
What a row found is kept: the same command goes on with the rows that are missing; --again forgets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decompositions import WORK
from merge_speed import BENCHMARKS, REPOSITORY, WIDTH_IN_A_FILE, warm_page_cache
from method_recipes import Case, cases, inputs_of, recipe_of, write_adapters, write_statistics
from peers import PeerUnavailable, install_fusion_bench, install_peer
from process_cost import ProcessCost, claim_memory, installed_environment, run_measured
from rich.console import Console
from rich.table import Table
from speed_recipes import write_recipe
from speed_report import machine_in_words, merge_phase
from synthetic import LlamaShape, Models, make_models

FULL = LlamaShape(hidden=768, layers=11, mlp=2048, heads=12, vocab=16000)
QUICK = LlamaShape(hidden=256, layers=5, mlp=704, heads=4, vocab=2000)
HEADINGS = (
    "method",
    "Cuvée s",
    "merge s",
    "CPU s",
    "anon MB",
    "floor s",
    "merge / floor",
    "mergekit / Cuvée",
    "FusionBench / Cuvée",
)
NOTES = (
    "Cuvée s: wall time of the whole process, the best run. merge s: plan, merge and publish, without start-up and imports. "
    "CPU s: processor time of the process, which a busy machine changes less. anon MB: peak anonymous memory.",
    "floor s: of elementwise methods reading all inputs and writing the output (a process of its own); of methods on "
    "matrices (m) the decompositions and products that they cannot avoid, on one BLAS thread, over the number of cores.",
    "mergekit / Cuvée: whole processes. FusionBench / Cuvée: reading, merging and writing, both without imports; >: it was "
    "stopped after the time allowed. FusionBench neither hashes nor syncs, and merges in float32; its wudi_merging is Adam's.",
)


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    shape: LlamaShape
    label: str
    chosen: tuple[str, ...]
    runs: int
    peer_limit_s: int
    with_peers: bool
    again: bool
    work: Path
    results: Path


def main() -> None:
    """Measure what is missing, and write the table."""
    options = parse_options()
    console = Console(width=None if sys.stdout.isatty() else WIDTH_IN_A_FILE)
    rows = MethodBenchmark(options, console).run()
    console.print(result_table(options, rows))
    for path in write_results(options, rows):
        console.print(f"written: {os.path.relpath(path)}", highlight=False)


def parse_options() -> Options:
    home = Path(os.environ.get("CUVEE_HOME") or Path.home() / ".cache" / "cuvee")
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 M parameters, to try the script itself")
    parser.add_argument("--methods", nargs="+", default=list(known), choices=list(known), metavar="METHOD")
    parser.add_argument("--runs", type=int, default=2, help="runs of Cuvée and of the floor; the best counts (2)")
    parser.add_argument("--peer-limit", type=int, default=600, help="seconds after which a peer is stopped (600)")
    parser.add_argument("--no-peers", action="store_true", help="leave mergekit and FusionBench out")
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument("--work", type=Path, default=home / "bench", help="folder of models, outputs and peers")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    args = parser.parse_args()
    shape = QUICK if args.quick else FULL
    return Options(
        shape,
        f"methods-{shape.parameters / 1e6:.0f}M",
        tuple(args.methods),
        max(1, args.runs),
        args.peer_limit,
        not args.no_peers,
        args.again,
        args.work.resolve(),
        args.results,
    )


class MethodBenchmark:
    """One run over the chosen rows."""

    def __init__(self, options: Options, console: Console) -> None:
        self.options = options
        self.console = console
        self.folder = options.work / "methods"
        self.output = self.folder / "output"
        self.kept = options.results / options.label
        self.decompositions: Mapping[str, float] = {}

    def run(self) -> list[dict[str, Any]]:
        """Measure the rows that are missing; return all that are there, in order."""
        known = cases()
        chosen = [known[name] for name in self.options.chosen]
        missing = [case for case in chosen if self.options.again or not self.is_done(case)]
        if missing:
            self.console.print(f"{machine_in_words()}; {len(missing)} of {len(chosen)} rows are to be measured")
            models = make_models(self.options.work / "models", self.options.shape)
            mergekit, fusion = self.find_peers(missing)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.kept.mkdir(parents=True, exist_ok=True)
            if any(_work_of(case) for case in missing):
                self.decompositions = self.measure_decompositions(len(models.experts))
            try:
                for case in missing:
                    row = self.measure(case, models, mergekit, fusion)
                    self.file_of(case).write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n")
                    self.console.print(f"  {in_words(row)}", highlight=False, markup=False)
            finally:
                shutil.rmtree(self.folder, ignore_errors=True)
        return [json.loads(self.file_of(case).read_text()) for case in known.values() if self.file_of(case).exists()]

    def is_done(self, case: Case) -> bool:
        """Whether a row was measured, and with the peers that are asked for now."""
        file = self.file_of(case)
        if not file.exists():
            return False
        row = json.loads(file.read_text())
        if "failed" in row:
            return False
        wanted = {"mergekit": case.mergekit, "fusion_bench": bool(case.fusion_bench)} if self.options.with_peers else {}
        return all(peer in row for peer, is_wanted in wanted.items() if is_wanted)

    def file_of(self, case: Case) -> Path:
        return self.kept / f"{case.name.replace(' ', '_')}.json"

    def find_peers(self, missing: list[Case]) -> tuple[Any, Path | None]:
        """Return mergekit and the Python of FusionBench, as far as a row needs them and they can be had."""
        mergekit: Any = None
        fusion: Path | None = None
        if self.options.with_peers:
            try:
                if any(case.mergekit for case in missing):
                    mergekit = install_peer(self.options.work / "peer-venv")
                if any(case.fusion_bench for case in missing):
                    fusion = install_fusion_bench(self.options.work / "fusion-venv")
            except PeerUnavailable as reason:
                self.console.print(f"a peer is left out: {reason}", markup=False)
        return mergekit, fusion

    def measure_decompositions(self, models: int) -> Mapping[str, float]:
        shape = self.options.shape
        sizes = map(str, (shape.hidden, shape.mlp, shape.layers, shape.vocab, models))
        cost = run_measured([sys.executable, str(BENCHMARKS / "decompositions.py"), *sizes])
        return json.loads(cost.stdout) if cost.returncode == 0 else {}

    def measure(self, case: Case, models: Models, mergekit: Any, fusion: Path | None) -> dict[str, Any]:
        """Return what one row found; a program that failed leaves its last words."""
        recipe = recipe_of(case, models)
        path = self.folder / "recipe.yml"
        write_recipe(path, recipe)
        write_statistics(recipe, self.options.shape)
        write_adapters(recipe, self.options.shape)
        inputs = inputs_of(recipe)
        warm_page_cache(inputs)
        row: dict[str, Any] = {"name": case.name, "method": case.method}
        row |= {"settings": dict(case.settings), "inputs": len(inputs), "load": os.getloadavg()[0]}
        row |= self.run_cuvee(path)
        row["floor_s"] = self.floor(inputs)
        if _work_of(case):
            row["decompositions_s"] = self.decompositions.get(_work_of(case))
        if case.mergekit and mergekit is not None:
            row["mergekit"] = self.run_peer(mergekit.merge_command(path, self.output, "cpu", 2))
        if case.fusion_bench and fusion is not None:
            folders = [str(models.base), *map(str, models.experts)]
            command = [
                str(fusion),
                str(BENCHMARKS / "fusionbench_runner.py"),
                case.fusion_bench,
                str(self.output),
                *folders,
            ]
            row["fusion_bench"] = self.run_peer(command)
        return row

    def run_cuvee(self, recipe: Path) -> dict[str, Any]:
        command = [
            sys.executable,
            "-m",
            "cuvee",
            "merge",
            str(recipe),
            str(self.output),
            "--overwrite",
            "--quiet",
            "--json",
        ]
        environment = installed_environment(self.folder / "home")
        costs: list[ProcessCost] = []
        phases: list[float] = []
        for _ in range(self.options.runs):
            claim_memory()
            costs.append(run_measured(command, environment, REPOSITORY))
            self.forget()
            if costs[-1].returncode != 0:
                return {"failed": costs[-1].last_words}
            spent = json.loads(costs[-1].stdout)["seconds"]
            phases.append(merge_phase(spent))
        return {
            "wall_s": min(cost.wall_s for cost in costs),
            "cpu_s": min(cost.cpu_s for cost in costs),
            "merge_s": min(phases),
            "peak_anon_bytes": max(cost.peak_anon_bytes for cost in costs),
        }

    def run_peer(self, command: list[str]) -> dict[str, Any]:
        limit = self.options.peer_limit_s
        claim_memory()
        cost = run_measured(["timeout", "--kill-after=5", str(limit), *command])
        self.forget()
        if cost.returncode in (124, 137):
            return {"over_s": limit}
        if cost.returncode != 0:
            return {"failed": cost.last_words}
        found: dict[str, Any] = {"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "peak_anon_bytes": cost.peak_anon_bytes}
        last = cost.stdout.strip().split("\n")[-1]
        return found | ({"merge_s": json.loads(last)["seconds"]} if last.startswith("{") else {})

    def floor(self, inputs: list[Path]) -> float | None:
        """Return the seconds of reading these inputs and writing one output, the best of 1 and 2 threads."""
        size = str(inputs[0].stat().st_size)
        program = [sys.executable, "-I", "-S", str(BENCHMARKS / "copy_floor.py")]
        costs = []
        for threads in ("1", "2") * self.options.runs:
            claim_memory()
            costs.append(run_measured([*program, str(self.output), size, threads, *map(str, inputs)]))
            self.forget()
        good = [cost.wall_s for cost in costs if cost.returncode == 0]
        return min(good) if good else None

    def forget(self) -> None:
        """Remove the output and what Cuvée keeps between runs."""
        shutil.rmtree(self.folder / "home", ignore_errors=True)
        if self.output.is_dir():
            shutil.rmtree(self.output)
        else:
            self.output.unlink(missing_ok=True)


def _work_of(case: Case) -> str:
    """Return the name under which its unavoidable work on matrices is counted: the variant's, else the method's."""
    return next((name for name in (case.name, case.method) if name in WORK), "")


def ratios(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return merge / floor, mergekit / Cuvée and FusionBench / Cuvée as cells."""
    if "failed" in row:
        return "–", "–", "–"
    floor = unavoidable(row)
    over_floor = (f"{row['merge_s'] / floor:.1f}" if floor else "–") + (" (m)" if "decompositions_s" in row else "")
    whole = _ratio(row.get("mergekit"), "wall_s", row["wall_s"])
    return over_floor, whole, _ratio(row.get("fusion_bench"), "merge_s", row["merge_s"])


def unavoidable(row: Mapping[str, Any]) -> float | None:
    """Return the seconds that no implementation goes below: of copying, or of decompositions on all cores."""
    if "decompositions_s" in row:
        return row["decompositions_s"] / len(os.sched_getaffinity(0)) if row["decompositions_s"] else None
    return row["floor_s"]


def _ratio(peer: Mapping[str, Any] | None, field: str, ours: float) -> str:
    if peer is None:
        return "–"
    if "over_s" in peer:
        return f"> {peer['over_s'] / ours:.1f}"
    return f"{peer[field] / ours:.1f}" if field in peer else "failed"


def in_words(row: Mapping[str, Any]) -> str:
    """One line for the reader who waits."""
    if "failed" in row:
        return f"{row['name']}: failed: {row['failed']}"
    over_floor, mergekit, fusion = ratios(row)
    peers = "".join(
        f", {name} {ratio}" for name, ratio in (("mergekit", mergekit), ("FusionBench", fusion)) if ratio != "–"
    )
    failed = "".join(
        f"; {peer}: {row[peer]['failed']}" for peer in ("mergekit", "fusion_bench") if "failed" in row.get(peer, {})
    )
    return f"{row['name']}: {row['merge_s']:.2f} s, floor × {over_floor}{peers}{failed}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row's line of the table, under `HEADINGS`."""
    if "failed" in row:
        return [row["name"], "failed", *["–"] * (len(HEADINGS) - 2)]
    least = unavoidable(row)
    floor = f"{least:.2f}" if least else "–"
    numbers = [
        f"{row['wall_s']:.2f}",
        f"{row['merge_s']:.2f}",
        f"{row['cpu_s']:.1f}",
        f"{row['peak_anon_bytes'] / 1e6:.0f}",
        floor,
    ]
    return [row["name"], *numbers, *ratios(row)]


def title(options: Options) -> str:
    size = f"4 experts of {options.shape.parameters / 1e6:.0f} M bf16 parameters"
    return f"Every merge method and edit: {size}, {machine_in_words()}"


def result_table(options: Options, rows: list[dict[str, Any]]) -> Table:
    """The results as a table for the terminal."""
    table = Table(title=title(options), caption="\n".join(NOTES))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(*cells(row))
    return table


def write_results(options: Options, rows: list[dict[str, Any]]) -> list[Path]:
    """Write the rows as JSON and Markdown and return the paths."""
    options.results.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = (options.results / f"{options.label}.{kind}" for kind in ("json", "md"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    record = {"machine": machine_in_words(), "commit": commit.stdout.strip(), "rows": rows}
    as_json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    lines = [f"# {title(options)}", "", f"| {' | '.join(HEADINGS)} |", f"|---|{'---:|' * (len(HEADINGS) - 1)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    lines += ["", *(f"* {note}" for note in NOTES), "", "Made by `make bench-methods`."]
    as_markdown.write_text("\n".join(lines) + "\n")
    return [as_json, as_markdown]


if __name__ == "__main__":
    main()
