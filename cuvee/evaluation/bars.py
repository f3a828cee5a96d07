"""What is told while models are made: a bar for each in a terminal, a line a minute elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cuvee.evaluation.suites.suite import Progress, silently

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["training_shown"]

LINE_EVERY_S = 60.0


@contextmanager
def training_shown(console: Console, *, quiet: bool = False) -> Iterator[Progress]:
    """Yield the progress that tells of models while they are made; outside a terminal, of what takes more than a minute."""
    if quiet:
        yield silently
    elif console.is_terminal:
        with _bars(console) as progress:
            yield progress
    else:
        yield _lines(console)


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
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


def _lines(console: Console) -> Progress:
    told, lock = [time.monotonic()], threading.Lock()

    def tell(model: str, done: int, steps: int, note: str) -> None:
        with lock:
            if not steps or time.monotonic() < told[0] + LINE_EVERY_S:
                return
            told[0] = time.monotonic()
        console.print(f"make {model}: {done} of {steps} steps, {note}", soft_wrap=True, markup=False, highlight=False)

    return tell
