"""`cuvee bench run`: every method on a suite of experts, as tables and as a page."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.cli.amounts import plural
from cuvee.cli.options import AsJson, BenchMethods, Device, Limit, OutFolder, Quick, Quiet, Seeds, Severities
from cuvee.cli.progress import Bar
from cuvee.cli.screen import heading, indented, prose, screen, show, styled, table
from cuvee.errors import ResourceError

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.evaluation.results import Bench
    from cuvee.evaluation.variants import Variant
    from cuvee.reports.bench_rows import Row

__all__ = ["run", "run_suite"]

_SIZES_QUICK, _SIZES = 3, 7
_SEVERITIES = [3]
_WIDE, _NAME, _SHIFTED = 118, 20, 11
_NARROW = ("model", "normalised", "default", "tuned", "merge")


def run(
    suite: str,
    /,
    *,
    methods: BenchMethods = None,
    quick: Quick = False,
    seeds: Seeds = 1,
    limit: Limit = None,
    severity: Severities = None,
    out: OutFolder = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Score every merge method on a suite of experts.

    Each is scored at its default and at the best coefficient found on the validation split, of nine for every method.
    Merges are made and scored in memory. What was found before is kept under CUVEE_HOME: a run that was stopped goes
    on, and one that is repeated computes only what changed.

    Writes results.csv, results.json, results.md and report.html, a page that needs no network.

    Args:
        suite: its name; cuvee bench build lists them, and makes its models where they are not there yet.
    """
    from cuvee.evaluation.suites import suite as find
    from cuvee.evaluation.variants import ALL, parse_variants

    find(suite).need_tasks(quick=quick)  # what is wrong with it is told first
    variants = parse_variants(methods or [ALL])
    severities: list[int] = sorted(set(severity or _SEVERITIES))
    command = _command(suite, methods, quick=quick, seeds=seeds, limit=limit, severities=severities, device=device)
    folder = Path(out or f"bench-{suite}{'-quick' if quick else ''}")
    _need_folder(folder)  # before hours of scoring
    bench = run_suite(
        suite,
        variants,
        command,
        seeds=seeds,
        limit=limit,
        severities=severities,
        quick=quick,
        quiet=quiet or json,
        device=device,
    )
    files = _write(bench, folder)
    if json:
        print(files["results.json"], end="")
    elif not quiet:
        _print(screen(), bench)
        show(screen(), "", styled(f"{folder} has {', '.join(files)}", "bold green"))


def _need_folder(folder: Path) -> None:
    """Make a folder that files can be written to."""
    from cuvee.checkpoints import fs
    from cuvee.checkpoints.publishing import in_words

    there = next((one for one in (folder, *folder.parents) if fs.exists(one)), folder)
    if not fs.is_folder(there) or not fs.is_writable(there):
        found = "cannot be written to" if fs.is_folder(there) else "is no folder" if fs.exists(there) else "is gone"
        raise ResourceError(f"the output {found}", where=str(there), right="another --out FOLDER")
    try:
        fs.mkdir(folder)
    except OSError as error:
        said = in_words(error, folder)
        raise ResourceError(
            f"the output cannot be made: {said.found}", where=said.where, right="another --out FOLDER"
        ) from None


def _command(
    suite: str,
    methods: Sequence[str] | None,
    *,
    quick: bool,
    seeds: int,
    limit: int | None,
    severities: Sequence[int],
    device: str,
) -> str:
    parts = ["cuvee", "bench", "run", suite]
    parts += ["--quick"] if quick else []
    parts += ["--seeds", str(seeds)] if seeds > 1 else []
    parts += ["--limit", str(limit)] if limit else []
    parts += ["--severity", *map(str, severities)] if severities != _SEVERITIES else []
    parts += ["--device", device] if device != "cpu" else []
    parts += [word for one in methods or () for word in ("--methods", one)]
    return shlex.join(parts)


def run_suite(
    name: str,
    variants: Sequence[Variant],
    command: str,
    *,
    seeds: int = 1,
    limit: int | None = None,
    severities: Sequence[int] = (3,),
    quick: bool = False,
    quiet: bool = False,
    device: str = "cpu",
) -> Bench:
    """Make the models that are not there yet and score the variants, seed after seed, with bars in a terminal.

    Args:
        name: of the suite.
        variants: what is scored.
        command: that says all this, for the record.
        seeds, limit, quick, quiet, device: as of `run`.
        severities: of the shifts, 1 to 5.
    """
    from cuvee.evaluation.bars import training_shown
    from cuvee.evaluation.benchmark import Runner, sizes_between
    from cuvee.evaluation.home import cuvee_home
    from cuvee.evaluation.kept_scores import KeptScores
    from cuvee.evaluation.results import Bench
    from cuvee.evaluation.suites import suite as find

    suite = find(name)
    suite.need_seeds(seeds)
    results = []
    kept = KeptScores(cuvee_home() / "scores.sqlite")
    try:
        for seed in range(seeds):
            with training_shown(screen(stderr=True), quiet=quiet) as progress:
                built = suite.build(seed=seed, quick=quick, progress=progress, device=device)
            sizes = sizes_between(len(built.experts), _SIZES_QUICK if quick else _SIZES)
            with Bar(wanted=not quiet, spoken=lambda count: plural(round(count), "model")) as bar:
                runner = Runner(built, kept, limit=limit, severities=severities, sizes=sizes)
                stage = f"score, seed {seed}" if seeds > 1 else "score"
                results.append(runner.run(variants, lambda done, total, _: bar.show(done, total, stage)))  # noqa: B023
    finally:
        kept.close()
    return Bench(suite.name, suite.title, quick, limit, severities, command, results)


def _write(bench: Bench, folder: Path) -> dict[str, str]:
    """Write all files, each whole or not at all, and return them by name."""
    from cuvee.checkpoints import fs
    from cuvee.reports.bench_files import as_csv, as_json, as_markdown
    from cuvee.reports.bench_page import bench_page

    files = {"results.csv": as_csv(bench), "results.json": as_json(bench), "results.md": as_markdown(bench)}
    files["report.html"] = bench_page(bench)
    for name, text in files.items():
        fs.replace_file(folder / name, text.encode())
    return files


def _print(console: Console, bench: Bench) -> None:
    from cuvee.reports.bench_files import DEFINITIONS
    from cuvee.reports.bench_rows import bench_rows, shifted_by

    rows = bench_rows(bench)
    show(
        console,
        heading(f"{bench.title}: {plural(len(bench.variants), 'method')} on {plural(len(bench.seeds), 'seed')}"),
    )
    every = (
        "model",
        "normalised",
        "default",
        "tuned",
        "recovered",
        "forgetting",
        "unseen",
        *map(shifted_by, bench.shifts),
        "merge",
        "memory",
    )
    more = _SHIFTED * max(0, len(bench.shifts) - 1)  # every further severity is a column
    kept = {*_NARROW, *(map(shifted_by, bench.shifts) if console.width >= 80 + more + _SHIFTED else ())}
    shown = [n for n, title in enumerate(every) if console.width >= _WIDE + more or title in kept]
    made = table(*(every[n] for n in shown), numbers=range(1, len(shown)), fold=(0,))
    made.columns[0].min_width = _NAME
    kind = "base"
    for row in rows:
        if row.failure:
            continue
        if row.kind != kind and row.kind == "merge":
            made.add_section()
        kind = row.kind
        made.add_row(
            styled(_broken(row.name), "cyan" if row.kind == "merge" else "dim"),
            *(styled(_cells(row, bench.shifts)[n - 1]) for n in shown[1:]),
        )
    show(console, indented(made), "")
    failed = [row for row in rows if row.failure]
    if failed:
        show(console, heading("Not merged"), *(prose(f"{row.label}: {row.failure}", "yellow") for row in failed), "")
    show(console, *(prose(f"{name}: {words}", "dim") for name, words in DEFINITIONS))


def _broken(name: str) -> str:
    """Return a long name with spaces between its settings, where lines may end."""
    return name if len(name) <= _NAME else re.sub(r"(?<=[:,])", " ", name)


def _cells(row: Row, shifts: Sequence[int]) -> list[str]:
    from cuvee.reports.numbers import chosen, in_bytes, plus_minus, signed, two_digits

    found = row.summary
    assert found is not None
    seconds = math.nan if row.seconds is None else row.seconds
    return [
        plus_minus(found.normalised),
        two_digits(row.default.mean if row.default else None),
        chosen(row),
        two_digits(found.recovered.mean),
        signed(found.forgetting),
        signed(found.unseen),
        *(two_digits(found.shifted[one].mean if one in found.shifted else None) for one in shifts),
        f"{two_digits(seconds)} s" if row.seconds is not None else "–",
        in_bytes(row.peak_bytes),
    ]
