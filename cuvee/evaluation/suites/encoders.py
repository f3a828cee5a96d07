"""Suites of encoders with a head a task, as in the protocol of eight CLIP tasks (arXiv 2212.04089).

A head is made of what the untouched base makes of a task's training data, and never moves again: not while an expert
is fine-tuned through it, and not when a merge is scored by it. So models differ in the encoder alone, which is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cuvee.checkpoints import fs
from cuvee.evaluation.candidates import Shapes, holding, skeleton
from cuvee.evaluation.damage import keep_digests, need_whole
from cuvee.evaluation.devices import at_once, repeatable
from cuvee.evaluation.parallel import each_on_a_core
from cuvee.evaluation.suites.making import Check, make_models, trained, weaker
from cuvee.evaluation.suites.suite import BASE, Built, Corruption, Kind, Progress, Split, Suite, Task
from cuvee.evaluation.training import Training, generator_of_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EncoderTask", "Labelled", "accuracy", "build_encoders", "features_of", "prototypes", "unlike"]

_HEADS = "heads.safetensors"
_SHARPNESS = 16.0
_EXAMPLES_OF_HEAD = 800


@dataclass(frozen=True)
class Labelled:
    """Examples of a task.

    Attributes:
        inputs: (n, …), what the encoder takes.
        labels: (n,) int64.
        documents: (m, …) where the task is to find the one of the label by its likeness; None: a head tells the class.
    """

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    documents: Tensor | None = field(default=None, repr=False)


def unlike(examples: Labelled, *others: Labelled) -> Labelled:
    """Return the examples whose inputs, (n, m) tokens, none of the others has.

    Texts that are not the same may be so to an encoder, which reads their beginning and no capitals.
    """
    known = {tuple(row) for one in others for row in one.inputs.tolist()}
    kept = torch.tensor([tuple(row) not in known for row in examples.inputs.tolist()])
    return replace(examples, inputs=examples.inputs[kept], labels=examples.labels[kept])


@dataclass(frozen=True)
class EncoderTask:
    """A task with its examples, in the order in which they are scored.

    Attributes:
        name, title, kind: as of `Task`.
        classes: their number; 0 for finding documents.
        train: for the head and the expert; None where there is neither.
        validation, test: to score by.
    """

    name: str
    title: str
    kind: Kind
    classes: int
    train: Labelled | None
    validation: Labelled
    test: Labelled

    def task(self) -> Task:
        """Return what the suite shows of it."""
        return accuracy(self.name, self.title, self.kind)

    def held_out(self, split: Split) -> Labelled:
        """Return the examples of a split."""
        return self.test if split == "test" else self.validation


def accuracy(name: str, title: str, kind: Kind) -> Task:
    """Return the task of telling classes, or documents, apart; its own expert is called as it."""
    return Task(name, title, kind, "accuracy", expert=name if kind == "expert" else None)


Encode = Callable[[nn.Module, Tensor], Tensor]
"""(encoder, inputs (n, …)) -> (n, width) features of length one."""
Corrupt = Callable[[Tensor, Corruption], Tensor]


def features_of(
    encoder: nn.Module, inputs: Tensor, encode: Encode, device: str = "cpu", check: Check = lambda: None
) -> Tensor:
    """Return (n, width) features, without gradients, of an encoder that is on a device."""
    parts = []
    with repeatable(device), torch.inference_mode():
        for part in torch.split(inputs, at_once(device)):
            check()
            parts.append(encode(encoder, part.to(device)).cpu())
    return torch.cat(parts).clone()


def prototypes(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the (classes, width + 1) weights and biases of a head that tells a class by the likeness to its mean.

    A row is the direction from the mean of all to the mean of the class, of one length for all classes, as CLIP's rows
    are; such a head cannot learn its examples by heart, so that there is something left for the expert to learn.
    """
    means = torch.stack([features[labels == place].mean(0) for place in range(classes)])
    middle = means.mean(0)
    directions = _SHARPNESS * functional.normalize(means - middle)
    return torch.cat([directions, -(directions @ middle).unsqueeze(1)], 1)


def _logits(features: Tensor, head: Tensor) -> Tensor:
    return features @ head[:, :-1].T + head[:, -1]


def build_encoders(
    suite: Suite,
    folder: Path,
    seed: int,
    tasks: Sequence[EncoderTask],
    *,
    shapes: Shapes,
    make_base: Callable[[Path, Check], None],
    load: Callable[[Path], nn.Module],
    save: Callable[[nn.Module, Path], None],
    encode: Encode,
    training: Training,
    batch: int,
    progress: Progress,
    shares: Sequence[float] = (),
    corrupt: Corrupt | None = None,
    corruptions: Sequence[str] = (),
    base_threads: int = 1,
    device: str = "cpu",
) -> Built:
    """Make the base, make the heads, and fine-tune an expert for each task of the kind "expert".

    Args:
        suite: which one.
        folder: of this form, data and seed; its name is their digest.
        seed: of the training.
        tasks: all of them.
        shapes: of an encoder.
        make_base: writes the base to a folder.
        load: reads an encoder, ready to be trained.
        save: writes one.
        encode: runs one.
        training: of an expert.
        batch: examples a step.
        progress: is told how far each model is.
        shares: of its training after which an expert is kept too.
        corrupt: shifts inputs.
        corruptions: what it knows.
        base_threads: of torch, while the base is made.
        device: where heads and experts are made, and all are scored.
    """
    by_name = {task.name: task for task in tasks}
    experts = [task.name for task in tasks if task.kind == "expert"]
    make_models(
        folder,
        [BASE],
        lambda name, check: make_base(folder / name, check),
        progress,
        shapes=shapes,
        threads=base_threads,
    )
    heads = _heads(folder, tasks, load, encode, progress, device)

    def make_expert(name: str, check: Check) -> None:
        encoder = load(folder / BASE).to(device)
        train, head = by_name[name].train, heads[name].to(device)
        assert train is not None

        def loss_of(step: int) -> Tensor:
            chosen = torch.randint(len(train.labels), (batch,), generator=generator_of_step(seed + 1, step))
            inputs, labels = train.inputs[chosen].to(device), train.labels[chosen].to(device)
            return functional.cross_entropy(_logits(encode(encoder, inputs), head), labels)

        trained(
            encoder,
            folder / name,
            loss_of,
            training,
            lambda place: save(encoder, place),
            progress=progress,
            check=check,
            in_words=lambda loss: f"loss {loss:.2f}",
            shares=shares,
        )

    make_models(folder, experts, make_expert, progress, shares=shares, shapes=shapes)
    return Built(
        suite,
        seed,
        folder.name,
        folder,
        base=str(folder / BASE),
        experts={name: str(folder / name) for name in experts},
        tasks={task.name: task.task() for task in tasks},
        scorer=_Scorer(skeleton(load(folder / BASE)), by_name, heads, encode, corrupt, device),
        weaker=weaker(folder, experts, shares),
        corruptions=corruptions,
        device=device,
    )


def _heads(
    folder: Path,
    tasks: Sequence[EncoderTask],
    load: Callable[[Path], nn.Module],
    encode: Encode,
    progress: Progress,
    device: str,
) -> dict[str, Tensor]:
    """Return the heads by task, making them where they are not kept yet."""
    from safetensors.torch import load as parse
    from safetensors.torch import save as pack

    file = folder / _HEADS
    need_whole([file])
    if not fs.exists(file):
        base = load(folder / BASE).to(device).eval()
        with_head = [task for task in tasks if task.train is not None and task.classes]
        done = 0

        def make(task: EncoderTask, check: Check) -> Tensor:
            nonlocal done
            assert task.train is not None
            features = features_of(base, task.train.inputs[:_EXAMPLES_OF_HEAD], encode, device, check)
            head = prototypes(features, task.train.labels[:_EXAMPLES_OF_HEAD], task.classes)
            done += 1
            progress("heads", done, len(with_head), "")
            return head

        made = dict(zip((task.name for task in with_head), each_on_a_core(make, with_head), strict=True))
        fs.replace_file(file, pack(made))
        keep_digests(file)
    return parse(fs.read_file(file))


class _Scorer:
    """Scores encoders: right or wrong, item by item."""

    def __init__(
        self,
        bones: nn.Module,
        tasks: Mapping[str, EncoderTask],
        heads: Mapping[str, Tensor],
        encode: Encode,
        corrupt: Corrupt | None,
        device: str,
    ) -> None:
        self._bones = bones
        self._tasks = tasks
        self._heads = heads
        self._encode = encode
        self._corrupt = corrupt
        self._device = device

    def __call__(
        self, tensors: Mapping[str, Tensor], task: Task, split: Split, limit: int | None, corruption: Corruption | None
    ) -> NDArray[np.float32]:
        encoder = holding(self._bones, tensors, self._device)
        items = self._tasks[task.name].held_out(split)
        # The whole split is corrupted, so that an item's noise does not depend on the limit.
        inputs = self._corrupt(items.inputs, corruption) if corruption and self._corrupt else items.inputs
        features = features_of(encoder, inputs[:limit], self._encode, self._device)
        if items.documents is None:
            found = _logits(features, self._heads[task.name])
        else:
            found = features @ features_of(encoder, items.documents, self._encode, self._device).T
        return (found.argmax(1) == items.labels[:limit]).float().numpy()
