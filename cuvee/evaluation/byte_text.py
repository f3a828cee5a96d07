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

__all__ = [
    "Portion",
    "answers_by_window",
    "answers_in",
    "bits_of_windows",
    "exact_answers",
    "noisy",
    "passage_loss",
    "windows",
]

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
    model: TinyLlama, passages: Tensor, answers: Tensor, seen: Tensor | None = None
) -> NDArray[np.float32]:
    """Return of each passage the share of its answers that the model would write byte for byte, most likely byte first.

    Args:
        model: which one.
        passages: (n, length + 1) bytes.
        answers: (n, length + 1); k at the bytes of a passage's answer k = 1, 2, …, 0 elsewhere. While it is right, what the
            model has written is what the passage says, so one look at the whole passage tells.
        seen: what the model sees in place of the passages, except for the answers; None: them.
    """
    shown = passages if seen is None else torch.where(answers > 0, passages, seen)
    parts = []
    with torch.inference_mode():
        for part, one, asked in zip(*(torch.split(all_, _AT_ONCE) for all_ in (passages, shown, answers)), strict=True):
            wrong = model(one[:, :-1]).argmax(-1) != part[:, 1:]
            missed = torch.zeros(len(part), device=part.device)
            for k in range(1, int(asked.max()) + 1):
                missed += (wrong & (asked[:, 1:] == k)).any(1)
            parts.append(1 - missed / asked.amax(1))
    return torch.cat(parts).float().cpu().numpy()


def answers_in(text: bytes, context: int, problem: bytes) -> tuple[Tensor, Tensor]:
    """Return passages that end with an answer, and 1 at those of their bytes that are it, 0 elsewhere.

    Args:
        text: such as lines of sums.
        context: bytes of a passage but the first.
        problem: a pattern whose first group is the answer; lines are what `^` and `$` stand for.
    """
    found = [one for one in re.finditer(problem, text, re.MULTILINE) if one.end() > context]
    passages = [list(text[one.end() - context - 1 : one.end()]) for one in found]
    answers = torch.zeros(len(found), context + 1, dtype=torch.long)
    for place, one in enumerate(found):
        answers[place, -len(one[1]) :] = 1
    return torch.tensor(passages), answers


def answers_by_window(text: bytes, context: int, problem: bytes) -> tuple[Tensor, Tensor]:
    """Return the windows of a text in which something is asked, and k at the bytes of the k-th answer in each, 0 elsewhere.

    Nothing is asked in the first quarter of a window, where little stands before it, nor across two windows.
    """
    passages = windows(text, context)
    answers = torch.zeros_like(passages)
    for one in re.finditer(problem, text, re.MULTILINE):
        window, at = divmod(one.start(1) - 1, context)
        end = at + len(one[1])
        if window < len(passages) and context // 4 <= at and end <= context:
            answers[window, at + 1 : end + 1] = answers[window].max() + 1
    asked = answers.any(1)
    return passages[asked], answers[asked]


def _parts(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(one, _AT_ONCE), torch.split(other, _AT_ONCE), strict=True)
