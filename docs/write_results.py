"""Write docs/results.md: what papers claim, and what our suites show, with intervals and the command.

    python docs/write_results.py [SEEDS] [--full SEEDS] [--device cuda] [--full-limit ITEMS] [--without-weak] [--only SEED]

Three seeds of the quick suites if not given, and of the full ones those that are asked for; of one seed, the intervals are
those over its items. What was built and scored before is not done again. Without a GPU a full seed takes hours of a core:
--full-limit scores fewer items, --without-weak leaves out the weak base, which must be trained with its experts. --only does
one seed and writes nothing, so that several processes can share the work.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from claims import (
    BESIDE,
    CLAIMS,
    LORA,
    VARIANTS,
    VARIANTS_BESIDE,
    WEAK,
    WILD,
    Claim,
    Measure,
    NotRun,
    Seed,
    among,
    best_expert,
    cosine,
    of_base,
    score,
)

from cuvee.cli.amounts import plural
from cuvee.evaluation.benchmark import Runner, sizes_between
from cuvee.evaluation.home import cuvee_home
from cuvee.evaluation.kept_scores import KeptScores
from cuvee.evaluation.measures import Interval, interval
from cuvee.evaluation.results import SeedResult
from cuvee.evaluation.suites import Built, Score, suite
from cuvee.evaluation.suites.lm import build_lm, form, read_corpora
from cuvee.evaluation.suites.suite import silently
from cuvee.evaluation.variants import parse_variant

DOCS = Path(__file__).resolve().parent
LIMIT = 48
SIZES = 2
RESAMPLES = 300


@dataclass(frozen=True)
class Results:
    """The seeds of one form of the suites.

    Attributes:
        quick: the form.
        device: where it was made.
        limit: items of each task.
        seeds: of it.
    """

    quick: bool
    device: str
    limit: int
    seeds: Sequence[Seed]

    @property
    def beside(self) -> list[str]:
        """The suites beside `lm` that were run."""
        return [name for name in BESIDE if name in self.seeds[0].beside]


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=3, help="of the quick suites (3)")
    parser.add_argument("--full", type=int, default=0, metavar="SEEDS", help="of the full suites (0)")
    parser.add_argument("--device", default="cpu", help="where the full suites are made: cpu or cuda")
    parser.add_argument("--full-limit", type=int, default=LIMIT, metavar="ITEMS", help=f"of a task, in full ({LIMIT})")
    parser.add_argument("--without-weak", action="store_true", help="leave the weak base out, in full")
    parser.add_argument("--only", type=int, metavar="SEED", help="do this one and write nothing")
    args = parser.parse_args()
    in_full = {"device": args.device, "limit": args.full_limit, "with_weak": not args.without_weak}
    if args.only is not None:
        if args.only < args.seeds:
            results(quick=True, numbers=[args.only])
        if args.only < args.full:
            results(quick=False, numbers=[args.only], **in_full)
        return
    quick = results(quick=True, numbers=range(args.seeds))
    full = results(quick=False, numbers=range(args.full), **in_full) if args.full else None
    command = f"python docs/write_results.py {args.seeds}"
    if full:
        command += f" --full {args.full} --device {args.device}"
        command += f" --full-limit {args.full_limit}" if args.full_limit != LIMIT else ""
        command += " --without-weak" if args.without_weak else ""
    (DOCS / "results.md").write_text(page(command, quick, full))
    sys.stdout.write("docs/results.md\n")


def results(
    *, quick: bool, numbers: Sequence[int], device: str = "cpu", limit: int = LIMIT, with_weak: bool = True
) -> Results:
    """Make the models that are not there yet and score the variants."""
    kept = KeptScores(cuvee_home() / "scores.sqlite")

    def run(built: Built, labels: Sequence[str], sizes: Sequence[int] = ()) -> SeedResult:
        runner = Runner(built, kept, limit=limit, severities=(), sizes=sizes)
        return runner.run([parse_variant(one) for one in labels], lambda *_: None)

    try:
        seeds = []
        for number in numbers:
            lm, beside = suites(number, quick=quick, device=device, with_weak=with_weak)
            main = run(lm, VARIANTS, sizes_between(len(lm.experts), SIZES))
            seeds.append(Seed(**vars(main), beside={name: run(one, VARIANTS_BESIDE) for name, one in beside.items()}))
        return Results(quick, device, limit, seeds)
    finally:
        kept.close()


def suites(seed: int, *, quick: bool, device: str, with_weak: bool) -> tuple[Built, dict[str, Built]]:
    """Return `lm` and the suites beside it."""
    lm, lora = (suite(name).build(seed=seed, quick=quick, device=device) for name in ("lm", "lm-lora"))
    unlike = [lm.experts, lora.experts, lm.weaker[0.25], lora.weaker[0.25]]
    experts = {name: unlike[(place + seed) % len(unlike)][name] for place, name in enumerate(lm.experts)}
    beside = {LORA: lora, WILD: replace(lm, experts=experts, key=f"{lm.key}-wild")}
    if with_weak:
        whole = form(quick=quick)
        short = replace(whole, base=replace(whole.base, steps=whole.base.steps // 4))
        beside[WEAK] = build_lm(lm.suite, cuvee_home(), seed, short, read_corpora(short), silently, device)
    return lm, {name: replace(one, weaker={}) for name, one in beside.items()}


# --- The page -------------------------------------------------------------------------------------------------------


def page(command: str, quick: Results, full: Results | None = None) -> str:
    """Return docs/results.md."""
    shown = [quick, *([full] if full else [])]
    head = [_in_words(one) for one in shown]
    return "\n".join(
        [
            "# Claims of papers, and what our suites show",
            "",
            f"Generated by `{command}`; nothing here is written by hand but the claims.",
            "",
            "Suite `lm`: language models of bytes, and experts in kinds of text. "
            + " ".join(f"**{_form(one)}**: {words}" for one, words in zip(shown, head, strict=True))
            + f" Beside it: {LORA}, of the same base and text; {WEAK}, with a quarter of the training, and its experts; and "
            f"{WILD}: experts of `lm` with unlike training, in turn in full, by an adapter, and a quarter of either.",
            "",
            "Scores are normalised: expert / merge in bits per byte (merge / expert in exact answers), averaged over the "
            f"experts' tasks, the first {_items(shown)} items of each, test split, coefficients chosen on the validation split "
            "out of nine for every method. Numbers have 95 % intervals, with the same models and items on both sides of a "
            "difference. The quick suite has five tasks of four experts: YAML's is also asked for whole words, so the "
            "best single expert, which is YAML's, has all of two of five; of a word, right or wrong, a merge keeps less than "
            "of bits.",
            "",
            "A claim *holds* where all its differences are above zero by their interval, *does not hold* where one is below, "
            "and is *undecided* otherwise. **These models are a thousand times smaller than those of the papers**: a claim "
            "that does not hold here is one that this suite does not show, not one refuted.",
            "",
            *(f"* {_form(one)}: {_counted(one)}" for one in shown),
            "",
            "| claim | paper | " + " | ".join(f"{_form(one)} | differences" for one in shown) + " |",
            "| --- | --- |" + " --- | --- |" * len(shown),
            *(_row(claim, shown) for claim in CLAIMS),
            "",
            "## Why",
            "",
            *(f"* {claim.title}: {claim.note}" for claim in CLAIMS if claim.note),
            *([f"* In full: {_undecided(full)}"] if full and len(full.seeds) == 1 else []),
            "",
            *(line for one in shown for line in _scores(one)),
        ]
    )


def _items(shown: Sequence[Results]) -> str:
    return (
        str(LIMIT)
        if {one.limit for one in shown} == {LIMIT}
        else ", ".join(f"{one.limit} ({_form(one)})" for one in shown)
    )


def _undecided(full: Results) -> str:
    """Return why one seed of the full suites decides little."""
    seed = full.seeds[0]
    exact = sum(seed.tasks[task].metric == "exact answers" for task in seed.own)
    return (
        f"one seed, and {full.limit} items of a task. The base has read something of all domains, so experts gain "
        f"{1 - of_base(seed):.2f} over it, three times what an interval has to either side; and {exact} of {len(seed.own)} "
        f"tasks are exact answers, which move in steps of 1/{full.limit}. Three seeds on all items would decide more."
    )


def _form(one: Results) -> str:
    return "quick" if one.quick else "in full"


def _in_words(one: Results) -> str:
    over = "seeds (Student's t)" if len(one.seeds) > 1 else "the items of the one seed (bootstrap)"
    where = "" if one.device == "cpu" else ", made on a GPU"
    size = "0.6 M" if one.quick else "5.3 M"
    experts, seeds = len(one.seeds[0].experts), plural(len(one.seeds), "seed")
    return f"{size} parameters, {experts} experts, {seeds}, intervals over {over}{where}."


def _counted(one: Results) -> str:
    verdicts = [judge(claim, one.seeds)[0] for claim in CLAIMS]
    holds, fails, open_, not_run = (verdicts.count(word) for word in ("holds", "does not hold", "undecided", "not run"))
    left = f", {not_run} was left out" if not_run else ""
    return f"of {len(CLAIMS)} claims {holds} hold, {fails} do not, {open_} are undecided{left}."


def _row(claim: Claim, shown: Sequence[Results]) -> str:
    found = [judge(claim, one.seeds) for one in shown]
    cells = [f"**{verdict}** | {'; '.join(differences)}" for verdict, differences in found]
    return f"| {claim.title}: {claim.says} | {claim.source} | {' | '.join(cells)} |"


def _scores(one: Results) -> Iterator[str]:
    """Yield the table of normalised scores of a form, tuned, and at the default coefficient for `lm`."""
    columns: list[tuple[str, Callable[[Measure], Measure]]] = [("lm", lambda measure: measure)]
    columns += [(name, lambda measure, name=name: among(name, measure)) for name in one.beside]  # type: ignore[misc]
    yield f"## Scores behind it, {_form(one)}"
    yield ""
    yield "| model | " + " | ".join(name for name, _ in columns) + " | lm, default |"
    yield "| --- |" + " ---: |" * (len(columns) + 1)
    for title, measure in (("base", of_base), ("best single expert", best_expert)):
        yield f"| {title} | " + " | ".join(written(over_seeds(of(measure), one.seeds)) for _, of in columns) + " | – |"
    yield f"| mean cosine of task vectors | {' | '.join(written(over_seeds(of(cosine), one.seeds)) for _, of in columns)} | – |"
    for label in VARIANTS:
        known = [of for name, of in columns if name not in BESIDE or label in VARIANTS_BESIDE]
        cells = [written(over_seeds(of(score(label)), one.seeds)) for of in known] + ["–"] * (len(columns) - len(known))
        yield f"| {label} | {' | '.join(cells)} | {written(over_seeds(score(label, tuned=False), one.seeds))} |"
    yield ""


def judge(claim: Claim, seeds: Sequence[Seed]) -> tuple[str, list[str]]:
    """Return the verdict, and each difference with its interval."""
    try:
        found = [(words, over_seeds(measure, seeds)) for words, measure in claim.shows]
    except NotRun as suite:
        return "not run", [f"without {suite}"]
    if any(one.high < 0 for _, one in found):
        verdict = "does not hold"
    elif all(one.low > 0 for _, one in found):
        verdict = "holds"
    else:
        verdict = "undecided"
    return verdict, [f"{words} {written(one, signed=True)}" for words, one in found]


def over_seeds(measure: Measure, seeds: Sequence[Seed]) -> Interval:
    """Return the interval over seeds; of one seed, over its items, by the bootstrap."""
    if len(seeds) > 1:
        return interval([measure(seed) for seed in seeds])
    draws = np.random.default_rng(0)
    spread = float(np.std([measure(resampled(seeds[0], draws)) for _ in range(RESAMPLES)]))
    # What does not depend on the kept items has no interval here; that is no certainty.
    return Interval(measure(seeds[0]), 1.96 * spread if spread > 1e-9 else math.nan, 1)


def resampled(seed: Seed, draws: np.random.Generator) -> Seed:
    """Return a seed with the items of each task drawn anew, the same for all models."""
    beside = {name: _resampled(one, draws) for name, one in seed.beside.items()}
    return replace(seed, **{**vars(_resampled(seed, draws)), "beside": beside})


def _resampled(seed: SeedResult, draws: np.random.Generator) -> SeedResult:
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


def written(one: Interval, *, signed: bool = False) -> str:
    mean = f"{one.mean:+.3f}" if signed else f"{one.mean:.3f}"
    return (f"{mean} ± {one.half:.3f}" if math.isfinite(one.half) else mean).replace("-", "−")


if __name__ == "__main__":
    main()
