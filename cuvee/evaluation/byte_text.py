"""Text as bytes for a language model: passages to train on, bits per byte and exact answers to score by."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    "bits_of_windows",
    "exact_answers",
    "noisy",
    "novel",
    "passage_loss",
    "windows",
]

_AT_ONCE = 64
_RUN = 64
"""Bytes in a row that make a text known: less is a turn of phrase."""


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


def novel(passages: Tensor, texts: Iterable[bytes]) -> Tensor:
    """Return (n,) whether a passage, a row of (n, m) bytes, has no 64 bytes in a row that occur in one of the texts."""
    runs = _hashes_of_runs(passages.numpy())
    wanted, places = np.unique(runs, return_inverse=True)
    known = np.zeros(len(wanted) + 1, dtype=bool)
    for text in texts:
        read = _hashes_of_runs(np.frombuffer(text, dtype=np.uint8))
        found = np.searchsorted(wanted, read)
        known[np.where(np.append(wanted, 0)[found] == read, found, -1)] = True
    return torch.from_numpy(~known[places.reshape(runs.shape)].any(1))


def _hashes_of_runs(data: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Return (…, m − 63) numbers that tell the 64 bytes apart that begin at each place of (…, m) bytes."""
    hashes, width, factor = data.astype(np.uint64) + np.uint64(1), 1, 0x9E3779B97F4A7C15
    while width < _RUN:  # a polynomial modulo 2^64, of runs of 1, 2, 4, … bytes
        hashes = hashes[..., :-width] * np.uint64(factor) + hashes[..., width:]
        width, factor = 2 * width, factor * factor % 2**64
    return hashes


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


def answers_by_window(text: bytes, context: int, problem: bytes) -> Tensor:
    """Return (n, context + 1) of the windows of a text: k at the bytes of the k-th answer in each, 0 elsewhere.

    Nothing is asked in the first quarter of a window, where little stands before it, nor across two windows.

    Args:
        text: such as lines of sums.
        context: bytes of a window but the first.
        problem: a pattern whose first group is the answer; lines are what `^` and `$` stand for.
    """
    answers = torch.zeros((len(text) - 1) // context, context + 1, dtype=torch.long)
    for one in re.finditer(problem, text, re.MULTILINE):
        window, at = divmod(one.start(1) - 1, context)
        end = at + len(one[1])
        if window < len(answers) and context // 4 <= at and end <= context:
            answers[window, at + 1 : end + 1] = answers[window].max() + 1
    return answers


def _parts(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(one, _AT_ONCE), torch.split(other, _AT_ONCE), strict=True)
