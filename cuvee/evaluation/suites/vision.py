"""`vision` and `vision-resnet`: a small ViT, and a ResNet with batch norms, that have learned signs, and experts in pictures.

The base is trained on a mix: all pictures of Greek and Cyrillic letters and mathematical signs, which experts and merges may
forget, and a few of the pictures that most experts will learn, as a base of the world's pictures has seen a few of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cuvee.checkpoints import fs
from cuvee.errors import ResourceError
from cuvee.evaluation import images
from cuvee.evaluation.candidates import Shapes, shapes_of
from cuvee.evaluation.devices import marks
from cuvee.evaluation.glyphs import SIDE
from cuvee.evaluation.images import PictureTask
from cuvee.evaluation.model_folders import as_json, save_folder
from cuvee.evaluation.suites.encoders import EncoderTask, Labelled, accuracy, build_encoders
from cuvee.evaluation.suites.making import Check, digest, trained
from cuvee.evaluation.suites.suite import Built, Corruption, Kind, Progress, Suite, Task
from cuvee.evaluation.training import Training, generator_of_step

__all__ = ["SUITE", "SUITE_RESNET", "Form", "build_vision", "read_tasks", "tasks_of"]

_SHARPNESS = 16.0
_CONFIG = "config.json"


@dataclass(frozen=True)
class Form:
    """How large the suite is.

    Attributes:
        network: "vit" or "resnet".
        sizes: of its config.
        mix: what the base learns.
        glimpsed: the experts' tasks of which the base sees one picture in `glimpse`.
        experts, unseen: the other tasks.
        train, validation, test: pictures of each task.
        base, expert: their training; a batch has `batch` pictures.
        shares: of its training after which an expert is kept too.
    """

    network: Literal["vit", "resnet"]
    sizes: Mapping[str, Any]
    base: Training
    expert: Training
    mix: Sequence[PictureTask] = (images.GREEK, images.CYRILLIC, images.SIGNS)
    experts: Sequence[PictureTask] = (
        images.DIGITS, images.CLOTHES, images.UCI_DIGITS, images.DIGITS_ON_PHOTOGRAPHS, images.TURNED_CLOTHES,
        images.LETTERS, images.ARMENIAN,
    )  # fmt: skip
    unseen: Sequence[PictureTask] = (images.GEORGIAN,)
    glimpsed: Sequence[str] = ("mnist", "fashion", "uci", "photo", "turned", "latin")
    glimpse: int = 12
    train: int = 12_000
    validation: int = 500
    test: int = 2000
    batch: int = 64
    shares: Sequence[float] = (0.25,)

    @property
    def kinds(self) -> list[tuple[PictureTask, Kind]]:
        """The tasks with their kinds, in order."""
        kinds: list[tuple[Kind, Sequence[PictureTask]]] = [
            ("base", self.mix),
            ("expert", self.experts),
            ("unseen", self.unseen),
        ]
        return [(task, kind) for kind, tasks in kinds for task in tasks]

    @property
    def width(self) -> int:
        """Of the features."""
        return int(self.sizes["hidden_size"] if self.network == "vit" else self.sizes["hidden_sizes"][-1])


VIT = Form(
    "vit",
    {"patch_size": 7, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4},
    base=Training(steps=5000, learning_rate=2e-3, muon_rate=0.015, seed=1),
    expert=Training(steps=500, learning_rate=3e-4, seed=2),
)
RESNET = Form(
    "resnet",
    {"embedding_size": 24, "hidden_sizes": [24, 48, 96], "depths": [2, 2, 2]},
    base=Training(steps=2000, learning_rate=1e-2, weight_decay=0.01, seed=1),
    expert=Training(steps=300, learning_rate=1e-3, weight_decay=0.01, seed=2),
)


def _quick(form: Form, base_steps: int, expert_steps: int, **sizes: Any) -> Form:
    return replace(
        form,
        sizes={**form.sizes, **sizes},
        base=replace(form.base, steps=base_steps),
        expert=replace(form.expert, steps=expert_steps),
        train=6000,
        validation=200,
        test=400,
        batch=32,
    )


FORMS = {
    ("vision", False): VIT,
    ("vision", True): _quick(VIT, 2400, 300, hidden_size=64, intermediate_size=192, num_hidden_layers=4),
    ("vision-resnet", False): RESNET,
    ("vision-resnet", True): _quick(RESNET, 1200, 100, embedding_size=12, hidden_sizes=[12, 24, 48], depths=[1, 1, 1]),
}


def _build(suite: Suite, home: Path, seed: int, *, quick: bool, progress: Progress, device: str) -> Built:
    form = FORMS[suite.name, quick]
    _transformers()
    return build_vision(suite, home, seed, form, read_tasks(form), progress, device)


def read_tasks(form: Form) -> list[EncoderTask]:
    """Return the tasks with their pictures, the base's own first."""

    def labelled(task: PictureTask, side: str, count: int) -> Labelled:
        pictures, labels = task.pictures(side, count)
        return Labelled(torch.from_numpy(np.ascontiguousarray(pictures)).unsqueeze(1), torch.from_numpy(labels))

    def read(task: PictureTask, kind: Kind) -> EncoderTask:
        counts = {"train": form.train, "validation": form.validation, "test": form.test}
        train, validation, test = (labelled(task, side, count) for side, count in counts.items())
        return EncoderTask(task.name, task.title, kind, task.classes, train, validation, test)

    return [read(task, kind) for task, kind in form.kinds]


def tasks_of(form: Form) -> list[Task]:
    """Return what models of a form are scored on."""
    return [accuracy(task.name, task.title, kind) for task, kind in form.kinds]


def _listed(suite: str) -> Callable[..., list[Task]]:
    return lambda *, quick: tasks_of(FORMS[suite, quick])


def _shaped(suite: str) -> Callable[..., Shapes]:
    return lambda *, quick: shapes_of(_started(FORMS[suite, quick], 0))


def build_vision(
    suite: Suite,
    home: Path,
    seed: int,
    form: Form,
    tasks: Sequence[EncoderTask],
    progress: Progress,
    device: str = "cpu",
) -> Built:
    """Train what is not there yet: the base, then the experts beside each other."""
    plain = (form.network, form.sizes, form.base, form.expert, form.batch, form.shares)
    data = (
        tensor.numpy().tobytes()
        for task in tasks
        for side in (task.train, task.validation, task.test)
        if side is not None
        for tensor in (side.inputs, side.labels)
    )
    key = digest("vision 3", plain, seed, *(task.name for task in tasks), *data, *marks(device))

    def make_base(folder: Path, check: Check) -> None:
        torch_seed = form.base.seed + 1000 * seed
        encoder = _started(form, torch_seed)
        mix = _mix(form, tasks)
        model = _WithHead(encoder, form.width, sum(classes for classes, _ in mix), torch_seed).to(device)
        trained(
            model,
            folder,
            _mixed_loss(model, mix, form.batch, torch_seed, device),
            form.base,
            lambda place: _save(encoder, place),
            progress=progress,
            check=check,
            in_words=lambda loss: f"loss {loss:.2f}",
        )

    return build_encoders(
        suite,
        home / "suites" / suite.name / key,
        seed,
        tasks,
        shapes=shapes_of(_started(form, 0)),
        make_base=make_base,
        load=_load,
        save=_save,
        encode=_encode,
        training=form.expert,
        batch=form.batch,
        progress=progress,
        shares=form.shares,
        corrupt=_corrupted,
        corruptions=tuple(_CORRUPTIONS),
        device=device,
    )


class _WithHead(nn.Module):
    """An encoder with a row for each class of the mix, while the base is trained."""

    def __init__(self, encoder: nn.Module, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Parameter(torch.randn(classes, width, generator=torch.Generator().manual_seed(seed)))


def _mix(form: Form, tasks: Sequence[EncoderTask]) -> list[tuple[int, Labelled]]:
    """Return what the base learns: numbers of classes, and pictures."""
    found = []
    for task in tasks:
        if task.train is not None and (task.kind == "base" or task.name in form.glimpsed):
            count = len(task.train.labels) // (1 if task.kind == "base" else form.glimpse)
            found.append((task.classes, Labelled(task.train.inputs[:count], task.train.labels[:count])))
    return found


def _mixed_loss(
    model: _WithHead, mix: Sequence[tuple[int, Labelled]], batch: int, seed: int, device: str
) -> Callable[[int], Tensor]:
    """Return the function of a step that draws pictures, of all tasks alike, and returns their loss among their own classes."""
    first = torch.tensor([0, *(classes for classes, _ in mix)]).cumsum(0)
    others = torch.full((len(mix), int(first[-1])), -torch.inf)
    for place, (begin, end) in enumerate(pairwise(first.tolist())):
        others[place, begin:end] = 0

    def loss_of(step: int) -> Tensor:
        generator = generator_of_step(seed, step)
        tasks = torch.randint(len(mix), (batch,), generator=generator)
        draws = torch.rand(batch, generator=generator)
        drawn = [(mix[task][1], int(draw * len(mix[task][1].labels))) for task, draw in zip(tasks, draws, strict=True)]
        inputs = torch.stack([side.inputs[place] for side, place in drawn])
        labels = torch.stack([side.labels[place] for side, place in drawn]) + first[tasks]
        features = _encode(model.encoder, inputs.to(device))
        logits = _SHARPNESS * features @ functional.normalize(model.head, dim=1).T
        return functional.cross_entropy(logits + others[tasks].to(device), labels.to(device))

    return loss_of


# --- The encoders ---------------------------------------------------------------------------------------------------


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ResourceError("the vision suites need transformers", right="pip install 'cuvee[bench]'") from None
    return transformers


def _empty(config: Mapping[str, Any]) -> nn.Module:
    """Return an encoder of transformers' kinds of a config.json."""
    transformers = _transformers()
    config = {key: value for key, value in config.items() if key != "architectures"}
    if config["model_type"] == "vit":
        made = transformers.ViTModel(transformers.ViTConfig(**config), add_pooling_layer=False)
    else:
        made = transformers.ResNetModel(transformers.ResNetConfig(**config))
    module: nn.Module = made
    return module


def _started(form: Form, seed: int) -> nn.Module:
    config = {"model_type": form.network, "num_channels": 1, **form.sizes}
    if form.network == "vit":
        config["image_size"] = SIDE
    else:
        config["layer_type"] = "basic"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = _empty(config)
    encoder.train()
    return encoder


def _load(folder: Path) -> nn.Module:
    import json

    from safetensors.torch import load

    encoder = _empty(json.loads(fs.read_file(folder / _CONFIG)))
    encoder.load_state_dict(load(fs.read_file(folder / "model.safetensors")))
    return encoder.train()


def _save(encoder: nn.Module, folder: Path) -> None:
    config = encoder.config.to_diff_dict()  # type: ignore[union-attr, operator]
    config["architectures"] = [type(encoder).__name__]
    save_folder(folder, encoder.state_dict(), {_CONFIG: as_json(config)})


def _encode(encoder: nn.Module, pictures: Tensor) -> Tensor:
    """Return features of length one: the mean over the places of a picture."""
    hidden = encoder(pixel_values=(pictures.float() - 64) / 96).last_hidden_state
    # (n, places, width) of a ViT, (n, width, rows, columns) of a ResNet
    pooled = hidden.mean(1) if hidden.dim() == 3 else hidden.mean((2, 3))
    return functional.normalize(pooled, dim=1)


# --- Corruptions ----------------------------------------------------------------------------------------------------


def _noise(pictures: Tensor, severity: int) -> Tensor:
    generator = torch.Generator().manual_seed(severity)
    return pictures + (16, 32, 48, 64, 96)[severity - 1] * torch.randn(pictures.shape, generator=generator)


def _blur(pictures: Tensor, severity: int) -> Tensor:
    width = (0.6, 0.9, 1.2, 1.6, 2.2)[severity - 1]
    places = torch.arange(-5.0, 6.0)
    line = torch.exp(-0.5 * (places / width) ** 2)
    line = line / line.sum()
    across = functional.conv2d(pictures, line.view(1, 1, 1, -1), padding=(0, 5))
    return functional.conv2d(across, line.view(1, 1, -1, 1), padding=(5, 0))


def _contrast(pictures: Tensor, severity: int) -> Tensor:
    mean = pictures.mean((1, 2, 3), keepdim=True)
    return mean + (0.7, 0.5, 0.35, 0.2, 0.1)[severity - 1] * (pictures - mean)


def _rotation(pictures: Tensor, severity: int) -> Tensor:
    angle = torch.tensor((8.0, 16.0, 24.0, 32.0, 45.0)[severity - 1]).deg2rad()
    turn = torch.stack([angle.cos(), -angle.sin(), torch.tensor(0.0), angle.sin(), angle.cos(), torch.tensor(0.0)])
    grid = functional.affine_grid(
        turn.view(1, 2, 3).expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False
    )
    return functional.grid_sample(pictures, grid, align_corners=False)


_CORRUPTIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "rotation": _rotation,
}


def _corrupted(pictures: Tensor, corruption: Corruption) -> Tensor:
    spoiled = _CORRUPTIONS[corruption.name](pictures.float(), corruption.severity)
    return spoiled.round().clamp(0, 255).byte()


_PACKAGES = (images.MNIST, images.FASHION_MNIST, images.SKLEARN)
_DRAWN = ["letters and signs drawn in the fonts DejaVu and STIX of the installed matplotlib (free licences)"]
SUITE = Suite(
    "vision",
    "a small ViT that knows signs, and experts in pictures",
    _build,
    _listed("vision"),
    _shaped("vision"),
    _PACKAGES,
    _PACKAGES,
    data=_DRAWN,
)
SUITE_RESNET = Suite(
    "vision-resnet",
    "a small ResNet with batch norms that knows signs, and experts in pictures",
    _build,
    _listed("vision-resnet"),
    _shaped("vision-resnet"),
    _PACKAGES,
    _PACKAGES,
    data=_DRAWN,
)
