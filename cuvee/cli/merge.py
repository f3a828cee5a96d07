"""`cuvee merge`: carry out a recipe and publish the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cuvee.cli import app
from cuvee.cli.amounts import in_bytes, in_seconds, plural
from cuvee.cli.options import (
    Add,
    AllowNan,
    AsJson,
    Continue,
    DecompositionsFolder,
    Overwrite,
    PresetName,
    Quiet,
    Stages,
)
from cuvee.cli.planning import PlanOptions, load_engine, make_plan, read_words
from cuvee.cli.progress import Bar
from cuvee.cli.screen import heading, print_json, prose, rows, safe, screen, show, styled
from cuvee.cli.token_report import print_tokens
from cuvee.cli.usage import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from cuvee.cli.clock import Clock
    from cuvee.engine.plan import Plan
    from cuvee.engine.run import Progress, Report
    from cuvee.recipes import Recipe

__all__ = [
    "carry_out",
    "merge",
    "merge_asked",
    "print_left_out",
    "print_report",
    "print_warnings",
    "report_object",
    "warn",
]

_MOST_NAMES = 3


def merge(
    recipe: str = "",
    out: str = "",
    /,
    *more: Annotated[str, Parameter(show=False)],
    preset: PresetName = None,
    continue_: Continue = None,
    add: Add = (),
    overwrite: Overwrite = False,
    allow_nan: AllowNan = False,
    stages: Stages = None,
    decompositions: DecompositionsFolder = None,
    quiet: Quiet = False,
    json: AsJson = False,
    options: PlanOptions = PlanOptions(),
) -> None:
    """Merge models as a recipe says, and publish the result.

    The folder appears when the model is complete, and not before. A run that was stopped goes on where it stopped when
    the same command is given again.

    Args:
        recipe: YAML file; mergekit's work too. `cuvee methods NAME` prints one to start from.
        out: folder to publish.
    """
    from cuvee.checkpoints.publishing import check_target

    if continue_ is not None or add:
        _check_continuing(continue_, add, bool(recipe) or preset is not None, overwrite=overwrite, stages=stages)
        _continue(str(continue_), add, allow_nan, decompositions, options, quiet=quiet, json=json)
        return
    *words, out = (recipe, *more, out) if preset is None else [word for word in (recipe, out, *more) if word] or [""]
    _check_words(words, out, preset)
    check_target(Path(os.path.abspath(out)), overwrite=overwrite)
    asked = read_words("cuvee merge", words, preset, options)
    merge_asked(
        asked,
        out,
        overwrite=overwrite,
        allow_nan=allow_nan,
        stages=stages,
        decompositions=decompositions,
        quiet=quiet,
        json=json,
        options=options,
    )


def merge_asked(
    asked: Recipe,
    out: str,
    *,
    overwrite: bool = False,
    allow_nan: bool = False,
    stages: str | None = None,
    decompositions: str | None = None,
    quiet: bool = False,
    json: bool = False,
    options: PlanOptions,
) -> None:
    """Carry out a recipe that was read, and say what was done."""
    from cuvee.checkpoints.publishing import check_target

    clock = app.clock
    target = Path(os.path.abspath(out))
    check_target(target, overwrite=overwrite)
    load_engine(options.device, clock, asked, quiet=quiet)
    planned = make_plan(asked, options, clock, decompositions=decompositions, quiet=quiet)
    report = carry_out(planned, target, overwrite=overwrite, allow_nan=allow_nan, stages=stages, with_bar=not quiet)
    _tell(out, planned, report, clock, quiet=quiet, json=json)


def _check_words(words: Sequence[str], out: str, preset: str | None) -> None:
    """Refuse a command line that does not say what is merged, or where to."""
    from cuvee.recipes.presets import find_preset

    if preset is None:
        missing = "" if out else "OUT" if words[0] else "RECIPE"
        form = "RECIPE OUT"
    else:
        found = find_preset(preset)
        missing = "OUT" if not out or out.partition("=")[0] in found.roles else ""
        form = f"--preset {preset} {found.places} OUT"
    if missing:
        raise UsageError(
            f"{missing} is missing", where="cuvee merge", right=f"cuvee merge {form}; see cuvee merge --help"
        )


def _check_continuing(
    out: str | None, add: Sequence[str], is_recipe: bool, *, overwrite: bool, stages: str | None
) -> None:
    right = "cuvee merge --continue OUT --add EXPERT"
    if out is None or not add:
        missing = "--add" if out else "--continue"
        raise UsageError(f"{missing} is missing", where="cuvee merge", right=right)
    if is_recipe or overwrite or stages is not None:
        given = "a recipe" if is_recipe else "--overwrite" if overwrite else "--stages"
        raise UsageError(f"--continue takes no {given.removeprefix('a ')}", where="cuvee merge", right=right)


def _continue(
    out: str,
    add: Sequence[str],
    allow_nan: bool,
    decompositions: str | None,
    options: PlanOptions,
    *,
    quiet: bool,
    json: bool,
) -> None:
    """Merge further experts into a published model."""
    clock = app.clock
    load_engine(options.device, clock, quiet=quiet)
    from cuvee.engine.continuing import plan_continued

    with clock.phase("plan"):
        planned = plan_continued(out, add, **options.of_plan, decompositions=decompositions)
    report = carry_out(planned, Path(os.path.abspath(out)), overwrite=True, allow_nan=allow_nan, with_bar=not quiet)
    _tell(out, planned, report, clock, quiet=quiet, json=json)


def _tell(out: str, planned: Plan, report: Report, clock: Clock, *, quiet: bool, json: bool) -> None:
    clock.phases |= {name: report.seconds[name] for name in ("merge", "publish")}
    if json:
        print_json(report_object(planned, report, clock))
    elif quiet:
        warn(report.warnings)
    else:
        print_report(out, planned, report, clock)


def carry_out(
    planned: Plan,
    target: Path,
    *,
    overwrite: bool,
    allow_nan: bool,
    stages: str | None = None,
    with_bar: bool,
) -> Report:
    """Run a plan with a bar."""
    from cuvee.engine.run import run

    moved = planned.bytes_read + planned.bytes_written
    with Bar(wanted=with_bar) as bar:

        def progress(now: Progress) -> None:
            measuring = now.stage == "merging" and planned.is_wide and now.share < 1 - 1 / planned.tally.visits
            bar.show(moved * now.share, moved, "measuring" if measuring else now.stage)

        return run(planned, target, overwrite=overwrite, allow_nan=allow_nan, stages=stages, progress=progress)


def warn(warnings: Sequence[str]) -> None:
    """Print warnings on stderr, a line each."""
    console = screen(stderr=True)
    for warning in warnings:
        console.print(styled(f"warning: {warning}", "yellow"), soft_wrap=True)


def print_report(out: str, planned: Plan, report: Report, clock: Clock) -> None:
    """Print what a run did."""
    console = screen()
    files = plural(len(planned.shards), "file")
    size = f"{in_bytes(report.bytes_written)}, {plural(len(planned.tasks), 'tensor')} in {files}"
    if report.resumed:
        size += f"; {plural(report.resumed, 'tensor')} had been finished by an earlier run"
    show(console, styled(f"{out} is published", "bold green"))
    show(
        console,
        rows(
            (
                ("size", size),
                ("time", f"{in_seconds(clock.total)}: {_phases(clock.phases)}"),
                ("speed", _speed(report)),
                ("digest", report.digest),
            )
        ),
    )
    print_tokens(console, planned.tokens)
    if report.notes:
        show(console, "", heading("What the method did"), *map(prose, report.notes))
    print_left_out(console, planned.left_out, planned.dropped)
    if report.non_finite:
        total = sum(report.non_finite.values())
        said = (
            f"{plural(total, 'value')} in {plural(len(report.non_finite), 'tensor')}: {_some(list(report.non_finite))}"
        )
        show(console, "", styled("NaN or Inf, let through", "bold yellow"), prose(said))
    print_warnings(console, report.warnings)


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {in_seconds(seconds)}" for name, seconds in phases.items())


def _speed(report: Report) -> str:
    moved = (report.bytes_read + report.bytes_written) / max(report.seconds["total"], 1e-9)
    spent = report.tally.seconds
    total = sum(spent.values())
    if not total:
        return ""
    shares = ", ".join(f"{what} {100 * spent.get(what, 0.0) / total:.0f} %" for what in ("read", "compute", "write"))
    return f"{in_bytes(moved)}/s read and written; bottleneck: {report.bottleneck} ({shares})"


def print_left_out(
    console: Console, left_out: Mapping[str, str], dropped: Mapping[str, str] = {}, *, title: str = "Not merged"
) -> None:
    """Print which tensors were left out, and why; of many names the first."""
    if not left_out and not dropped:
        return
    by_reason: dict[str, list[str]] = {}
    for name, reason in {**left_out, **{n: f"{reason}; not in the output" for n, reason in dropped.items()}}.items():
        by_reason.setdefault(reason, []).append(name)
    show(console, "", heading(title))
    for reason, names in by_reason.items():
        show(console, prose(f"{plural(len(names), 'tensor')}, {reason}"), prose(_some(names), "dim"))


def print_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Print the warnings."""
    if warnings:
        show(console, "", styled("Warnings", "bold yellow"), *map(prose, warnings))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(safe, names[:_MOST_NAMES])) + more


def report_object(planned: Plan, report: Report, clock: Clock) -> dict[str, Any]:
    """Return what a run did, for --json."""
    return {
        "out": str(report.out),
        "digest": report.digest,
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "resumed": report.resumed,
        "warnings": report.warnings,
        "left_out": planned.left_out,
        "dropped": planned.dropped,
        "tokens": planned.tokens,
        "non_finite": report.non_finite,
        "notes": report.notes,
        "bottleneck": report.bottleneck,
        "visits": report.tally.visits,
        "rounds": report.tally.rounds,
        "seconds": {**clock.phases, "total": clock.total},
    }
