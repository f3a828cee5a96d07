"""Making the models of a suite: what is there is left alone, what was interrupted goes on, several at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cuvee.checkpoints import fs
from cuvee.checkpoints.publishing import locked
from cuvee.evaluation.candidates import Shapes
from cuvee.evaluation.damage import digests_file, digests_of, keep_digests, kept_digests, need_whole
from cuvee.evaluation.parallel import each_on_a_core
from cuvee.evaluation.suites.suite import BASE, Progress
from cuvee.evaluation.training import Training, train

__all__ = ["Check", "digest", "make_models", "trained", "weaker", "weaker_name"]

Check = Callable[[], None]


def digest(*parts: Any) -> str:
    """Return twelve digits that name what a suite is made of: bytes count as they are, all else as it is printed."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        whole.update(hashlib.sha256(data).digest())
    return whole.hexdigest()[:12]


def make_models(
    folder: Path,
    names: Sequence[str],
    make: Callable[[str, Check], None],
    progress: Progress,
    *,
    shares: Sequence[float] = (),
    shapes: Shapes | None = None,
    threads: int = 1,
) -> None:
    """Make the models that are not in the folder yet.

    A base that is made again, and comes out as another one, takes with it what came from the one before.

    Args:
        folder: holds a folder for each.
        names: of the models.
        make: makes the one of a name; calls what it is given now and then, which raises when it shall stop.
        progress: is told which were there.
        shares: of its training after which each is kept too.
        shapes: of the models; None: they are not looked at.
        threads: of torch, for each.

    Raises:
        ResourceError: another process is making them.
        DamagedModels: a model is there, and not as it was made.
    """
    places = {name: [folder / one for one in (name, *(weaker_name(name, share) for share in shares))] for name in names}
    need_whole([place for own in places.values() for place in own], shapes)
    missing = [name for name, own in places.items() if not all(map(fs.exists, own))]
    for name in names:
        if name not in missing:
            progress(name, 0, 0, "")

    def made(name: str, check: Check) -> None:
        make(name, check)
        if name == BASE and kept_digests(folder / BASE) not in (None, digests_of(folder / BASE)):
            # before its digests are kept: of a build that is killed between the two, the next one sees this again
            _remove_all_but(folder, [BASE, digests_file(folder / BASE).name])
        for place in places[name]:
            keep_digests(place)

    if missing:
        # Two builds of one suite at once would train the same models, and trip over each other's snapshots.
        with locked(folder):
            each_on_a_core(made, missing, threads=threads)


def _remove_all_but(folder: Path, names: Sequence[str]) -> None:
    for name in fs.listdir(folder):
        if name not in names:
            fs.remove_tree(folder / name)


def trained(
    model: nn.Module,
    folder: Path,
    loss_of: Callable[[int], Tensor],
    training: Training,
    save: Callable[[Path], None],
    *,
    progress: Progress,
    check: Check,
    in_words: Callable[[float], str],
    shares: Sequence[float] = (),
) -> None:
    """Train a model and save it, and before that what it is after shares of its training.

    Args:
        model: is trained in place.
        folder: where it is saved; snapshots of its training lie beside it.
        loss_of: as for `train`.
        training: how.
        save: writes the model as it is now to a folder.
        progress: is told after each step.
        check: is called after each step.
        in_words: says a loss.
        shares: of the training, in (0, 1).
    """
    snapshot = folder.with_name(f".{folder.name}.training")
    at = {max(1, round(share * training.steps)): folder.with_name(weaker_name(folder.name, share)) for share in shares}

    def on_step(done: int, loss: float) -> None:
        if done in at and not fs.exists(at[done]):
            save(at[done])
        check()
        progress(folder.name, done, training.steps, in_words(loss))

    train(model, loss_of, training, on_step=on_step, snapshot=snapshot)
    save(folder)
    if fs.exists(snapshot):
        fs.unlink(snapshot)


def weaker_name(name: str, share: float) -> str:
    """Return the name of an expert after a share of its training."""
    return f"{name}-after-{round(100 * share)}"


def weaker(folder: Path, names: Sequence[str], shares: Sequence[float]) -> Mapping[float, Mapping[str, str]]:
    """Return the references of experts after shares of their training."""
    return {share: {name: str(folder / weaker_name(name, share)) for name in names} for share in shares}
