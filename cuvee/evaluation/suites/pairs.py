"""`pairs` and `pairs-seeds`: networks that others have trained and published, with nothing left to train.

ANI-1ccx was fine-tuned from ANI-1x, member by member. In `pairs` the one expert comes from the very base; in `pairs-seeds` it
has the company of experts from bases of other seeds, which no average joins: a case for aligning neurons first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cuvee.evaluation.ani import MEMBERS, MOLECULES, TORCHANI, Ani, conformers, environments, network
from cuvee.evaluation.candidates import Shapes, holding, shapes_of, skeleton
from cuvee.evaluation.devices import marks
from cuvee.evaluation.model_folders import as_json, save_folder
from cuvee.evaluation.suites.making import Check, digest, make_models
from cuvee.evaluation.suites.suite import BASE, Built, Corruption, Progress, Split, Suite, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SUITE", "SUITE_SEEDS"]

_KCAL = 627.5094740631
"""Kilocalories a mole in a hartree."""
_FAMILIES = {"1x": "ani-1x", "ccx": "ani-1ccx"}
_SPREADS = {"calm": 0.05, "1": 0.07, "2": 0.09, "3": 0.11, "4": 0.13, "5": 0.16}
"""How far atoms are from rest, in ångström: as scored, and by the severity of the corruption "heat"."""
_SEEDS: Mapping[Split, int] = {"validation": 1, "test": 2}
_OTHERS = 2


@dataclass(frozen=True)
class _Sizes:
    """Conformers of each molecule that are scored."""

    validation: int
    test: int

    def of(self, split: Split) -> int:
        return self.test if split == "test" else self.validation


def _build(suite: Suite, home: Path, seed: int, *, quick: bool, progress: Progress, device: str) -> Built:
    sizes = _Sizes(5, 10) if quick else _Sizes(20, 60)
    member = seed
    names = {name: (member + n) % MEMBERS for n, name in enumerate(_experts(suite.name))}
    key = digest("pairs 1", TORCHANI.sha256, member, names, *marks(device))
    folder = home / "suites" / suite.name / key

    def unpack(name: str, check: Check) -> None:
        tensors = network("ani-1x", member) if name == BASE else network("ani-1ccx", names[name])
        config = {"model_type": "ani", "architectures": ["Ani"], "activation": "celu(0.1)"}
        save_folder(folder / name, tensors, {"config.json": as_json(config)})
        progress(name, 1, 1, "")

    make_models(folder, [BASE, *names], unpack, progress, shapes=_shaped(quick=quick))
    return Built(
        suite,
        seed,
        f"{key}-{sizes.validation}-{sizes.test}",
        folder,
        base=str(folder / BASE),
        experts={name: str(folder / name) for name in names},
        tasks=suite.tasks(quick=quick),
        scorer=_Scorer(sizes, device),
        corruptions=("heat",),
        device=device,
    )


def _experts(suite: str) -> list[str]:
    """Return the names of the experts: the one of the very base, then those of other seeds."""
    return ["ccx", *(f"ccx-seed{n + 1}" for n in range(_OTHERS if suite == "pairs-seeds" else 0))]


def _listed(suite: str) -> Callable[..., list[Task]]:
    base = Task("1x", "Energies as ANI-1x", "base", _METRIC, False)
    own = [Task(name, "Energies as ANI-1ccx", "expert", _METRIC, False, name) for name in _experts(suite)]
    return lambda *, quick: [base, *own]


def _shaped(*, quick: bool) -> Shapes:
    return shapes_of(Ani())


_METRIC = "error in kcal/mol"


class _Scorer:
    """Scores members by their distance from the mean of all eight, conformer by conformer, the molecules taking turns."""

    def __init__(self, sizes: _Sizes, device: str) -> None:
        self._sizes = sizes
        self._device = device
        self._bones = skeleton(Ani())
        self._surroundings: dict[tuple[Split, str], dict[str, Tensor]] = {}
        self._references: dict[tuple[str, Split, str], NDArray[np.float64]] = {}

    def __call__(
        self, tensors: Mapping[str, Tensor], task: Task, split: Split, limit: int | None, corruption: Corruption | None
    ) -> NDArray[np.float32]:
        spread = "calm" if corruption is None else str(corruption.severity)
        found = self._energies(holding(self._bones, tensors, self._device), split, spread)
        errors = np.abs(found - self._reference(task.name.partition("-")[0], split, spread)) * _KCAL
        return errors[:limit].astype(np.float32)

    def _reference(self, family: str, split: Split, spread: str) -> NDArray[np.float64]:
        """Return the mean of the eight members of a family."""
        key = (family, split, spread)
        if key not in self._references:
            published = (
                holding(self._bones, network(_FAMILIES[family], member), self._device) for member in range(MEMBERS)
            )
            self._references[key] = np.mean([self._energies(one, split, spread) for one in published], axis=0)
        return self._references[key]

    def _energies(self, model: Ani, split: Split, spread: str) -> NDArray[np.float64]:
        """Return the energies of all conformers: the first of each molecule, the second of each, …"""
        with torch.inference_mode():
            by_molecule = [
                model(MOLECULES[name][0], surroundings).double().cpu().numpy()
                for name, surroundings in self._of(split, spread).items()
            ]
        return np.stack(by_molecule, 1).ravel()

    def _of(self, split: Split, spread: str) -> dict[str, Tensor]:
        key = (split, spread)
        if key not in self._surroundings:
            self._surroundings[key] = {
                name: torch.from_numpy(
                    environments(elements, conformers(name, self._sizes.of(split), _SEEDS[split], _SPREADS[spread]))
                ).to(self._device)
                for name, (elements, _) in MOLECULES.items()
            }
        return self._surroundings[key]


_TOLD: Sequence[str] = ("conformers of eleven small molecules, made here",)
SUITE = Suite(
    "pairs",
    "ANI-1x and ANI-1ccx, which was fine-tuned from it",
    _build,
    _listed("pairs"),
    _shaped,
    [TORCHANI],
    [TORCHANI],
    data=_TOLD,
    members=MEMBERS,
)
SUITE_SEEDS = Suite(
    "pairs-seeds",
    "ANI-1x, ANI-1ccx, and experts from bases of other seeds",
    _build,
    _listed("pairs-seeds"),
    _shaped,
    [TORCHANI],
    [TORCHANI],
    data=_TOLD,
    members=MEMBERS,
)
