"""Claims of papers, each as differences that must be above zero in what our suites find; `write_results.py` holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cuvee.evaluation.measures import change, normalised
from cuvee.evaluation.results import Outcome, SeedResult, recovered_share

AVERAGE, SUM, TIES, TIES_MODEL = "linear", "task_arithmetic", "ties:density=0.2", "ties:density=0.2,trim_scope=model"
DARE = {0.5: "dare_linear:density=0.5", 0.9: "dare_linear:density=0.1", 0.99: "dare_linear:density=0.01"}
TSV, ISO, WUDI, STOCK = "tsv_m", "iso_c", "wudi_merging", "model_stock"
VARIANTS = (AVERAGE, SUM, "ties", TIES, TIES_MODEL, *DARE.values(), TSV, ISO, WUDI, STOCK)
VARIANTS_BESIDE = (AVERAGE, SUM, TIES, TSV, ISO)
VARIANTS_ELSEWHERE = (AVERAGE, SUM, "ties", TIES, DARE[0.5], DARE[0.9], TSV, ISO, WUDI)

LORA, WEAK, WILD = "LoRA experts", "a weak base", "in the wild"
BESIDE = (LORA, WEAK, WILD)


@dataclass(frozen=True)
class Seed(SeedResult):
    """What one seed of a suite gives, and of `lm` the suites beside it.

    Attributes:
        beside: LORA: the same base and domains, its experts by adapters; WEAK: a base with a quarter of the training, and its
            experts; WILD: the experts of `lm` with unlike training, in turn in full, by an adapter, and a quarter of either.
    """

    beside: Mapping[str, SeedResult] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What papers say, as differences that must be above zero.

    Attributes:
        title: in a few words.
        source: the paper.
        says: the claim.
        shows: (what the number is, its value for a seed): the claim holds where all are above zero.
        note: what is known of why it comes out so.
    """

    title: str
    source: str
    says: str
    shows: Sequence[tuple[str, Callable[[Seed], float]]]
    note: str = ""


Measure = Callable[[Any], float]


class NotRun(Exception):
    """A claim needs a suite beside this one, or a variant, that was left out. Not an error."""


def _outcome(seed: SeedResult, label: str) -> Outcome:
    if label not in seed.outcomes:
        raise NotRun(label)
    outcome = seed.outcomes[label]
    assert outcome.tuned is not None, outcome.failure
    return outcome


def score(label: str, *, tuned: bool = True) -> Measure:
    """Return the normalised test score of a variant, as a function of the seed."""

    def of(seed: SeedResult) -> float:
        outcome = _outcome(seed, label)
        return normalised(outcome.tuned.scores if tuned and outcome.tuned else outcome.default, seed.own)

    return of


def of_base(seed: SeedResult) -> float:
    return normalised(seed.base, seed.own)


def best_expert(seed: SeedResult) -> float:
    return max(normalised(scores, seed.own) for scores in seed.experts.values())


def on_others(seed: SeedResult) -> float:
    """Return what an expert scores on the other experts' tasks, in the mean."""
    others = {name: [task for task in seed.own if seed.tasks[task].expert != name] for name in seed.experts}
    return float(
        np.mean(
            [normalised(seed.experts[name], {task: seed.own[task] for task in tasks}) for name, tasks in others.items()]
        )
    )


def at_size(label: str, size: int | None = None) -> Measure:
    """Return the score, on the tasks of the fewest that are merged, of the merge of the first so many experts; None: of all."""

    def of(seed: SeedResult) -> float:
        found = _outcome(seed, label).by_size
        return _run(found, max(found) if size is None else size)

    return of


def at_share(label: str, share: float) -> Measure:
    """Return the score of the merge of experts after a share of their training."""
    return lambda seed: _run(_outcome(seed, label).by_share, share)


def _run(found: Mapping[Any, float], key: float) -> float:
    if key not in found:
        raise NotRun(str(key))
    return found[key]


def on(label: str, kind: str) -> Measure:
    """Return how much better than the base a tuned merge is on the tasks of a kind, in the unit of the score."""

    def of(seed: SeedResult) -> float:
        outcome = _outcome(seed, label)
        assert outcome.tuned is not None
        return change(outcome.tuned.scores, {task: seed.base[task] for task in seed.names(kind)})

    return of


def minus(one: Measure, other: Measure) -> Measure:
    return lambda seed: one(seed) - other(seed)


def among(suite: str, measure: Measure) -> Measure:
    """Return a measure of a suite beside `lm`, which raises `NotRun` where that was left out."""

    def of(seed: Seed) -> float:
        if suite not in seed.beside:
            raise NotRun(suite)
        return float(measure(seed.beside[suite]))

    return of


def recovered(label: str) -> Measure:
    """Return the share of the experts' gains over the base that a tuned merge has."""

    def of(seed: SeedResult) -> float:
        outcome = _outcome(seed, label)
        assert outcome.tuned is not None
        return recovered_share(outcome.tuned.scores, seed.own, seed.base)

    return of


def cosine(seed: SeedResult) -> float:
    """Return the mean cosine of two experts' task vectors."""
    assert seed.comparison is not None
    cosines = seed.comparison.total().cosines
    return float(cosines[~np.eye(len(cosines), dtype=bool)].mean())


def constant(value: float) -> Measure:
    return lambda seed: value


CLAIMS = (
    Claim(
        "Experts over merges over the base",
        "Editing Models with Task Arithmetic, arXiv 2212.04089; MergeBench, arXiv 2505.10833",
        "On the experts' tasks a merge is better than the base and worse than the experts themselves.",
        [("task arithmetic − base", minus(score(SUM), of_base)), ("1 − task arithmetic", minus(constant(1), score(SUM)))],
        note="In full a merge of `lm` keeps a tenth of what experts gain, and methods lie within 0.03 of one another: an "
        "expert costs the others' tasks more than a third of what it gains on its own (their row in the tables below is under "
        "the base's; in the quick suite it is above), so that the best coefficient is a small one.",
    ),
    Claim(
        "A merge does more tasks than any expert",
        "Editing Models with Task Arithmetic, arXiv 2212.04089",
        "Over all tasks, one merge is better than the best single expert.",
        [("task arithmetic − best expert", minus(score(SUM), best_expert))],
        note="The quick suite asks YAML twice, of bits and of words, so its expert has two of five tasks to itself.",
    ),
    Claim(
        "More experts are harder to merge",
        "TIES-Merging, arXiv 2306.01708, figure 5",
        "On the tasks of the first two experts, the normalised score falls as others are added.",
        [("task arithmetic, two experts − all", minus(at_size(SUM, 2), at_size(SUM))),
         ("TIES, two experts − all", minus(at_size(TIES, 2), at_size(TIES)))],
    ),
    Claim(
        "TIES over averaging",
        "TIES-Merging, arXiv 2306.01708, table 1",
        "TIES at density 0.2 with a tuned coefficient is better than the mean of the weights.",
        [("TIES − averaging", minus(score(TIES), score(AVERAGE)))],
    ),
    Claim(
        "…the more so the more experts",
        "TIES-Merging, arXiv 2306.01708, figure 5",
        "What TIES gains over averaging on the same tasks grows with the number of experts.",
        [("gain at all − gain at two",
          minus(minus(at_size(TIES), at_size(AVERAGE)), minus(at_size(TIES, 2), at_size(AVERAGE, 2))))],
    ),
    Claim(
        "TIES over task arithmetic",
        "TIES-Merging, arXiv 2306.01708, table 1",
        "With both tuned on validation data, TIES is better.",
        [("TIES − task arithmetic", minus(score(TIES), score(SUM))),
         ("TIES without its trim − task arithmetic", minus(score("ties"), score(SUM)))],
        "Small models have little to spare: in the quick `lm` four fifths of the elements are missed, as with DARE at 0.9, and "
        "the vote on signs alone does better than both.",
    ),
    Claim(
        "The coefficient matters",
        "Editing Models with Task Arithmetic, arXiv 2212.04089, section 4",
        "A coefficient chosen on held-out data is much better than adding task vectors as they are.",
        [("task arithmetic, tuned − 1.0", minus(score(SUM), score(SUM, tuned=False)))],
    ),
    Claim(
        "DARE may drop half of the elements",
        "DARE, arXiv 2311.03099",
        "With half of the task vectors dropped, a merge loses next to nothing (here: less than 0.02).",
        [("DARE 0.5 − task arithmetic + 0.02", minus(score(DARE[0.5]), minus(score(SUM), constant(0.02))))],
    ),
    Claim(
        "DARE may drop nine tenths",
        "DARE, arXiv 2311.03099",
        "The same at a drop rate of 0.9.",
        [("DARE 0.9 − task arithmetic + 0.02", minus(score(DARE[0.9]), minus(score(SUM), constant(0.02))))],
        "The paper too finds that smaller models tolerate less.",
    ),
    Claim(
        "DARE may drop 99 of 100",
        "DARE, arXiv 2311.03099 (models of 7 B and more)",
        "The same at a drop rate of 0.99, which the paper finds for large models only.",
        [("DARE 0.99 − task arithmetic + 0.02", minus(score(DARE[0.99]), minus(score(SUM), constant(0.02))))],
        note="As with nine tenths, and the paper expects it of small models.",
    ),
    Claim(
        "Trimming over the whole model",
        "TIES-Merging, official code (arXiv 2306.01708), against mergekit's trim by tensor",
        "A threshold over the whole task vector is better than one for each tensor.",
        [("whole model − by tensor", minus(score(TIES_MODEL), score(TIES)))],
    ),
    Claim(
        "TSV-M over TIES",
        "Task Singular Vectors, arXiv 2412.00081, table 1",
        "On full fine-tunes, TSV-M is better than TIES.",
        [("TSV-M − TIES", minus(score(TSV), score(TIES)))],
    ),
    Claim(
        "Iso-C over TIES",
        "No Task Left Behind, arXiv 2502.04959, table 1",
        "On full fine-tunes, Iso-C is better than TIES.",
        [("Iso-C − TIES", minus(score(ISO), score(TIES)))],
    ),
    Claim(
        "WUDI over TIES",
        "Whoever Started the Interference Should End It, arXiv 2503.08099, table 1",
        "WUDI is better than TIES.",
        [("WUDI − TIES", minus(score(WUDI), score(TIES)))],
    ),
    Claim(
        "TSV-M needs no tuning",
        "Task Singular Vectors, arXiv 2412.00081, section 4",
        "At its default coefficient, TSV-M loses little against its best (here: less than 0.05), task arithmetic much more.",
        [("TSV-M default − tuned + 0.05", minus(score(TSV, tuned=False), minus(score(TSV), constant(0.05)))),
         ("loss of task arithmetic − loss of TSV-M",
          minus(minus(score(SUM), score(SUM, tuned=False)), minus(score(TSV), score(TSV, tuned=False))))],
    ),
    Claim(
        "Experts that were trained less merge better",
        "often reported; no paper was checked for it",
        "Against the same experts, merges of experts with a quarter of the training keep more.",
        [("a quarter − all, task arithmetic", minus(at_share(SUM, 0.25), at_share(SUM, 1.0))),
         ("a quarter − all, TSV-M", minus(at_share(TSV, 0.25), at_share(TSV, 1.0)))],
    ),
    Claim(
        "Simple methods suffice when experts are similar",
        "Model Soups, arXiv 2203.05482; MergeBench, arXiv 2505.10833",
        "What the better of TSV-M and TIES gains over task arithmetic shrinks when experts have had a quarter of the training.",
        [("gain at all − gain at a quarter",
          lambda s: (max(at_share(TSV, 1.0)(s), at_share(TIES, 1.0)(s)) - at_share(SUM, 1.0)(s))
          - (max(at_share(TSV, 0.25)(s), at_share(TIES, 0.25)(s)) - at_share(SUM, 0.25)(s)))],
    ),
    Claim(
        "Task vectors are nearly orthogonal",
        "Editing Models with Task Arithmetic, arXiv 2212.04089, figure 5",
        "Cosines between task vectors of different tasks are close to zero (here: below 0.1).",
        [("0.1 − mean cosine", minus(constant(0.1), cosine))],
        "The quick base has read English alone, and all its experts first learn what kinds of code have in common.",
    ),
    Claim(
        "Merging costs the base's own task little",
        "Averaging as regularisation: WiSE-FT, arXiv 2109.01903",
        "Averaging does not make the base's own task worse.",
        [("averaging − base", on(AVERAGE, "base"))],
    ),
    Claim(
        "Merges are better on unseen tasks",
        "TIES-Merging, arXiv 2306.01708, table 3 (out of domain)",
        "On data that nobody was trained on, a merge is better than the base.",
        [("TIES − base", on(TIES, "unseen")),
         ("task arithmetic − base", on(SUM, "unseen"))],
    ),
    Claim(
        "LoRA experts are harder to merge",
        "KnOTS, arXiv 2410.19735, section 1",
        "Of the gains of full fine-tunes over the base a merge keeps a larger share than of those of LoRA experts.",
        [(f"{name}, full − LoRA", minus(recovered(one), among(LORA, recovered(one))))
         for name, one in (("task arithmetic", SUM), ("TIES", TIES), ("TSV-M", TSV))],
        "In the quick suite not for task arithmetic and TIES, but for what works on singular vectors: TSV-M and Iso-C lead on "
        "full fine-tunes and fall behind task arithmetic on adapters, whose task vectors have a rank of 8. In full TSV-M leads "
        "on both.",
    ),
    Claim(
        "Stronger bases merge better",
        "What Matters for Model Merging at Scale?, arXiv 2410.03617",
        "Against their own experts, merges on a base with all its training are better than on one with a quarter of it.",
        [(f"{name}, strong − weak", minus(score(one), among(WEAK, score(one))))
         for name, one in (("averaging", AVERAGE), ("task arithmetic", SUM), ("TIES", TIES))],
        "So it is for task arithmetic and TIES, not for averaging: on a weak base all experts learn first what it lacks, their "
        "task vectors are alike (see the cosines below), and a mean keeps what they share.",
    ),
    Claim(
        "Task arithmetic gains in the wild",
        "A Systematic Study of In-the-Wild Model Merging, arXiv 2511.21437",
        "Of experts with unlike training (in full, by LoRA, a quarter of either) task arithmetic makes more than the base.",
        [("task arithmetic − base", minus(among(WILD, score(SUM)), among(WILD, of_base)))],
    ),
    Claim(
        "…and is the safe one there",
        "A Systematic Study of In-the-Wild Model Merging, arXiv 2511.21437",
        "Methods that deal with interference are no better on such experts.",
        [(f"task arithmetic − {name}", minus(among(WILD, score(SUM)), among(WILD, score(one))))
         for name, one in (("TIES", TIES), ("TSV-M", TSV), ("Iso-C", ISO))],
        "Here too all are tuned; the experts share a base, a shape and the optimizer, which those of a hub do not always.",
    ),
)  # fmt: skip
