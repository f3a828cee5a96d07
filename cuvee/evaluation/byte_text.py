"""Text as bytes for a language model: passages to train on, bits per byte and exact answers to score by."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from cuvee.evaluation.training import generator_of_step

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from cuvee.evaluation.tiny_llama import TinyLlama

__all__ = ["Portion", "answers_in", "bits_of_windows", "exact_answers", "noisy", "passage_loss", "windows"]

_AT_ONCE = 64


@dataclass(frozen=True)
class Portion:
    """What a batch takes from one text.

    Attributes:
        text: all of it.
        passages: drawn for each batch.
    """

    text: bytes
    passages: int


def passage_loss(
    model: TinyLlama, portions: Sequence[Portion], seed: int, device: str = "cpu"
) -> Callable[[int], Tensor]:
    """Return the function of a step that draws its passages and returns their loss in nats a byte."""
    length = model.shape.context + 1
    texts = [(torch.frombuffer(bytearray(one.text), dtype=torch.uint8), one.passages) for one in portions]

    def loss_of(step: int) -> Tensor:
        generator = generator_of_step(seed, step)
        drawn = []
        for text, count in texts:
            starts = torch.randint(0, len(text) - length + 1, (count, 1), generator=generator)
            drawn.append(text[starts + torch.arange(length)])
        return model.loss(torch.cat(drawn).long().to(device))

    return loss_of


def windows(text: bytes, context: int) -> Tensor:
    """Return (n, context + 1) bytes as int64: the text cut up, each part beginning with the last byte of the one before."""
    count = (len(text) - 1) // context
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)[: count * context + 1].long()
    return tokens.unfold(0, context + 1, context)


def noisy(passages: Tensor, share: float, seed: int) -> Tensor:
    """Return passages of which a share of the bytes are replaced by others of the text's own."""
    generator = torch.Generator().manual_seed(seed)
    strikes = torch.rand(passages.shape, generator=generator) < share
    others = passages.flatten()[torch.randint(0, passages.numel(), passages.shape, generator=generator)]
    return torch.where(strikes, others, passages)


def bits_of_windows(model: TinyLlama, passages: Tensor, seen: Tensor | None = None) -> NDArray[np.float32]:
    """Return the mean of −log2 p(byte | the bytes before it in its window) of each window.

    Args:
        model: which one.
        passages: (n, length + 1) bytes.
        seen: what the model sees in their place; None: them.
    """
    parts = []
    with torch.inference_mode():
        for part, shown in _parts(passages, passages if seen is None else seen):
            logits = model(shown[:, :-1])
            nats = functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
            parts.append(nats.double().mean(1) / math.log(2))
    return torch.cat(parts).float().cpu().numpy()


def exact_answers(
    model: TinyLlama, passages: Tensor, is_answer: Tensor, seen: Tensor | None = None
) -> NDArray[np.float32]:
    """Return 1 for each passage whose answer the model would write byte for byte, most likely byte first, else 0.

    Args:
        model: which one.
        passages: (n, length + 1) bytes.
        is_answer: (n, length + 1); which of them the model has to write. While it is right, what it has written is what
            the passage says, so one look at the whole passage tells.
        seen: what the model sees in place of the passages, except for the answers; None: them.
    """
    shown = passages if seen is None else torch.where(is_answer, passages, seen)
    parts = []
    with torch.inference_mode():
        for part, one, answer in zip(
            *(torch.split(all_, _AT_ONCE) for all_ in (passages, shown, is_answer)), strict=True
        ):
            right = model(one[:, :-1]).argmax(-1) == part[:, 1:]
            parts.append((right | ~answer[:, 1:]).all(1))
    return torch.cat(parts).float().cpu().numpy()


def answers_in(text: bytes, context: int, problem: bytes) -> tuple[Tensor, Tensor]:
    """Return passages that end with an answer, and which of their bytes are it.

    Args:
        text: such as lines of sums.
        context: bytes of a passage but the first.
        problem: a pattern whose first group is the answer; lines are what `^` and `$` stand for.
    """
    found = [one for one in re.finditer(problem, text, re.MULTILINE) if one.end() > context]
    passages = [list(text[one.end() - context - 1 : one.end()]) for one in found]
    is_answer = torch.zeros(len(found), context + 1, dtype=torch.bool)
    for place, one in enumerate(found):
        is_answer[place, -len(one[1]) :] = True
    return torch.tensor(passages), is_answer


def _parts(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(one, _AT_ONCE), torch.split(other, _AT_ONCE), strict=True)
