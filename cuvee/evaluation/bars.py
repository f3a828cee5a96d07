"""A bar for each model that is being made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cuvee.evaluation.suites.suite import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["training_bars"]


@contextmanager
def training_bars(console: Console) -> Iterator[Progress]:
    """Show bars while models are made, and yield the progress that moves them."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, TimeElapsedColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(model: str, done: int, steps: int, note: str) -> None:
            if model not in tasks:
                tasks[model] = bars.add_task(f"make {model}", total=steps, note="")
            if steps:
                bars.update(tasks[model], completed=done, total=steps, note=note)
            else:
                bars.update(tasks[model], completed=1, total=1, note="made before")

        yield show
