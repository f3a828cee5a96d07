"""Write docs/results.md: what papers claim, and what our suites show, with intervals over seeds and the command.

    python docs/write_results.py [SEEDS]

Three seeds if not given; of one seed, the intervals are those over its items. Runs the suite that the claims need, in its
quick form, unless that was done before; see `cuvee bench run`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cuvee.cli.amounts import plural
from cuvee.cli.bench_run import run_suite
from cuvee.evaluation.measures import Interval, change, interval, normalised
from cuvee.evaluation.results import Bench, SeedResult
from cuvee.evaluation.suites import Score
from cuvee.evaluation.variants import parse_variant

DOCS = Path(__file__).resolve().parent
LIMIT = 24
RESAMPLES = 300
AVERAGE, SUM, TIES, TIES_MODEL = "linear", "task_arithmetic", "ties:density=0.2", "ties:density=0.2,trim_scope=model"
DARE = {0.5: "dare_linear:density=0.5", 0.9: "dare_linear:density=0.1", 0.99: "dare_linear:density=0.01"}
TSV, ISO, WUDI, STOCK = "tsv_m", "iso_c", "wudi_merging", "model_stock"
VARIANTS = (AVERAGE, SUM, "ties", TIES, TIES_MODEL, *DARE.values(), TSV, ISO, WUDI, STOCK)


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
    shows: Sequence[tuple[str, Callable[[SeedResult], float]]]
    note: str = ""


Measure = Callable[[SeedResult], float]


def score(label: str, *, tuned: bool = True) -> Measure:
    """Return the normalised test score of a variant, as a function of the seed."""

    def of(seed: SeedResult) -> float:
        outcome = seed.outcomes[label]
        assert outcome.tuned is not None, outcome.failure
        return normalised(outcome.tuned.scores if tuned else outcome.default, seed.own)

    return of


def of_base(seed: SeedResult) -> float:
    return normalised(seed.base, seed.own)


def best_expert(seed: SeedResult) -> float:
    return max(normalised(scores, seed.own) for scores in seed.experts.values())


def at_size(label: str, size: int | None = None) -> Measure:
    """Return the score of the merge of the first so many experts; None: of all."""
    return lambda seed: seed.outcomes[label].by_size[size or max(seed.outcomes[label].by_size)]


def at_share(label: str, share: float) -> Measure:
    return lambda seed: seed.outcomes[label].by_share[share]


def on(label: str, kind: str) -> Measure:
    """Return how much better than the base a tuned merge is on the tasks of a kind, in the unit of the score."""

    def of(seed: SeedResult) -> float:
        outcome = seed.outcomes[label]
        assert outcome.tuned is not None
        return change(outcome.tuned.scores, {task: seed.base[task] for task in seed.names(kind)})

    return of


def minus(one: Measure, other: Measure) -> Measure:
    return lambda seed: one(seed) - other(seed)


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
    ),
    Claim(
        "A merge does more tasks than any expert",
        "Editing Models with Task Arithmetic, arXiv 2212.04089",
        "Over all tasks, one merge is better than the best single expert.",
        [("task arithmetic − best expert", minus(score(SUM), best_expert))],
    ),
    Claim(
        "More experts are harder to merge",
        "TIES-Merging, arXiv 2306.01708, figure 5",
        "The normalised score falls as experts are added.",
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
        "What TIES gains over averaging grows with the number of experts.",
        [("gain at all − gain at two",
          minus(minus(at_size(TIES), at_size(AVERAGE)), minus(at_size(TIES, 2), at_size(AVERAGE, 2))))],
    ),
    Claim(
        "TIES over task arithmetic",
        "TIES-Merging, arXiv 2306.01708, table 1",
        "With both tuned on validation data, TIES is better.",
        [("TIES − task arithmetic", minus(score(TIES), score(SUM))),
         ("TIES without its trim − task arithmetic", minus(score("ties"), score(SUM)))],
        "Small models have little to spare: four fifths of the elements are missed here, as with DARE at 0.9; the vote on "
        "signs alone costs less.",
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
        [("averaging − base, bits per byte saved", on(AVERAGE, "base"))],
    ),
    Claim(
        "Merges are better on unseen tasks",
        "TIES-Merging, arXiv 2306.01708, table 3 (out of domain)",
        "On text that nobody was trained on, a merge is better than the base.",
        [("TIES − base, bits per byte saved", on(TIES, "unseen")),
         ("task arithmetic − base, bits per byte saved", on(SUM, "unseen"))],
    ),
)  # fmt: skip
NOT_TESTED = (
    "Merging gets easier with stronger bases (arXiv 2410.03617): needs bases of several sizes; the suites have one each.",
    "LoRA experts are harder to merge than full fine-tunes: `lm-lora` has them; not run for this page.",
    "Only task arithmetic gains reliably over the base among fine-tunes found in the wild (arXiv 2511.21437): the suites' "
    "experts share a recipe of training, which those do not.",
)


def main() -> None:
    """Run and write."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    command = f"cuvee bench run lm --quick --seeds {seeds} --limit {LIMIT} --methods {' '.join(VARIANTS)}"
    bench = run_suite("lm", [parse_variant(one) for one in VARIANTS], command, seeds=seeds, limit=LIMIT, quick=True)
    (DOCS / "results.md").write_text(page(bench))
    sys.stdout.write("docs/results.md\n")


def page(bench: Bench) -> str:
    """Return docs/results.md."""
    judged = [(claim, *judge(claim, bench)) for claim in CLAIMS]
    counts = {
        word: sum(verdict == word for _, verdict, _ in judged) for word in ("holds", "does not hold", "undecided")
    }
    over = "seeds (Student's t)" if len(bench.seeds) > 1 else "the items of the one seed (bootstrap)"
    said = f"{counts['holds']} hold, {counts['does not hold']} do not, {counts['undecided']} are undecided"
    return "\n".join(
        [
            "# Claims of papers, and what our suites show",
            "",
            f"Generated by `python docs/write_results.py {len(bench.seeds)}`; nothing here is written by hand but the claims.",
            "",
            f"Suite `{bench.suite}` in its **quick** form: a language model of bytes with 0.6 M parameters, "
            f"{len(bench.seeds[0].experts)} experts (full fine-tunes), {plural(len(bench.seeds), 'seed')}, the first "
            f"{bench.limit} items of each task. Scores are normalised: expert / merge in bits per byte, averaged over the "
            "experts' tasks, test split, coefficients chosen on the validation split out of nine for every method. Numbers "
            f"have 95 % intervals over {over}, with the same models and items on both sides of a difference.",
            "",
            "A claim *holds* where all its differences are above zero by their interval, *does not hold* where one is below, "
            f"and is *undecided* otherwise. Of {len(judged)} claims: {said}. **These models are a thousand times smaller than "
            "those of the papers**: a claim that does not hold here is one that this suite does not show, not one refuted.",
            "",
            f"    {bench.command}",
            "",
            "| claim | paper | here | differences |",
            "| --- | --- | --- | --- |",
            *(
                f"| {c.title}: {c.says} | {c.source} | **{verdict}** | {'; '.join(found)} |"
                for c, verdict, found in judged
            ),
            "",
            "## Scores behind it",
            "",
            "| model | tuned | default |",
            "| --- | ---: | ---: |",
            *scores(bench),
            "",
            "## Not tested",
            "",
            *(f"* {one}" for one in NOT_TESTED),
            "",
        ]
    )


def judge(claim: Claim, bench: Bench) -> tuple[str, list[str]]:
    """Return the verdict, and each difference with its interval."""
    found = [(words, over_seeds(measure, bench.seeds)) for words, measure in claim.shows]
    if any(one.high < 0 for _, one in found):
        verdict = "does not hold"
    elif all(one.low > 0 for _, one in found):
        verdict = "holds"
    else:
        verdict = "undecided"
    return verdict, [f"{words} {written(one, signed=True)}" for words, one in found]


def over_seeds(measure: Measure, seeds: Sequence[SeedResult]) -> Interval:
    """Return the interval over seeds; of one seed, over its items, by the bootstrap."""
    if len(seeds) > 1:
        return interval([measure(seed) for seed in seeds])
    draws = np.random.default_rng(0)
    spread = float(np.std([measure(resampled(seeds[0], draws)) for _ in range(RESAMPLES)]))
    # What does not depend on the kept items has no interval here; that is no certainty.
    return Interval(measure(seeds[0]), 1.96 * spread if spread > 1e-9 else math.nan, 1)


def resampled(seed: SeedResult, draws: np.random.Generator) -> SeedResult:
    """Return a seed with the items of each task drawn anew, the same for all models."""
    chosen = {task: draws.integers(score.n, size=score.n) for task, score in seed.base.items()}

    def drawn(scores: Mapping[str, Score]) -> dict[str, Score]:
        return {task: replace(score, items=score.items[chosen[task]]) for task, score in scores.items()}

    outcomes = {
        label: replace(one, default=drawn(one.default), tuned=replace(one.tuned, scores=drawn(one.tuned.scores)))
        if one.tuned
        else one
        for label, one in seed.outcomes.items()
    }
    experts = {name: drawn(scores) for name, scores in seed.experts.items()}
    return replace(seed, base=drawn(seed.base), experts=experts, outcomes=outcomes)


def scores(bench: Bench) -> Iterator[str]:
    base, expert = (over_seeds(one, bench.seeds) for one in (of_base, best_expert))
    yield f"| base | {written(base)} | – |"
    yield f"| best single expert | {written(expert)} | – |"
    for label in bench.variants:
        if not bench.failure(label):
            tuned, default = (over_seeds(score(label, tuned=one), bench.seeds) for one in (True, False))
            yield f"| {label} | {written(tuned)} | {written(default)} |"
        else:
            yield f"| {label} | {bench.failure(label)} | |"


def written(one: Interval, *, signed: bool = False) -> str:
    mean = f"{one.mean:+.3f}" if signed else f"{one.mean:.3f}"
    return (f"{mean} ± {one.half:.3f}" if math.isfinite(one.half) else mean).replace("-", "−")


if __name__ == "__main__":
    main()
