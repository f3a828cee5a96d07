"""The demo, `make demo`: train a base and experts on real text, merge them by every recipe in examples/, score all.

Models are trained once (about a minute and a half on two cores) and kept under `CUVEE_HOME`; `examples/models` leads to
them, so that `cuvee merge examples/ties.yml out/` works afterwards. The table and the chart are left in `demo-results/`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cuvee
from cuvee.errors import CuveeError, ResourceError
from cuvee.evaluation.chart import draw
from cuvee.evaluation.parallel import each_on_a_core
from cuvee.evaluation.scoring import DEFINITION, Kind, Row, ScoreBoard
from cuvee.evaluation.suites import BASE, Built, suite
from cuvee.evaluation.tables import as_json, as_markdown, as_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

EXAMPLES = Path(cuvee.__file__).parent.parent / "examples"
RESULTS = Path("demo-results")


def main() -> int:
    """Run the demo and return the exit code: 0, 2 for an error that the user can mend, 130 when interrupted."""
    from rich.console import Console

    console = Console(highlight=False)
    try:
        _demo(console)
    except CuveeError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted: what was finished is kept, and the same command goes on from there")
        return 130
    return 0


def _demo(console: Console) -> None:
    recipes = _recipes()
    results = RESULTS.absolute()
    clock = _Clock()
    with clock.stage("train"):
        built = _build(console)
    with clock.stage("merge"):
        merged = _merge_all(console, built, recipes, results / "merged")
    with clock.stage("score"):
        board = _score_all(console, built, merged)
    with clock.stage("draw"):
        draw(board, results)
    (results / "table.md").write_text(as_markdown(board))
    (results / "table.json").write_text(as_json(board, seconds=clock.seconds))
    _show(console, board, clock, results)


class _Clock:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


def _recipes() -> list[Path]:
    recipes = sorted(EXAMPLES.glob("*.yml"))
    if not recipes:
        raise ResourceError(
            "there are no recipes to merge by",
            where=str(EXAMPLES),
            right="run `make demo` in a clone of the repository",
        )
    return recipes


def _build(console: Console) -> Built:
    """Train the models that are not there yet, with a bar for each."""
    from cuvee.evaluation.bars import training_shown

    lm = suite("lm")
    for source in lm.sources(quick=True):
        console.print(source, style="dim")
    with training_shown(console) as progress:
        return lm.build(quick=True, progress=progress)


def _merge_all(console: Console, built: Built, recipes: Sequence[Path], out: Path) -> dict[str, Path]:
    """Merge by each recipe and return the folders by the recipes' names."""
    from rich.progress import track

    _link(EXAMPLES / "models", built.folder)
    folders: dict[str, Path] = {}
    # Recipes name models as one types them in the clone: examples/models/base.
    with contextlib.chdir(EXAMPLES.parent):
        for recipe in track(recipes, "merge", console=console):
            folders[recipe.stem] = out / recipe.stem
            cuvee.merge(recipe, out / recipe.stem, overwrite=True)
    return folders


def _link(link: Path, folder: Path) -> None:
    """Make a link, or turn one that is there."""
    if link.exists() and not link.is_symlink():
        raise ResourceError(
            "the demo links its models here, but something else is there", where=str(link), right=f"move {link} away"
        )
    link.unlink(missing_ok=True)
    link.symlink_to(folder.absolute(), target_is_directory=True)


def _score_all(console: Console, built: Built, merged: Mapping[str, Path]) -> ScoreBoard:
    """Score every model on the test text of what the base and the experts have read, in bits per byte."""
    tasks = [task for kind in ("base", "expert") for task in built.tasks_of(kind) if not task.higher_is_better]
    models: list[tuple[str, Kind, str]] = [(BASE, "base", built.base)]
    models += [(name, "expert", reference) for name, reference in built.experts.items()]
    models += [(name, "merge", str(folder)) for name, folder in merged.items()]

    def score(one: tuple[str, Kind, str], check: Callable[[], None]) -> Row:
        name, kind, reference = one
        tensors = built.tensors(reference)
        bits: dict[str, float] = {}
        for task in tasks:
            check()
            bits[task.name] = built.score(tensors, task.name).value
        return Row(name, kind, bits)

    with console.status(f"score {len(models)} models"):
        rows = each_on_a_core(score, models)
    return ScoreBoard({task.name: task.title for task in tasks}, rows)


def _show(console: Console, board: ScoreBoard, clock: _Clock, results: Path) -> None:
    console.print()
    console.print(as_table(board))
    console.print(DEFINITION, style="dim")
    console.print(f"chart and table: {results}", soft_wrap=True)
    console.print("; ".join(f"{stage} {seconds:.1f} s" for stage, seconds in clock.seconds.items()), style="dim")
    console.print("next: cuvee merge examples/ties.yml out/", style="bold", markup=False)


if __name__ == "__main__":
    sys.exit(main())
