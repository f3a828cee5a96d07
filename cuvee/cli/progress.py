"""A bar with the bytes per second and the time left; nothing where stderr is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cuvee.cli.screen import screen

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["Bar"]


class Bar:
    """One bar.

    Args:
        wanted: False prints nothing.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._stage = ""
        self._task: TaskID | None = None
        self._bars = _bars() if wanted and screen(stderr=True).is_terminal else None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, done: float, total: float, stage: str) -> None:
        """Show how many bytes are done; before any are, the bar only moves."""
        if self._bars is None:
            return
        if stage != self._stage:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._stage, self._task = stage, self._bars.add_task(stage, total=None)
        if self._task is not None and done > 0:
            self._bars.update(self._task, total=total, completed=done)


def _bars() -> Bars:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=screen(stderr=True),
        transient=True,
        expand=True,
    )
