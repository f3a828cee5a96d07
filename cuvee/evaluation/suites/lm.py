"""`lm`: a small language model of bytes, and experts that went on from it, each on a kind of text; `lm-lora`: by adapters.

Quick: a base that has read English and four experts, on text that every installation holds; `make demo` shows it. In full the
base has read all kinds of text, so that its experts stay near it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cuvee.evaluation.byte_text import (
    Portion,
    answers_by_window,
    bits_of_windows,
    exact_answers,
    noisy,
    novel,
    passage_loss,
    windows,
)
from cuvee.evaluation.candidates import Shapes, holding, shapes_of, skeleton
from cuvee.evaluation.devices import marks
from cuvee.evaluation.domains import ENGLISH, EXPERTISE, UNSEEN, Corpus, Domain, read_corpus
from cuvee.evaluation.fetched_domains import BIBLE, MANUALS, SUMS, manual_package
from cuvee.evaluation.lora import adapter_config, adapter_tensors, with_lora
from cuvee.evaluation.model_folders import as_json, load_model, save_adapter, save_model
from cuvee.evaluation.suites.making import Check, digest, make_models, trained, weaker
from cuvee.evaluation.suites.suite import BASE, Built, Corruption, Kind, Progress, Split, Suite, Task
from cuvee.evaluation.texts import KJV
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.evaluation.training import Training

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["SUITE", "SUITE_LORA", "Form", "build_lm", "form", "read_corpora", "tasks_of"]

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
        base: how it is trained; a batch has `general_of_base` passages of the general domain and `shared_of_base` of each
            expert's.
        expert: how one is trained; a batch has `own_of_expert` passages of its domain and `general_of_expert` that are still
            general: it learns to tell its domain apart instead of drifting there whole.
        lora: how an adapter is trained.
        rank: of an adapter; its alpha is twice that.
        train_bytes, held_out_bytes: of each domain.
        shares: of its training after which an expert is kept too.
        threads: of torch for the base.
    """

    shape: Shape = Shape()
    general: Domain = ENGLISH
    expertise: Sequence[Domain] = EXPERTISE
    unseen: Sequence[Domain] = (UNSEEN,)
    base: Training = Training(steps=500, learning_rate=4e-3, muon_rate=0.02, seed=1)
    general_of_base: int = 16
    shared_of_base: int = 0
    expert: Training = Training(steps=160, learning_rate=1e-3, seed=2)
    own_of_expert: int = 8
    general_of_expert: int = 8
    lora: Training = Training(steps=160, learning_rate=5e-3, seed=3)
    rank: int = 8
    train_bytes: int = 1_000_000
    held_out_bytes: int = 12_288
    shares: Sequence[float] = (0.25,)
    threads: int = 1

    @property
    def domains(self) -> list[Domain]:
        """All of them, the general one first."""
        return [self.general, *self.expertise, *self.unseen]


QUICK = Form()
FULL = Form(
    shape=Shape(hidden=256, intermediate=704, layers=7, heads=4, key_value_heads=2, context=128),
    expertise=(*EXPERTISE[:2], MANUALS["fr"], MANUALS["de"], MANUALS["es"], BIBLE, SUMS),
    unseen=(UNSEEN, MANUALS["it"]),
    base=Training(steps=1600, learning_rate=3e-3, muon_rate=0.02, warmup=50, seed=1),
    general_of_base=6,
    shared_of_base=2,
    expert=Training(steps=200, learning_rate=5e-4, seed=2),
    own_of_expert=12,
    general_of_expert=0,
    lora=Training(steps=200, learning_rate=3e-3, seed=3),
    train_bytes=3_000_000,
    held_out_bytes=16_384,
)


def form(*, quick: bool) -> Form:
    """Return the quick or the full form."""
    return QUICK if quick else FULL


def read_corpora(form: Form) -> dict[str, Corpus]:
    """Return the text of all domains, the general one first."""
    return {
        domain.name: read_corpus(domain, train_bytes=form.train_bytes, held_out_bytes=form.held_out_bytes)
        for domain in form.domains
    }


def _build(suite: Suite, home: Path, seed: int, *, quick: bool, progress: Progress, device: str) -> Built:
    chosen = form(quick=quick)
    return build_lm(suite, home, seed, chosen, read_corpora(chosen), progress, device)


def build_lm(
    suite: Suite,
    home: Path,
    seed: int,
    form: Form,
    corpora: Mapping[str, Corpus],
    progress: Progress,
    device: str = "cpu",
) -> Built:
    """Train what is not there yet: the base, then the experts beside each other.

    The suites `lm` and `lm-lora` share their base.
    """
    read = (text for corpus in corpora.values() for text in (corpus.train, corpus.validation, corpus.test))
    plain = replace(form, general=None, expertise=None, unseen=None)  # type: ignore[arg-type]
    key = digest("lm 2", plain, seed, *corpora, *read, *marks(device))
    folder = home / "suites" / SUITE.name / key
    domains = [domain.name for domain in form.expertise]
    general = corpora[form.general.name].train
    by_lora = suite.name == SUITE_LORA.name
    ending = "-lora" if by_lora else ""

    def make_base(name: str, check: Check) -> None:
        model = TinyLlama(form.shape, seed=_seed(form.base, seed))
        shared = [Portion(corpora[domain].train, form.shared_of_base) for domain in domains if form.shared_of_base]
        portions = [Portion(general, form.general_of_base), *shared]
        make(model, name, portions, form.base, check, lambda place: save_model(model, place))

    def make_expert(name: str, check: Check) -> None:
        model = load_model(folder / BASE).train()
        training = form.lora if by_lora else form.expert
        own = Portion(corpora[name.removesuffix(ending)].train, form.own_of_expert)
        portions = [own, *([Portion(general, form.general_of_expert)] if form.general_of_expert else [])]
        if by_lora:
            with_lora(model, form.rank, 2 * form.rank, _seed(training, seed))
            config = as_json(adapter_config(str(folder / BASE), form.rank, 2 * form.rank))

        def save(place: Path) -> None:
            if by_lora:
                save_adapter(place, adapter_tensors(model), config)
            else:
                save_model(model, place)

        make(model, name, portions, training, check, save, form.shares)

    def make(
        model: TinyLlama,
        name: str,
        portions: Sequence[Portion],
        training: Training,
        check: Check,
        save: Callable[[Path], None],
        shares: Sequence[float] = (),
    ) -> None:
        loss_of = passage_loss(model.to(device), portions, _seed(training, seed), device)
        told = {"progress": progress, "check": check, "in_words": _in_words}
        trained(model, folder / name, loss_of, training, save, shares=shares, **told)  # type: ignore[arg-type]

    shapes = shapes_of(TinyLlama(form.shape))
    make_models(folder, [BASE], make_base, progress, shapes=shapes, threads=form.threads)
    experts = [name + ending for name in domains]
    make_models(folder, experts, make_expert, progress, shares=form.shares, shapes=None if by_lora else shapes)
    before = f"{folder / BASE}+" if by_lora else ""
    own = {name: str(folder / (name + ending)) for name in domains}
    earlier = weaker(folder, experts, form.shares)
    return Built(
        suite,
        seed,
        key + ending,
        folder,
        base=str(folder / BASE),
        experts={name: before + place for name, place in own.items()},
        tasks={task.name: task for task in tasks_of(form)},
        scorer=_Scorer(form, corpora, device),
        weaker={share: {name: before + places[name + ending] for name in domains} for share, places in earlier.items()},
        adapters={
            1.0: own,
            **{share: {name: places[name + ending] for name in domains} for share, places in earlier.items()},
        }
        if by_lora
        else {},
        corruptions=("noise",),
        device=device,
    )


def _seed(training: Training, seed: int) -> int:
    return training.seed + 1000 * seed


def _in_words(nats: float) -> str:
    return f"{nats / math.log(2):.2f} bits per byte"


def tasks_of(form: Form) -> list[Task]:
    """Return what models of a form are scored on."""
    kinds: list[tuple[Kind, Sequence[Domain]]] = [
        ("base", [form.general]),
        ("expert", form.expertise),
        ("unseen", form.unseen),
    ]
    tasks = [
        Task(domain.name, domain.title, kind, "bits per byte", False, domain.name if kind == "expert" else None)
        for kind, domains in kinds
        for domain in domains
    ]
    own = {domain.name for domain in form.expertise}
    tasks += [
        Task(name, title, "expert", "exact answers", True, domain)
        for name, (title, domain, _) in _EXACT.items()
        if domain in own
    ]
    return tasks


def _listed(*, quick: bool) -> list[Task]:
    return tasks_of(form(quick=quick))


def _shaped(*, quick: bool) -> Shapes:
    return shapes_of(TinyLlama(form(quick=quick).shape))


_EXACT = {
    "addition": ("Additions", SUMS.name, rb"^\d+\+\d+=(-?\d+\n)"),
    "subtraction": ("Subtractions", SUMS.name, rb"^\d+-\d+=(-?\d+\n)"),
    "words": ("YAML words", "yaml", rb"\b\w\w(\w{2,}\W)"),
}
"""Tasks of exact answers: title, domain, and what is asked: a sum's result, a word but two letters."""


class _Scorer:
    """Scores language models on windows of held-out text that is not known from training text, in one shuffled order."""

    def __init__(self, form: Form, corpora: Mapping[str, Corpus], device: str) -> None:
        self._bones = skeleton(TinyLlama(form.shape))
        self._corpora = corpora
        self._read = [corpora[domain.name].train for domain in (form.general, *form.expertise)]
        self._device = device
        self._passages = cache(self._cut)

    def __call__(
        self, tensors: Mapping[str, Tensor], task: Task, split: Split, limit: int | None, corruption: Corruption | None
    ) -> NDArray[np.float32]:
        model = holding(self._bones, tensors, self._device)
        passages, answers = self._passages(task.name, split)
        seen = passages
        if corruption is not None:
            seen = noisy(passages, _NOISE[corruption.severity - 1], seed=corruption.severity)
        passages, seen = passages[:limit].to(self._device), seen[:limit].to(self._device)
        if answers is not None:
            return exact_answers(model, passages, answers[:limit].to(self._device), seen)
        return bits_of_windows(model, passages, seen)

    def _cut(self, task: str, split: Split) -> tuple[Tensor, Tensor | None]:
        """Return the passages of a task, and where a model has to answer; both shuffled."""
        _, domain, problem = _EXACT.get(task, ("", task, None))
        text = self._held_out(domain, split)
        chosen = self._novel[domain, split]
        answers = None
        if problem is not None:
            answers = answers_by_window(text, self._bones.shape.context, problem)
            chosen = chosen & answers.any(1)
        order = torch.randperm(int(chosen.sum()), generator=torch.Generator().manual_seed(0))
        passages = windows(text, self._bones.shape.context)[chosen][order]
        return passages, None if answers is None else answers[chosen][order]

    @cached_property
    def _novel(self) -> dict[tuple[str, Split], Tensor]:
        """Which windows of a domain's held-out text no model has read, not even in part."""
        sides: list[tuple[str, Split]] = [
            (domain, split) for domain in self._corpora for split in ("validation", "test")
        ]
        cut = [windows(self._held_out(*side), self._bones.shape.context) for side in sides]
        flags = torch.split(novel(torch.cat(cut), self._read), [len(one) for one in cut])
        return dict(zip(sides, flags, strict=True))

    def _held_out(self, domain: str, split: Split) -> bytes:
        corpus = self._corpora[domain]
        return corpus.test if split == "test" else corpus.validation


def _told(form: Form) -> list[str]:
    return [f"{domain.title}: {domain.source}" for domain in form.domains]


_PACKAGES = [*map(manual_package, MANUALS), KJV]
SUITE = Suite(
    "lm",
    "a language model of bytes, and experts in kinds of text",
    _build,
    _listed,
    _shaped,
    _PACKAGES,
    data=_told(FULL),
    quick_data=_told(QUICK),
)
SUITE_LORA = Suite(
    "lm-lora",
    "a language model of bytes, and LoRA adapters as experts in kinds of text",
    _build,
    _listed,
    _shaped,
    _PACKAGES,
    data=_told(FULL),
    quick_data=_told(QUICK),
)
