"""How fast Cuvée merges: the copy floor, Cuvée and mergekit side by side, in one run.

    python benchmarks/merge_speed.py [--device cpu] [--scale 1] [--methods linear ties] [--runs 3] [--no-peer]

Makes a base model and four experts from seeds (374 M bf16 parameters each), reads them once so that all start
from a warm page cache, and merges them by every method. What is timed is the whole process; an output is
deleted before the next run. Timing never fails: whatever is found is printed, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from peers import Peer, PeerUnavailable, install_peer
from process_cost import ProcessCost, claim_memory, installed_environment, run_measured
from rich.console import Console
from speed_recipes import CASES, SpeedCase, write_recipe
from speed_report import CuveeCost, MethodSpeed, SpeedReport, machine_in_words, result_table, write_results
from synthetic import LlamaShape, Models, make_models

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
FLOOR_THREADS = (1, 2)
READ_BYTES = 8 << 20
WIDTH_IN_A_FILE = 150


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    device: str
    scale: float
    methods: tuple[str, ...]
    runs: int
    peer_runs: int
    peer_threads: tuple[int, ...]
    with_peer: bool
    work: Path
    results: Path


def main() -> None:
    options = parse_options()
    console = Console(width=None if sys.stdout.isatty() else WIDTH_IN_A_FILE)
    bench = SpeedBenchmark(options, console)
    report = bench.run()
    console.print(result_table(report))
    for line in report.notes:
        console.print(f"* {line}", highlight=False, markup=False)
    for path in write_results(options.results, report):
        console.print(f"written: {os.path.relpath(path)}", highlight=False)


def parse_options() -> Options:
    home = Path(os.environ.get("CUVEE_HOME") or Path.home() / ".cache" / "cuvee")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where Cuvée computes (cpu)")
    parser.add_argument("--scale", type=float, default=1, help="size of the models, 1 = 374 M parameters")
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=list(CASES), metavar="METHOD")
    parser.add_argument("--runs", type=int, default=3, help="runs of the floor and of Cuvée; the best counts (3)")
    parser.add_argument("--peer-runs", type=int, default=1, help="runs of mergekit; the best counts (1)")
    parser.add_argument(
        "--peer-threads", type=int, nargs="+", default=[1, 2], help="threads of mergekit; the best counts (1 2)"
    )
    parser.add_argument("--no-peer", action="store_true", help="leave mergekit out")
    parser.add_argument("--work", type=Path, default=home / "bench", help="folder of models, outputs and peer")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    args = parser.parse_args()
    return Options(
        device=args.device,
        scale=args.scale,
        methods=tuple(args.methods),
        runs=max(1, args.runs),
        peer_runs=max(1, args.peer_runs),
        peer_threads=tuple(args.peer_threads),
        with_peer=not args.no_peer,
        work=args.work.resolve(),
        results=args.results,
    )


class SpeedBenchmark:
    """One run of the benchmark over all chosen methods."""

    def __init__(self, options: Options, console: Console) -> None:
        self.options = options
        self.console = console
        self.run_folder = options.work / "speed"
        self.output = self.run_folder / "output"
        self.cuvee_home = self.run_folder / "cuvee-home"
        self.remarks: list[str] = []

    def run(self) -> SpeedReport:
        """Make what is missing, measure, and leave neither outputs nor recipes behind."""
        shape = LlamaShape().scaled(self.options.scale)
        self.console.print(machine_in_words())
        load_before = os.getloadavg()[0]
        models = self.make_models(shape)
        peer = self.find_peer()
        shutil.rmtree(self.run_folder, ignore_errors=True)
        self.run_folder.mkdir(parents=True)
        try:
            speeds = [self.measure(CASES[method], models, peer) for method in self.options.methods]
            startup = self.measure_startup(models)
        finally:
            shutil.rmtree(self.run_folder, ignore_errors=True)
        return SpeedReport(
            device=self.options.device,
            scale=self.options.scale,
            parameters=shape.parameters,
            model_bytes=shape.size_bytes,
            runs=self.options.runs,
            load_averages=(load_before, os.getloadavg()[0]),
            peer=None if peer is None else f"mergekit {peer.version}, torch {peer.torch_version}",
            peer_threads=self.options.peer_threads,
            speeds=speeds,
            startup_s=startup,
            remarks=[*self.remarks, *self.failures(speeds)],
        )

    def make_models(self, shape: LlamaShape) -> Models:
        self.console.print(
            f"models: base and 4 experts, {shape.parameters / 1e6:.0f} M bf16 parameters each, made once from seeds"
        )
        return make_models(self.options.work / "models", shape)

    def find_peer(self) -> Peer | None:
        if not self.options.with_peer:
            return None
        try:
            peer = install_peer(self.options.work / "peer-venv")
        except PeerUnavailable as reason:
            self.remarks.append(f"mergekit could not be installed and is left out: {reason}")
            return None
        if self.options.device == "cuda" and not peer.sees_cuda:
            self.remarks.append("mergekit's torch sees no GPU: it ran on the CPU")
        return peer

    def measure(self, case: SpeedCase, models: Models, peer: Peer | None) -> MethodSpeed:
        """Run floor and Cuvée by turns, so that both see the machine in the same moods, then the peer."""
        recipe = self.run_folder / f"{case.method}.yml"
        write_recipe(recipe, case.recipe(models))
        inputs = case.input_files(models)
        warm_page_cache(inputs)
        floors: list[ProcessCost] = []
        cuvee: list[CuveeCost] = []
        for _ in range(self.options.runs):
            floors += [self.run_floor(inputs, threads) for threads in FLOOR_THREADS]
            cuvee.append(self.run_cuvee(recipe))
        peers = self.run_peer(peer, recipe) if peer else []
        speed = MethodSpeed.best_of(case, floors, cuvee, peers)
        self.console.print(f"  {speed.in_words()}", highlight=False)
        return speed

    def run_floor(self, inputs: list[Path], threads: int) -> ProcessCost:
        size = str(inputs[0].stat().st_size)
        program = [sys.executable, "-I", "-S", str(BENCHMARKS / "copy_floor.py")]
        claim_memory()
        cost = run_measured([*program, str(self.output), size, str(threads), *map(str, inputs)])
        self.delete_output()
        return cost

    def run_cuvee(self, recipe: Path) -> CuveeCost:
        arguments = ["merge", str(recipe), str(self.output), "--overwrite", "--quiet", "--json"]
        if self.options.device != "cpu":
            arguments += ["--device", self.options.device]
        self.forget_measurements()
        claim_memory()
        cost = run_measured(self.cuvee_command(*arguments), env=installed_environment(self.cuvee_home), cwd=REPOSITORY)
        self.delete_output()
        return CuveeCost(cost, _phase_seconds(cost.stdout))

    def run_peer(self, peer: Peer, recipe: Path) -> list[ProcessCost]:
        costs: list[ProcessCost] = []
        for threads in self.options.peer_threads * self.options.peer_runs:
            claim_memory()
            costs.append(run_measured(peer.merge_command(recipe, self.output, self.options.device, threads)))
            self.delete_output()
        return costs

    def cuvee_command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cuvee", *arguments]

    def forget_measurements(self) -> None:
        """Every timed merge is a first merge: measurements of an earlier run would spare it half its work."""
        shutil.rmtree(self.cuvee_home, ignore_errors=True)

    def delete_output(self) -> None:
        if self.output.is_dir():
            shutil.rmtree(self.output)
        else:
            self.output.unlink(missing_ok=True)

    def measure_startup(self, models: Models) -> dict[str, float]:
        """Best seconds of the commands that do no merging, and of what a merge must import."""
        recipe = self.run_folder / "startup.yml"
        write_recipe(recipe, CASES["linear"].recipe(models))
        commands = {
            "cuvee --help": self.cuvee_command("--help"),
            "cuvee plan": self.cuvee_command("plan", str(recipe)),
            "import torch": [sys.executable, "-c", "import torch"],
        }
        seconds: dict[str, float] = {}
        for name, command in commands.items():
            costs = [
                run_measured(command, installed_environment(self.cuvee_home), REPOSITORY)
                for _ in range(self.options.runs)
            ]
            if all(cost.returncode == 0 for cost in costs):
                seconds[name] = min(cost.wall_s for cost in costs)
            else:
                self.remarks.append(f"{name} failed: {costs[-1].last_words}")
        return seconds

    def failures(self, speeds: list[MethodSpeed]) -> list[str]:
        return [failure for speed in speeds for failure in speed.failures]


def warm_page_cache(files: list[Path]) -> None:
    """Read every file once, so that no run pays for the disk's first read."""
    buffer = memoryview(bytearray(READ_BYTES))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _phase_seconds(stdout: str) -> dict[str, float] | None:
    """Cuvée's own account of its time, or None where it printed none."""
    try:
        found = json.loads(stdout)["seconds"]
        return {name: float(found[name]) for name in ("import", "plan", "merge", "publish", "total")}
    except (ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    main()
