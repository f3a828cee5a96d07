"""`pairs-chgnet`: a published potential of crystals, and its fine-tune to a finer theory, as torch has saved them.

The weights of CHGNet 0.3.0 (arXiv 2302.14231) were trained on energies of GGA, and went on from there to those of r2SCAN
(Cross-functional transferability, npj Computational Materials 2025). Those of 0.2.0 come from another training: a stranger,
which a check must tell from an expert. There is nothing to score by: energies of the two theories count from other zeros, tens
of eV an atom apart, and one tensor of 94 numbers (`composition_model.fc.weight`) holds that; docs/suites.md has the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints import fs
from cuvee.errors import CheckpointError
from cuvee.evaluation.candidates import Shapes
from cuvee.evaluation.packages import Package, members
from cuvee.evaluation.suites.making import digest
from cuvee.evaluation.suites.suite import BASE, Built, Progress, Suite, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CHGNET", "SUITE"]

CHGNET = Package(
    "pypi",
    "chgnet",
    "0.4.2",
    "",
    "BSD-3, modified",
    "weights of CHGNet 0.2.0, 0.3.0, and of 0.3.0 fine-tuned to r2SCAN",
)
"""Its archive is another on each platform; the weights in it are the same."""
_EXPERT, _STRANGER = "r2scan", "0.2.0"
_FILES = {
    BASE: (
        "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
    ),
    _EXPERT: (
        "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
    ),
    _STRANGER: (
        "chgnet/pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
        "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
    ),
}
"""Where a model is in the package, and the SHA-256 of its file."""


def _build(suite: Suite, home: Path, seed: int, *, quick: bool, progress: Progress, device: str) -> Built:
    key = digest("chgnet 1", *(sha256 for _, sha256 in _FILES.values()))
    folder = home / "suites" / suite.name / key
    fs.mkdir(folder)
    files = {name: folder / f"{name}.pth.tar" for name in _FILES}
    for name, place in files.items():
        if fs.is_file(place) and _is(name, fs.read_file(place)):
            progress(name, 0, 0, "")
            continue
        fs.replace_file(place, _published(name))
        progress(name, 1, 1, "")
    return Built(
        suite,
        seed,
        key,
        folder,
        base=str(files[BASE]),
        experts={_EXPERT: str(files[_EXPERT])},
        strangers={_STRANGER: str(files[_STRANGER])},
        tasks={},
        scorer=_unscored,
        device=device,
    )


def _is(name: str, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == _FILES[name][1]


@cache
def _weights() -> Mapping[str, bytes]:
    return members(CHGNET, [path for path, _ in _FILES.values()])


def _published(name: str) -> bytes:
    """Return the file of a model.

    Raises:
        CheckpointError: the package holds another.
    """
    data = _weights()[_FILES[name][0]]
    if not _is(name, data):
        raise CheckpointError(
            "the weights in the package chgnet 0.4.2 are not those that its authors published",
            where=_FILES[name][0],
            right="a registry that serves the package as its authors published it",
        )
    return data


def _listed(*, quick: bool) -> list[Task]:
    return []


def _shaped(*, quick: bool) -> Shapes:
    raise AssertionError("a suite without tasks scores no model")


def _unscored(*_: Any, **__: Any) -> NDArray[np.float32]:
    raise AssertionError("a suite without tasks scores nothing")


SUITE = Suite(
    "pairs-chgnet",
    "CHGNet and its fine-tune to r2SCAN, to compare and to merge; no tasks",
    _build,
    _listed,
    _shaped,
    [CHGNET],
    [CHGNET],
)
