"""Damage: the digests of a model's files lie beside it, so that what was cut off or altered since is told.

base/                 a model of a suite
.base.digests.json    of its files, as they were made

Every file is read whole: that takes less than a second for the largest suite (1.2 GB), and sees a disk that forgets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from blake3 import blake3

from cuvee.checkpoints import fs
from cuvee.checkpoints.opening import open_adapter_alone, open_model
from cuvee.checkpoints.publishing import locked
from cuvee.errors import CheckpointError, CuveeError
from cuvee.evaluation.candidates import Shapes, need_shapes
from cuvee.evaluation.model_folders import is_adapter, is_model

__all__ = ["DamagedModels", "digests_file", "digests_of", "keep_digests", "kept_digests", "need_whole"]


class DamagedModels(CheckpointError):
    """Models of a suite are not as they were made.

    Args:
        places: folders, or files, that may be removed and made again.
        found, where: of the first.
    """

    def __init__(self, places: Sequence[Path], found: str, *, where: str) -> None:
        super().__init__(found, where=where, right="cuvee bench build, which makes it again")
        self.places = places

    def remove(self) -> None:
        """Remove them; what their bytes were is remembered."""
        with ExitStack() as stack:
            for folder in dict.fromkeys(place.parent for place in self.places):
                stack.enter_context(locked(folder))
            for place in self.places:
                fs.remove_tree(place)


def need_whole(places: Iterable[Path], shapes: Shapes | None = None) -> None:
    """Return if models are as they were made; what is not there is no damage.

    One that was made before digests were kept has to be readable, and to have these shapes; its digests are kept from now on.

    Raises:
        DamagedModels: some are not.
    """
    damages = {place: damage for place in places if (damage := _damage(place, shapes)) is not None}
    if damages:
        file, why = next(iter(damages.values()))
        others = f", and {len(damages) - 1} more of the suite are damaged" if len(damages) > 1 else ""
        raise DamagedModels([*damages], why + others, where=str(file))


def keep_digests(place: Path) -> None:
    """Write beside a folder, or a file, what its bytes are."""
    fs.replace_file(digests_file(place), json.dumps(digests_of(place)).encode())


def kept_digests(place: Path) -> dict[str, str] | None:
    """Return what was written, whether or not anything is there now; None where nothing was, or it is damaged itself."""
    try:
        kept = json.loads(fs.read_file(digests_file(place)))
    except (FileNotFoundError, ValueError):
        return None
    return kept if isinstance(kept, dict) and kept else None


def digests_file(place: Path) -> Path:
    """Return where the digests of a folder, or of a file, lie."""
    return place.with_name(f".{place.name}.digests.json")


def digests_of(place: Path) -> dict[str, str]:
    """Return the digests of the files of a folder by their names; of a file its own, by ""."""
    names = fs.listdir(place) if fs.is_folder(place) else [""]
    return {name: _digest(place / name) for name in names if fs.is_file(place / name)}


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return str(hashlib.file_digest(opened, blake3).hexdigest())  # type: ignore[arg-type]


def _damage(place: Path, shapes: Shapes | None) -> tuple[Path, str] | None:
    """Return a file, and what is wrong with it."""
    if not fs.exists(place):
        return None
    kept = kept_digests(place)
    if kept is None:
        return _misshapen(place, shapes)
    found = digests_of(place)
    for name in kept:
        if name not in found:
            return place / name, "a file of a suite's model is gone"
        if found[name] != kept[name]:
            return place / name, "a file of a suite is damaged: its bytes are not those that were made"
    return None


def _misshapen(place: Path, shapes: Shapes | None) -> tuple[Path, str] | None:
    if fs.is_folder(place) and not is_model(place):
        return place, "a model of a suite lacks its weights or its config"
    try:
        model = open_adapter_alone(place) if is_adapter(place) else open_model(place)
        found = {name: source.shape for name, source in model.tensors.items()}
        model.close()
        if shapes is not None:
            need_shapes(shapes, found)
    except CuveeError as problem:
        return Path(problem.where or place), f"a file of a suite is damaged: {problem.found}"
    keep_digests(place)
    return None
