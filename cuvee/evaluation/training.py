"""Training: a few hundred steps on passages drawn from texts, the same weights for the same seed on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cuvee.evaluation.muon import Muon
from cuvee.evaluation.tiny_llama import TinyLlama

__all__ = ["Portion", "Training", "train"]

_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Portion:
    """What a batch takes from one text.

    Attributes:
        text: all of it.
        passages: drawn for each batch.
    """

    text: bytes
    passages: int


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        steps: their number. The learning rate rises over `warmup` of them and falls to zero in a straight line.
        learning_rate: of AdamW.
        muon_rate: of Muon, which then moves the matrices inside the layers; None: AdamW moves all.
        warmup: steps.
        seed: of the passages drawn.
    """

    steps: int
    learning_rate: float
    muon_rate: float | None = None
    warmup: int = 20
    seed: int = 0

    def pace(self, step: int) -> float:
        """Return the share of the learning rate at a step, in [0, 1]."""
        return min(1.0, (step + 1) / self.warmup) * (1 - step / self.steps)


def train(
    model: TinyLlama, portions: Sequence[Portion], training: Training, *, on_step: Callable[[float], None]
) -> None:
    """Train a model in place.

    Args:
        portions: what each batch is made of.
        on_step: called after each step with its loss in bits a byte; may raise to stop.
    """
    inner, rest = _shared_out(model, training)
    adam = torch.optim.AdamW(rest, lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    muon = Muon(inner)
    for step, batch in enumerate(_batches(portions, model.shape.context, training)):
        loss = model.loss(batch)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
        adam.param_groups[0]["lr"] = training.learning_rate * training.pace(step)
        adam.step()
        if training.muon_rate is not None:
            muon.step(training.muon_rate * training.pace(step))
        on_step(loss.item() / math.log(2))


def _shared_out(model: TinyLlama, training: Training) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that Muon moves and those that AdamW moves."""
    inner: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in model.named_parameters():
        is_inner = training.muon_rate is not None and ".layers." in name and weight.dim() == 2
        (inner if is_inner else rest).append(weight)
    return inner, rest


def _batches(portions: Sequence[Portion], context: int, training: Training) -> Iterator[Tensor]:
    """Yield (passages, context + 1) bytes as int64."""
    generator = torch.Generator().manual_seed(training.seed)
    texts = [(torch.frombuffer(bytearray(one.text), dtype=torch.uint8), one.passages) for one in portions]
    for _ in range(training.steps):
        drawn = [_passages(text, count, context + 1, generator) for text, count in texts]
        yield torch.cat(drawn).long()


def _passages(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(text) - length + 1, (count, 1), generator=generator)
    return text[starts + torch.arange(length)]
