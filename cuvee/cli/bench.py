"""`cuvee bench`: real experts, and what merges of them can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.cli.amounts import plural
from cuvee.cli.bench_run import run
from cuvee.cli.options import AsJson, Device, Quick, Quiet, Seeds
from cuvee.cli.screen import heading, indented, print_json, prose, rows, screen, show, styled, table

if TYPE_CHECKING:
    from cuvee.evaluation.suites import Built, Suite

__all__ = ["build", "run"]


def build(
    suite: str | None = None,
    /,
    *,
    quick: Quick = False,
    seeds: Seeds = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Make the models of a suite of experts, or list the suites.

    They are kept under CUVEE_HOME, ~/.cache/cuvee if that is not set. What was made before is left alone; what was stopped goes
    on. Data and weights come out of packages by pip, npm and apt, are checked, and are kept there too.

    Args:
        suite: its name; without one, the suites are listed.
    """
    from cuvee.evaluation.suites import SUITES
    from cuvee.evaluation.suites import suite as find

    if suite is None:
        suites = [find(name) for name in SUITES]
        print_json({"suites": [_described(one) for one in suites]}) if json else _print_list(suites)
        return
    found = find(suite)
    found.need_seeds(seeds)
    if not quiet and not json:
        _print_sources(found, quick=quick)
    built = [_made(found, seed, quick=quick, quiet=quiet, device=device) for seed in range(seeds)]
    if json:
        print_json({"suite": suite, "quick": quick, "device": device, "built": [_built(one) for one in built]})
    elif not quiet:
        for one in built:
            _print_built(one)


def _made(suite: Suite, seed: int, *, quick: bool, quiet: bool, device: str) -> Built:
    from cuvee.evaluation.bars import training_shown

    with training_shown(screen(stderr=True), quiet=quiet) as progress:
        return suite.build(seed=seed, quick=quick, progress=progress, device=device, mend=True)


def _described(suite: Suite) -> dict[str, object]:
    packages = [{**vars(one), "command": " ".join(one.command)} for one in suite.packages]
    return {"name": suite.name, "title": suite.title, "packages": packages, "data": list(suite.data)}


def _built(built: Built) -> dict[str, object]:
    tasks = [vars(task) for task in built.tasks.values()]
    return {
        "seed": built.seed,
        "key": built.key,
        "folder": str(built.folder),
        "base": built.base,
        "experts": dict(built.experts),
        "strangers": dict(built.strangers),
        "tasks": tasks,
    }


def _print_list(suites: list[Suite]) -> None:
    made = table("suite", "is")
    for one in suites:
        made.add_row(styled(one.name, "bold cyan"), styled(one.title))
    show(screen(), heading(plural(len(suites), "suite")), "", indented(made), "")
    show(screen(), styled("cuvee bench build SUITE --quick: make its models, in a minute or two", "dim"))


def _print_sources(suite: Suite, *, quick: bool) -> None:
    show(screen(), heading(suite.title))
    for source in suite.sources(quick=quick):
        show(screen(), prose(source, "dim"))


def _print_built(built: Built) -> None:
    tasks = {kind: ", ".join(task.name for task in built.tasks_of(kind)) for kind in ("expert", "base", "unseen")}
    parts = [
        ("folder", built.folder),
        ("base", built.base),
        ("experts", ", ".join(built.experts)),
        ("strangers", ", ".join(built.strangers)),
        ("the experts' tasks", tasks["expert"]),
        ("the base's tasks", tasks["base"]),
        ("nobody's tasks", tasks["unseen"]),
    ]
    known = [(what, value) for what, value in parts if value]
    show(screen(), "", heading(f"{built.suite.name}, seed {built.seed}"), rows(known))
