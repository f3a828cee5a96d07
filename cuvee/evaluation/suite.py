"""The demo's models: a base that has read English, and experts that went on from it, each on a domain of its own.

They are trained once and kept under `CUVEE_HOME`. The name of their folder is a digest of how they are trained and of
the text itself, so that models are never scored on text of another installation that they may have seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cuvee.evaluation.domains import ENGLISH, EXPERTISE, Corpus, read_corpus
from cuvee.evaluation.model_folders import is_model, load_model, save_model
from cuvee.evaluation.parallel import each_on_a_core
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.evaluation.training import Portion, Training, train

__all__ = ["BASE", "Progress", "Suite", "build", "cuvee_home", "read_corpora"]

BASE = "base"
SHAPE = Shape()
PASSAGES = 16
# Half of what an expert reads is still English: it learns to tell its domain apart instead of drifting there whole.
ENGLISH_PASSAGES = 8
BASE_TRAINING = Training(steps=500, learning_rate=4e-3, muon_rate=0.02, seed=1)
EXPERT_TRAINING = Training(steps=160, learning_rate=1e-3, seed=2)


class Progress(Protocol):
    """Is told how far the training of a model is."""

    def __call__(self, model: str, done: int, steps: int, bits: float) -> None:
        """`done` of `steps` are done, the last with a loss of `bits` a byte; `done == steps == 0`: it was there already."""


@dataclass(frozen=True)
class Suite:
    """Models and their text.

    Attributes:
        folder: holds a folder for each model.
        corpora: text by domain, English first.
    """

    folder: Path
    corpora: Mapping[str, Corpus]

    @property
    def experts(self) -> Sequence[str]:
        """The names of the experts, which are those of their domains."""
        return [name for name in self.corpora if name != ENGLISH.name]

    @property
    def models(self) -> Sequence[str]:
        """The names of all trained models, the base first."""
        return [BASE, *self.experts]


def cuvee_home() -> Path:
    """Return where Cuvée keeps what it can make again: `CUVEE_HOME`, or ~/.cache/cuvee."""
    return Path(os.environ.get("CUVEE_HOME") or Path.home() / ".cache" / "cuvee")


def read_corpora() -> dict[str, Corpus]:
    """Return the text of all domains, English first."""
    return {domain.name: read_corpus(domain) for domain in (ENGLISH, *EXPERTISE)}


def build(
    home: Path,
    corpora: Mapping[str, Corpus],
    progress: Progress,
    *,
    base_training: Training = BASE_TRAINING,
    expert_training: Training = EXPERT_TRAINING,
    shape: Shape = SHAPE,
) -> Suite:
    """Train what is not there yet: the base, then the experts beside each other.

    A training that is interrupted leaves the models that were finished.
    """
    key = _digest(corpora, base_training, expert_training, shape)
    suite = Suite(home / "demo" / key, corpora)
    english = corpora[ENGLISH.name]

    def make_base(name: str, check: Callable[[], None]) -> None:
        base = TinyLlama(shape, seed=base_training.seed)
        portions = [Portion(english.train, PASSAGES)]
        _trained(base, suite.folder / name, portions, base_training, progress, check)

    def make_expert(name: str, check: Callable[[], None]) -> None:
        expert = load_model(suite.folder / BASE).train()
        own = Portion(corpora[name].train, PASSAGES - ENGLISH_PASSAGES)
        portions = [own, Portion(english.train, ENGLISH_PASSAGES)]
        _trained(expert, suite.folder / name, portions, expert_training, progress, check)

    for make, names in ((make_base, [BASE]), (make_expert, suite.experts)):
        for name in names:
            if is_model(suite.folder / name):
                progress(name, 0, 0, 0.0)
        each_on_a_core(make, [name for name in names if not is_model(suite.folder / name)])
    return suite


def _trained(
    model: TinyLlama,
    folder: Path,
    portions: Sequence[Portion],
    training: Training,
    progress: Progress,
    check: Callable[[], None],
) -> None:
    """Train a model and save it."""
    done = 0

    def on_step(bits: float) -> None:
        nonlocal done
        done += 1
        check()
        progress(folder.name, done, training.steps, bits)

    train(model, portions, training, on_step=on_step)
    save_model(model, folder)


def _digest(corpora: Mapping[str, Corpus], *settings: object) -> str:
    whole = hashlib.sha256(repr((settings, PASSAGES, ENGLISH_PASSAGES)).encode())
    for name, corpus in corpora.items():
        for part in (name.encode(), corpus.train, corpus.held_out):
            whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:12]
