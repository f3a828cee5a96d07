"""A bar with the bytes per second and the time left; where stderr is no terminal, a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cuvee.cli.amounts import in_bytes, in_clock
from cuvee.cli.screen import screen, styled

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["LINE_EVERY_S", "Bar"]

LINE_EVERY_S = 60.0


class Bar:
    """One bar.

    Args:
        wanted: False prints nothing.
        spoken: how an amount is said.
    """

    def __init__(self, *, wanted: bool = True, spoken: Callable[[float], str] = in_bytes) -> None:
        self._stage = ""
        self._task: TaskID | None = None
        self._wanted, self._spoken, self._told_at = wanted, spoken, time.monotonic()
        self._bars = _bars(spoken) if wanted and screen(stderr=True).is_terminal else None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, done: float, total: float, stage: str) -> None:
        """Show how much is done; before any are, the bar only moves."""
        if self._bars is None:
            self._tell(done, total, stage)
            return
        if stage != self._stage:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._stage, self._task = stage, self._bars.add_task(stage, total=None)
        if self._task is not None and done > 0:
            self._bars.update(self._task, total=total, completed=done)

    def _tell(self, done: float, total: float, stage: str) -> None:
        if self._wanted and time.monotonic() >= self._told_at + LINE_EVERY_S:
            self._told_at = time.monotonic()
            share = f": {100 * done / max(1, total):.0f} % of {self._spoken(total)}" if done > 0 else ""
            screen(stderr=True).print(styled(f"{stage}{share}"), soft_wrap=True)


def _bars(spoken: Callable[[float], str]) -> Bars:
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Amounts(ProgressColumn):
        """What is done, how much a second, time left."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            parts = [f"{100 * task.completed / max(1, task.total):.0f} % of {spoken(task.total)}"]
            parts += [f"{spoken(task.speed)}/s"] if task.speed else []
            parts += [f"{in_clock(task.time_remaining)} left"] if task.time_remaining is not None else []
            return Text("  ".join(parts), no_wrap=True)

    return Progress(
        SpinnerColumn(style="cyan"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, complete_style="cyan", finished_style="green", pulse_style="cyan"),
        Amounts(table_column=Column(no_wrap=True)),
        console=screen(stderr=True),
        transient=True,
        expand=True,
    )
