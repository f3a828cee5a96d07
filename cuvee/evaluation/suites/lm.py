"""`lm`: a small language model of bytes, and experts that went on from it, each on a kind of text.

Quick: a base that has read English and four experts, on text that every installation holds; `make demo` shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cuvee.evaluation.byte_text import Portion, bits_of_windows, noisy, passage_loss, windows
from cuvee.evaluation.candidates import holding, skeleton
from cuvee.evaluation.domains import ENGLISH, EXPERTISE, UNSEEN, Corpus, Domain, read_corpus
from cuvee.evaluation.model_folders import load_model, save_model
from cuvee.evaluation.suites.making import Check, digest, make_models, trained, weaker
from cuvee.evaluation.suites.suite import BASE, Built, Corruption, Progress, Split, Suite, Task
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.evaluation.training import Training

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["SUITE", "Form", "build_lm", "form", "read_corpora"]

_NOISE = (0.02, 0.05, 0.1, 0.2, 0.3)
"""Share of bytes that the model sees wrong, by severity."""


@dataclass(frozen=True)
class Form:
    """How large the suite is.

    Attributes:
        shape: of the models.
        general: what the base reads, and every expert may forget.
        expertise: the experts' domains.
        unseen: nobody's.
        base, expert: their training.
        passages: in a batch.
        general_passages: of an expert's batch, which are still general: it learns to tell its domain apart instead of
            drifting there whole.
        shared_passages: of the base's batch, from each expert's domain.
        train_bytes, held_out_bytes: of each domain.
        shares: of its training after which an expert is kept too.
    """

    shape: Shape = Shape()
    general: Domain = ENGLISH
    expertise: Sequence[Domain] = EXPERTISE
    unseen: Sequence[Domain] = (UNSEEN,)
    base: Training = Training(steps=500, learning_rate=4e-3, muon_rate=0.02, seed=1)
    expert: Training = Training(steps=160, learning_rate=1e-3, seed=2)
    passages: int = 16
    general_passages: int = 8
    shared_passages: int = 0
    train_bytes: int = 1_000_000
    held_out_bytes: int = 12_288
    shares: Sequence[float] = (0.25,)

    @property
    def domains(self) -> list[Domain]:
        """All of them, the general one first."""
        return [self.general, *self.expertise, *self.unseen]


QUICK = Form()


def form(*, quick: bool) -> Form:
    """Return the quick or the full form."""
    return QUICK


def read_corpora(form: Form) -> dict[str, Corpus]:
    """Return the text of all domains, the general one first."""
    sizes = {"train_bytes": form.train_bytes, "held_out_bytes": form.held_out_bytes}
    return {domain.name: read_corpus(domain, **sizes) for domain in form.domains}


def _build(suite: Suite, home: Path, seed: int, *, quick: bool, progress: Progress) -> Built:
    chosen = form(quick=quick)
    return build_lm(suite, home, seed, chosen, read_corpora(chosen), progress)


def build_lm(
    suite: Suite, home: Path, seed: int, form: Form, corpora: Mapping[str, Corpus], progress: Progress
) -> Built:
    """Train what is not there yet: the base, then the experts beside each other."""
    read = (text for corpus in corpora.values() for text in (corpus.train, corpus.validation, corpus.test))
    plain = replace(form, general=None, expertise=None, unseen=None)  # type: ignore[arg-type]
    key = digest("lm 1", plain, seed, *corpora, *read)
    folder = home / "suites" / suite.name / key
    experts = [domain.name for domain in form.expertise]
    general = corpora[form.general.name].train

    def make_base(name: str, check: Check) -> None:
        shared = [Portion(corpora[domain].train, form.shared_passages) for domain in experts if form.shared_passages]
        portions = [Portion(general, form.passages - form.shared_passages * len(shared)), *shared]
        make(TinyLlama(form.shape, seed=_seed(form.base, seed)), name, portions, form.base, check)

    def make_expert(name: str, check: Check) -> None:
        own = Portion(corpora[name].train, form.passages - form.general_passages)
        portions = [own, Portion(general, form.general_passages)]
        make(load_model(folder / BASE).train(), name, portions, form.expert, check, form.shares)

    def make(
        model: TinyLlama,
        name: str,
        portions: Sequence[Portion],
        training: Training,
        check: Check,
        shares: Sequence[float] = (),
    ) -> None:
        loss_of = passage_loss(model, portions, _seed(training, seed))
        trained(
            model,
            folder / name,
            loss_of,
            training,
            lambda place: save_model(model, place),
            progress=progress,
            check=check,
            in_words=_in_words,
            shares=shares,
        )

    make_models(folder, [BASE], make_base, progress)
    make_models(folder, experts, make_expert, progress)
    return Built(
        suite,
        seed,
        key,
        folder,
        base=str(folder / BASE),
        experts={name: str(folder / name) for name in experts},
        tasks=_tasks(form),
        scorer=_Scorer(form, corpora),
        weaker=weaker(folder, experts, form.shares),
        corruptions=("noise",),
    )


def _seed(training: Training, seed: int) -> int:
    return training.seed + 1000 * seed


def _in_words(nats: float) -> str:
    return f"{nats / math.log(2):.2f} bits per byte"


def _tasks(form: Form) -> dict[str, Task]:
    def task(domain: Domain, **more: str) -> Task:
        return Task(domain.name, domain.title, metric="bits per byte", higher_is_better=False, **more)  # type: ignore[arg-type]

    tasks = [task(form.general, kind="base")]
    tasks += [task(domain, kind="expert", expert=domain.name) for domain in form.expertise]
    tasks += [task(domain, kind="unseen") for domain in form.unseen]
    return {task.name: task for task in tasks}


class _Scorer:
    """Scores language models on windows of held-out text, in one shuffled order."""

    def __init__(self, form: Form, corpora: Mapping[str, Corpus]) -> None:
        self._bones = skeleton(TinyLlama(form.shape))
        self._corpora = corpora
        self._windows = cache(self._cut)

    def __call__(
        self, tensors: Mapping[str, Tensor], task: Task, split: Split, limit: int | None, corruption: Corruption | None
    ) -> NDArray[np.float32]:
        model = holding(self._bones, tensors)
        passages = self._windows(task.name, split)
        seen = (
            None if corruption is None else noisy(passages, _NOISE[corruption.severity - 1], seed=corruption.severity)
        )
        return bits_of_windows(model, passages[:limit], None if seen is None else seen[:limit])

    def _cut(self, domain: str, split: Split) -> Tensor:
        corpus = self._corpora[domain]
        passages = windows(corpus.test if split == "test" else corpus.validation, self._bones.shape.context)
        return passages[torch.randperm(len(passages), generator=torch.Generator().manual_seed(0))]


SUITE = Suite(
    "lm",
    "a language model of bytes and experts in kinds of text",
    _build,
    data=[f"{domain.title}: {domain.source}" for domain in QUICK.domains],
)
