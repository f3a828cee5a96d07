"""Write docs/results.md: what papers claim, and what our suites show, with intervals and the command.

    python docs/write_results.py [SEEDS] [--full SEEDS] [--device cuda] [--full-limit ITEMS] [--without-weak] [--only SEED]

Three seeds of the quick suites if not given, and of the full `lm` and `vision` those that are asked for; of one seed, the
intervals are those over its items. What was built and scored before is not done again. Without a GPU a full seed takes hours
of a core: --full-limit scores fewer items, --without-weak leaves out the weak base, which must be trained with its experts.
--only does one seed and writes nothing, so that several processes can share the work.
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
    VARIANTS_ELSEWHERE,
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
    on_others,
    score,
)

from cuvee.cli.amounts import plural
from cuvee.evaluation.benchmark import Runner, sizes_between
from cuvee.evaluation.home import cuvee_home
from cuvee.evaluation.kept_scores import KeptScores
from cuvee.evaluation.measures import NORMAL_95, Interval, interval
from cuvee.evaluation.results import SeedResult
from cuvee.evaluation.suites import Built, Score, suite
from cuvee.evaluation.suites.lm import build_lm, form, read_corpora
from cuvee.evaluation.suites.suite import silently
from cuvee.evaluation.variants import parse_variant

DOCS = Path(__file__).resolve().parent
LIMITS = {"lm": 48, "vision": 200, "text-encoder": 48}
SIZES = 2
RESAMPLES = 300
WORDS = {
    "lm": "language models of bytes, and experts in kinds of text",
    "vision": "ViTs, and experts in kinds of pictures",
    "text-encoder": "the real all-MiniLM-L6-v2, and experts in telling texts apart",
}
FULL = ("lm", "vision")
NOT_RUN = "–"


@dataclass(frozen=True)
class Results:
    """The seeds of one form of a suite.

    Attributes:
        suite: its name.
        quick: the form.
        device: where it was made.
        limit: items of each task.
        parameters: of a model.
        seeds: of it.
    """

    suite: str
    quick: bool
    device: str
    limit: int
    parameters: int
    seeds: Sequence[Seed]

    @property
    def title(self) -> str:
        """As tables print it."""
        return f"{self.suite}, {'quick' if self.quick else 'in full'}"

    @property
    def beside(self) -> list[str]:
        """The suites beside it that were run."""
        return [name for name in BESIDE if name in self.seeds[0].beside]


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=3, help="of the quick suites (3)")
    parser.add_argument("--full", type=int, default=0, metavar="SEEDS", help="of the full suites (0)")
    parser.add_argument("--device", default="cpu", help="where the full suites are made: cpu or cuda")
    parser.add_argument("--full-limit", type=int, metavar="ITEMS", help=f"of a task of lm, in full ({LIMITS['lm']})")
    parser.add_argument("--without-weak", action="store_true", help="leave the weak base out, in full")
    parser.add_argument("--only", type=int, metavar="SEED", help="do this one and write nothing")
    args = parser.parse_args()
    in_full = {"device": args.device, "with_weak": not args.without_weak}

    def numbers(seeds: int) -> list[int]:
        return [number for number in range(seeds) if args.only in (None, number)]

    found = [results(name, quick=True, numbers=numbers(args.seeds)) for name in WORDS]
    limits = LIMITS | ({"lm": args.full_limit} if args.full_limit else {})
    found += [results(name, quick=False, numbers=numbers(args.full), limit=limits[name], **in_full) for name in FULL]
    if args.only is not None:
        return
    command = f"python docs/write_results.py {args.seeds}"
    if args.full:
        command += f" --full {args.full} --device {args.device}"
        command += f" --full-limit {args.full_limit}" if args.full_limit else ""
        command += " --without-weak" if args.without_weak else ""
    shown = [one for name in WORDS for one in found if one.suite == name and one.seeds]
    (DOCS / "results.md").write_text(page(command, shown))
    sys.stdout.write("docs/results.md\n")


def results(
    name: str,
    *,
    quick: bool,
    numbers: Sequence[int],
    device: str = "cpu",
    limit: int | None = None,
    with_weak: bool = True,
) -> Results:
    """Make the models that are not there yet and score the variants."""
    kept, limit = KeptScores(cuvee_home() / "scores.sqlite"), limit or LIMITS[name]

    def run(built: Built, labels: Sequence[str], sizes: Sequence[int] = ()) -> SeedResult:
        runner = Runner(built, kept, limit=limit, severities=(), sizes=sizes)
        return runner.run([parse_variant(one) for one in labels], lambda *_: None)

    seeds, parameters = [], 0
    try:
        for number in numbers:
            built = suite(name).build(seed=number, quick=quick, device=device)
            if name == "text-encoder":  # as large as it is, its experts are merged at their end alone
                built = replace(built, weaker={})
            beside = _beside(built, quick=quick, device=device, with_weak=with_weak) if name == "lm" else {}
            main = run(
                built, VARIANTS if name == "lm" else VARIANTS_ELSEWHERE, sizes_between(len(built.experts), SIZES)
            )
            seeds.append(Seed(**vars(main), beside={title: run(one, VARIANTS_BESIDE) for title, one in beside.items()}))
            parameters = sum(tensor.numel() for tensor in built.tensors(built.base).values())
        return Results(name, quick, device, limit, parameters, seeds)
    finally:
        kept.close()


def _beside(lm: Built, *, quick: bool, device: str, with_weak: bool) -> dict[str, Built]:
    """Return the suites beside `lm`."""
    lora = suite("lm-lora").build(seed=lm.seed, quick=quick, device=device)
    unlike = [lm.experts, lora.experts, lm.weaker[0.25], lora.weaker[0.25]]
    experts = {name: unlike[(place + lm.seed) % len(unlike)][name] for place, name in enumerate(lm.experts)}
    beside = {LORA: lora, WILD: replace(lm, experts=experts, key=f"{lm.key}-wild")}
    if with_weak:
        whole = form(quick=quick)
        short = replace(whole, base=replace(whole.base, steps=whole.base.steps // 4))
        beside[WEAK] = build_lm(lm.suite, cuvee_home(), lm.seed, short, read_corpora(short), silently, device)
    return {name: replace(one, weaker={}) for name, one in beside.items()}


# --- The page -------------------------------------------------------------------------------------------------------


def page(command: str, shown: Sequence[Results]) -> str:
    """Return docs/results.md."""
    titles = [one.title for one in shown]
    verdicts = {claim.title: [judge(claim, one.seeds) for one in shown] for claim in CLAIMS}
    return "\n".join(
        [
            "# Claims of papers, and what our suites show",
            "",
            f"Generated by `{command}`; nothing here is written by hand but the claims and the notes.",
            "",
            *(
                f"* `{name}`: {WORDS[name]}. {_in_words(name, shown)}"
                for name in dict.fromkeys(one.suite for one in shown)
            ),
            "",
            f"Beside `lm`: {LORA}, of the same base and text; {WEAK}, with a quarter of the training, and its experts; and "
            f"{WILD}: experts of `lm` with unlike training, in turn in full, by an adapter, and a quarter of either.",
            "",
            "Scores are normalised: merge / expert in accuracy and exact answers, expert / merge in bits per byte, averaged "
            "over the experts' tasks, test split, coefficients chosen on the validation split out of nine for every method. "
            "Differences have 95 % intervals, with the same models and items on both sides: over seeds (Student's t), of one "
            "seed over its items (bootstrap).",
            "",
            "A claim *holds* where all its differences are above zero by their interval, *does not hold* where one is below, "
            "and is *undecided* otherwise. **Most of these models are a thousand times smaller than those of the papers**: "
            "a claim that does not hold here is one that this suite does not show, not one refuted. An accuracy of few items "
            "is coarse (0.9 of 48 is known to ±0.08, of 200 to ±0.04), and the experts of the quick `text-encoder`, trained "
            "for 75 steps, gain 0.04 over so good a base: it decides next to nothing.",
            "",
            "| claim | " + " | ".join(titles) + " |",
            "| --- |" + " --- |" * len(shown),
            *(f"| {title} | {' | '.join(one for one, _ in found)} |" for title, found in verdicts.items()),
            "| **hold / do not / undecided** | "
            + " | ".join(map(_counted, zip(*verdicts.values(), strict=True)))
            + " |",
            "",
            *(line for claim in CLAIMS for line in _told(claim, titles, verdicts[claim.title])),
            "## Scores behind it",
            "",
            *(line for one in shown for line in _scores(one)),
        ]
    )


def _in_words(name: str, shown: Sequence[Results]) -> str:
    def of(one: Results) -> str:
        experts, seeds = len(one.seeds[0].experts), plural(len(one.seeds), "seed")
        where = "" if one.device == "cpu" else ", made on a GPU"
        size = f"{one.parameters / 1e6:.1f} M parameters"
        form = "quick" if one.quick else "in full"
        return f"**{form}** {size}, {experts} experts, {seeds}, {one.limit} items a task{where}"

    return "; ".join(of(one) for one in shown if one.suite == name) + "."


def _counted(found: Sequence[tuple[str, list[str]]]) -> str:
    verdicts = [verdict for verdict, _ in found]
    return " / ".join(str(verdicts.count(one)) for one in ("holds", "does not hold", "undecided"))


def _told(claim: Claim, titles: Sequence[str], found: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return the section of a claim."""
    differences = [
        f"* {title}: {'; '.join(differences)}: **{verdict}**"
        for title, (verdict, differences) in zip(titles, found, strict=True)
        if verdict != NOT_RUN
    ]
    note = [claim.note, ""] if claim.note else []
    return [f"### {claim.title}", "", f"{claim.says} ({claim.source})", "", *differences, "", *note]


def _scores(one: Results) -> Iterator[str]:
    """Yield the table of normalised scores of a form, tuned, and at the default coefficient for the suite itself."""
    columns: list[tuple[str, Callable[[Measure], Measure]]] = [(one.suite, lambda measure: measure)]
    columns += [(name, lambda measure, name=name: among(name, measure)) for name in one.beside]  # type: ignore[misc]
    yield f"### {one.title}"
    yield ""
    yield "| model | " + " | ".join(name for name, _ in columns) + f" | {one.suite}, default |"
    yield "| --- |" + " ---: |" * (len(columns) + 1)
    for title, measure in (
        ("base", of_base),
        ("best single expert", best_expert),
        ("an expert on the others' tasks", on_others),
        ("mean cosine of task vectors", cosine),
    ):
        yield f"| {title} | " + " | ".join(_cell(of(measure), one.seeds) for _, of in columns) + " | – |"
    for label in one.seeds[0].outcomes:
        cells = [_cell(of(score(label)), one.seeds) for _, of in columns]
        yield f"| {label} | {' | '.join(cells)} | {_cell(score(label, tuned=False), one.seeds)} |"
    yield ""


def _cell(measure: Measure, seeds: Sequence[Seed]) -> str:
    try:
        return written(over_seeds(measure, seeds))
    except NotRun:
        return NOT_RUN


def judge(claim: Claim, seeds: Sequence[Seed]) -> tuple[str, list[str]]:
    """Return the verdict, and each difference with its interval."""
    try:
        found = [(words, over_seeds(measure, seeds)) for words, measure in claim.shows]
    except NotRun:
        return NOT_RUN, []
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
    return Interval(measure(seeds[0]), NORMAL_95 * spread if spread > 1e-9 else math.nan, 1)


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
