"""Training: steps of AdamW, or of Muon for matrices; the same weights for the same seed on one machine, CPU or GPU.

What a step learns from depends on its number alone, so a training that was interrupted goes on from its last snapshot
and ends with the bytes of one that was not.
"""

from __future__ import annotations

import io
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor, nn

from cuvee.checkpoints import fs
from cuvee.evaluation.devices import repeatable
from cuvee.evaluation.muon import Muon

__all__ = ["Training", "generator_of_step", "train"]

_GRADIENT_NORM = 1.0
_SNAPSHOT_EVERY_S = 30.0
_DIGEST = 32
"""Bytes of the digest that a snapshot begins with."""
_IN_A_LAYER = re.compile(r"\.layers?\.\d+\.")


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        steps: their number. The learning rate rises over `warmup` of them and falls to zero in a straight line.
        learning_rate: of AdamW.
        muon_rate: of Muon, which then moves the matrices inside the layers; None: AdamW moves all.
        warmup: steps.
        weight_decay: of AdamW, on matrices.
        seed: of what each step learns from.
    """

    steps: int
    learning_rate: float
    muon_rate: float | None = None
    warmup: int = 20
    weight_decay: float = 0.0
    seed: int = 0

    def pace(self, step: int) -> float:
        """Return the share of the learning rate at a step, in [0, 1]."""
        return min(1.0, (step + 1) / self.warmup) * (1 - step / self.steps)


def generator_of_step(seed: int, step: int) -> torch.Generator:
    """Return the random draws of one step."""
    # The generator takes no more than 32 bits of a seed.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {step}".encode()))


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    training: Training,
    *,
    on_step: Callable[[int, float], None],
    snapshot: Path | None = None,
) -> None:
    """Train a model in place: those of its parameters that ask for gradients.

    Args:
        loss_of: returns the loss of the step of this number.
        on_step: called after each step with the number of steps done and the loss; may raise to stop.
        snapshot: a file that keeps the state now and then, and is read first if it is there. The caller removes it
            once the trained model is saved. One that is damaged is as none.
    """
    state = _Optimizers(model, training)
    first = state.load(snapshot) if snapshot is not None and fs.is_file(snapshot) else 0
    saved_at = time.monotonic()
    with repeatable(str(next(model.parameters()).device)):
        for step in range(first, training.steps):
            loss = loss_of(step)
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
            state.step(training.pace(step))
            if snapshot is not None and time.monotonic() - saved_at > _SNAPSHOT_EVERY_S:
                state.save(snapshot, step + 1)
                saved_at = time.monotonic()
            on_step(step + 1, loss.item())


class _Optimizers:
    """AdamW for some parameters, Muon for the others, and what they remember."""

    def __init__(self, model: nn.Module, training: Training) -> None:
        inner: list[Tensor] = []
        matrices: list[Tensor] = []
        vectors: list[Tensor] = []
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                is_inner = training.muon_rate is not None and _IN_A_LAYER.search(name) and weight.dim() == 2
                (inner if is_inner else matrices if weight.dim() > 1 else vectors).append(weight)
        groups = [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._model = model
        self._training = training
        self._adam = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95))
        self._muon = Muon(inner)

    def step(self, pace: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self._training.learning_rate * pace
        self._adam.step()
        if self._training.muon_rate is not None:
            self._muon.step(self._training.muon_rate * pace)

    def save(self, path: Path, done: int) -> None:
        """Write a snapshot beside its place and move it there, so that a torn one is never read."""
        data = io.BytesIO()
        parts = {"model": self._model.state_dict(), "adam": self._adam.state_dict(), "muon": self._muon.averages}
        torch.save({"done": done, **parts}, data)
        fs.mkdir(path.parent)
        fs.replace_file(path, blake3(data.getvalue()).digest() + data.getvalue())

    def load(self, path: Path) -> int:
        """Take a snapshot up; returns the number of steps that are done: none where it is damaged, and not taken up."""
        data = fs.read_file(path)
        if blake3(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return 0
        kept = torch.load(io.BytesIO(data[_DIGEST:]), weights_only=True)
        self._model.load_state_dict(kept["model"])
        self._adam.load_state_dict(kept["adam"])
        self._muon.averages = kept["muon"]
        return int(kept["done"])
