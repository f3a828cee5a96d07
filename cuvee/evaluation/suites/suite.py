"""What a suite is: a base, experts fine-tuned from it, and tasks that score any model of their shape, in memory.

A suite is built once (`Suite.build`) and then scores candidates: `Built.score(tensors, task)`. All candidates see the
same items in the same order, and fewer items (`limit`) are the first of them, so that scores can be compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from cuvee.errors import IncompatibleModels, ResourceError, nearest
from cuvee.tensors.devices import need_device

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from cuvee.evaluation.candidates import Shapes
    from cuvee.evaluation.packages import Package

__all__ = ["BASE", "Built", "Corruption", "Kind", "Progress", "Score", "Split", "Suite", "Task", "silently"]

BASE = "base"

Split = Literal["validation", "test"]
Kind = Literal["expert", "base", "unseen"]


@dataclass(frozen=True)
class Task:
    """Something that a model can be scored on.

    Attributes:
        name: a word; that of its expert, where it has one.
        title: as tables print it.
        kind: "expert": an expert was trained on it; "base": the base was, and experts and merges may forget it;
            "unseen": nobody was.
        metric: in words: "accuracy", "bits per byte", …
        higher_is_better: whether more is better.
        expert: the expert that was trained on it; None where kind is not "expert".
    """

    name: str
    title: str
    kind: Kind
    metric: str
    higher_is_better: bool = True
    expert: str | None = None


@dataclass(frozen=True)
class Corruption:
    """A shift of the data of a task away from what models were trained on.

    Attributes:
        name: one of the suite's `corruptions`.
        severity: 1 (slight) to 5.
    """

    name: str
    severity: int


@dataclass(frozen=True)
class Score:
    """A model's score on a task.

    Attributes:
        items: (n,) float32, one entry an item, in the order that all candidates share; `value` is their mean.
        higher_is_better: whether more is better.
    """

    items: NDArray[np.float32] = field(repr=False)
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        """Mean over the items."""
        return math.fsum(self.items.tolist()) / len(self.items)

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.items)


class Progress(Protocol):
    """Is told how far the making of a model is."""

    def __call__(self, model: str, done: int, steps: int, note: str) -> None:
        """`done` of `steps` are done; `note` says how it fares. `done == steps == 0`: the model was there already."""


def silently(model: str, done: int, steps: int, note: str) -> None:
    """A progress that nobody watches."""


class Scorer(Protocol):
    """Scores tensors; what a suite's file gives to `Built`."""

    def __call__(
        self, tensors: Mapping[str, Tensor], task: Task, split: Split, limit: int | None, corruption: Corruption | None
    ) -> NDArray[np.float32]:
        """Return one entry an item."""


@dataclass(frozen=True)
class Built:
    """A suite whose models are there.

    Attributes:
        suite: which one.
        seed: of the training.
        key: a digest of all that made the models: data, sizes, steps, seed.
        folder: where they are.
        base: a model reference, as recipes name models.
        experts: model references by name.
        weaker: the experts after a share of their training; the share -> references by name. Empty where not kept.
        adapters: the experts as folders of adapters, for methods that merge those; by share of their training, 1 is all
            of it, and name. Empty where experts are no adapters.
        tasks: by name; empty where nothing can be scored.
        strangers: models of the same kind that do not descend from the base: references by name.
        corruptions: names that `Corruption` may have.
        scorer: scores tensors.
        device: where they are scored; the models were trained there too.
    """

    suite: Suite
    seed: int
    key: str
    folder: Path
    base: str
    experts: Mapping[str, str]
    tasks: Mapping[str, Task]
    scorer: Scorer = field(repr=False)
    weaker: Mapping[float, Mapping[str, str]] = field(default_factory=dict)
    adapters: Mapping[float, Mapping[str, str]] = field(default_factory=dict)
    strangers: Mapping[str, str] = field(default_factory=dict)
    corruptions: Sequence[str] = ()
    device: str = "cpu"

    def tensors(self, reference: str) -> dict[str, Tensor]:
        """Return the tensors of a model: of `base`, of an expert, or of any model or recipe of the same shape."""
        from cuvee.evaluation.in_memory import in_memory

        return dict(in_memory(reference).tensors)

    def tasks_of(self, kind: Kind) -> list[Task]:
        """Return the tasks of a kind, in order."""
        return [task for task in self.tasks.values() if task.kind == kind]

    def score(
        self,
        tensors: Mapping[str, Tensor],
        task: str,
        *,
        split: Split = "test",
        limit: int | None = None,
        corruption: Corruption | None = None,
    ) -> Score:
        """Score a candidate in memory.

        Args:
            tensors: by the names of the base's.
            task: its name.
            split: "validation" is for choosing coefficients, "test" for reporting.
            limit: score only the first so many items; they are the same for all candidates.
            corruption: shift the data first.

        Raises:
            ResourceError: the suite has no such task or corruption.
            IncompatibleModels: the tensors are not those of the suite's base.
        """
        from cuvee.evaluation.devices import repeatable

        if task not in self.tasks:
            raise ResourceError(f"the suite {self.suite.name} has no task {task!r}", right=nearest(task, self.tasks))
        if corruption is not None and corruption.name not in self.corruptions:
            right = nearest(corruption.name, self.corruptions)
            raise ResourceError(f"the suite {self.suite.name} has no corruption {corruption.name!r}", right=right)
        with repeatable(self.device):
            items = self.scorer(tensors, self.tasks[task], split, limit, corruption)
        return Score(items, self.tasks[task].higher_is_better)


class Lister(Protocol):
    """Says what a suite scores."""

    def __call__(self, *, quick: bool) -> Sequence[Task]:
        """Return the tasks of a form, in the order in which tables have them; nothing is read or made for it."""


class Shaper(Protocol):
    """Says what the models of a suite look like."""

    def __call__(self, *, quick: bool) -> Shapes:
        """Return the shapes of a form's tensors by name; nothing is read or made for it."""


class Builder(Protocol):
    """Makes the models of a suite."""

    def __call__(self, suite: Suite, home: Path, seed: int, *, quick: bool, progress: Progress, device: str) -> Built:
        """Train or unpack what is not there yet, under `home`; goes on where an earlier call was interrupted."""


@dataclass(frozen=True)
class Suite:
    """A base with experts, and the tasks they are scored on.

    Attributes:
        name: as typed after `cuvee bench build`.
        title: in a few words.
        packages: what it downloads, with their licences. The quick form may need fewer.
        quick_packages: what the quick form downloads.
        data: what else it is made of, one line each.
        quick_data: of the quick form; None: the same.
        builder: makes its models.
        lister: says what they are scored on.
        shaper: says what they look like.
        members: how many seeds there are, where models are published ones; None: any number.
    """

    name: str
    title: str
    builder: Builder = field(repr=False)
    lister: Lister = field(repr=False)
    shaper: Shaper = field(repr=False)
    packages: Sequence[Package] = ()
    quick_packages: Sequence[Package] = ()
    data: Sequence[str] = ()
    quick_data: Sequence[str] | None = None
    members: int | None = None

    def need_seeds(self, seeds: int) -> None:
        """Return if there are so many seeds.

        Raises:
            ResourceError: there are fewer.
        """
        if self.members is not None and seeds > self.members:
            raise ResourceError(
                f"the suite {self.name} has no {seeds} seeds: there are {self.members} published members, each is one",
                right=f"--seeds {self.members} at most",
            )

    def tasks(self, *, quick: bool) -> dict[str, Task]:
        """Return the tasks of a form by name, before anything is made."""
        return {task.name: task for task in self.lister(quick=quick)}

    def need_tasks(self, names: Sequence[str] = (), *, quick: bool) -> None:
        """Return if there is something to score, and these tasks are among it.

        Raises:
            ResourceError: there is not.
        """
        known = self.tasks(quick=quick)
        if not known:
            raise ResourceError(
                f"the suite {self.name} has nothing to score: its models are there to be compared and merged",
                right=f"cuvee bench build {self.name}, then cuvee compare",
            )
        for name in (name for name in names if name not in known):
            form = "quick" if quick else "full"
            found = f"the suite {self.name} has no task {name!r}"
            if name in self.tasks(quick=not quick):
                right = "leave out --quick" if quick else "add --quick"
                raise ResourceError(f"{found} in its {form} form", right=f"{right}; or {nearest(name, known)}")
            raise ResourceError(found, right=nearest(name, known))

    def need_fit(self, found: Shapes, *, quick: bool, where: str) -> None:
        """Return if a model can be scored, before anything is made.

        Args:
            found: the shapes of its tensors by name.
            quick: by the quick form.
            where: the model is.

        Raises:
            IncompatibleModels: it has another shape than the suite's models.
        """
        from cuvee.evaluation.candidates import need_shapes

        try:
            need_shapes(self.shaper(quick=quick), found)
        except IncompatibleModels as problem:
            right = problem.right
            with suppress(IncompatibleModels):
                need_shapes(self.shaper(quick=not quick), found)
                form, what = ("full", "leave out --quick") if quick else ("quick", "add --quick")
                right = f"{what}: the model has the shape of the {form} form"
            raise IncompatibleModels(
                f"the suite {self.name} cannot score this model: {problem.found}", where=where, right=right
            ) from None

    def sources(self, *, quick: bool) -> list[str]:
        """Return what a form is made of, one line each."""
        data = self.data if not quick or self.quick_data is None else self.quick_data
        return [*map(str, self.quick_packages if quick else self.packages), *data]

    def build(
        self,
        home: Path | None = None,
        *,
        seed: int = 0,
        quick: bool = False,
        progress: Progress = silently,
        device: str = "cpu",
        mend: bool = False,
    ) -> Built:
        """Return the suite with its models, making what is not there yet.

        Args:
            home: where Cuvée keeps what it can make again; None: `CUVEE_HOME`.
            seed: of the training; another seed is another base, where the base is trained, and other experts.
            quick: small models, trained for a minute or two.
            progress: is told how far each model is.
            device: where models are trained and scored, "cpu" or "cuda"; what another device trains is another suite.
            mend: make models again that are damaged.

        Raises:
            ResourceError: a package, a library or the device is missing, or there is no such seed.
            CheckpointError: a model is damaged, and not to be mended.
        """
        from cuvee.evaluation.damage import DamagedModels
        from cuvee.evaluation.home import cuvee_home

        need_device(device)
        self.need_seeds(seed + 1)
        while True:
            try:
                return self.builder(self, home or cuvee_home(), seed, quick=quick, progress=progress, device=device)
            except DamagedModels as damaged:
                if not mend:
                    damaged.right = f"{self._command(seed, quick=quick, device=device)}, which makes it again"
                    raise
                damaged.remove()

    def _command(self, seed: int, *, quick: bool, device: str) -> str:
        """Return what to type to make the models of a seed."""
        parts = ["cuvee bench build", self.name]
        parts += ["--quick"] if quick else []
        parts += [f"--seeds {seed + 1}"] if seed else []
        parts += [f"--device {device}"] if device != "cpu" else []
        return " ".join(parts)
