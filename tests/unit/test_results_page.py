"""docs/results.md: at least a dozen claims, judged by their intervals, on the page that is in the repository."""

import dataclasses
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cuvee.evaluation.results import Choice, Outcome, SeedResult
from cuvee.evaluation.suites import Score, Task
from cuvee.evaluation.variants import parse_variant

DOCS = Path(__file__).resolve().parents[2] / "docs"
TASKS = {"a": Task("a", "A", "expert", "accuracy", expert="a"), "g": Task("g", "G", "base", "accuracy"),
         "u": Task("u", "U", "unseen", "accuracy")}  # fmt: skip


@pytest.fixture(scope="module")
def writer():
    sys.path.insert(0, str(DOCS))
    try:
        import claims
        import write_results
    finally:
        sys.path.remove(str(DOCS))
    return SimpleNamespace(**{**vars(claims), **vars(write_results)}, module=write_results)


def seed(writer, level, seed_number=0):
    def scores(value):
        items = np.array([value - 0.1, value + 0.1], np.float32)
        return {task: Score(items) for task in TASKS}

    outcomes = {
        label: Outcome(
            parse_variant(label), default=scores(level - 0.1), tuned=Choice([], 1.0, scores(level)),
            by_size={2: level + 0.1, 4: level}, by_share={0.25: level, 1.0: level},
        )
        for label in writer.VARIANTS
    }  # fmt: skip
    found = SeedResult(seed_number, "k", TASKS, scores(0.3), {"a": scores(0.9)}, {}, outcomes)
    return writer.Seed(**vars(found), beside=dict.fromkeys(writer.BESIDE, found))


def test_there_are_a_dozen_claims_and_each_is_on_the_page(writer):
    made = (DOCS / "results.md").read_text()
    assert len(writer.CLAIMS) >= 12
    for claim in writer.CLAIMS:
        assert f"### {claim.title}\n\n{claim.says} ({claim.source})\n" in made


def test_every_claim_can_be_judged_with_the_variants_that_are_run(writer):
    result = [seed(writer, 0.6), seed(writer, 0.61, 1)]
    for claim in writer.CLAIMS:
        if "cosine" not in claim.shows[0][0]:  # needs models
            assert writer.judge(claim, result)[0] in ("holds", "does not hold", "undecided")


def test_what_a_suite_did_not_run_is_left_out(writer):
    full = writer.Results("lm", True, "cpu", 48, 600_000, [seed(writer, 0.6), seed(writer, 0.61, 1)])
    bare = [
        dataclasses.replace(
            one,
            beside={},
            outcomes={
                "linear": one.outcomes["linear"],
                **{
                    label: dataclasses.replace(one.outcomes[label], by_share={1.0: 0.5}, by_size={4: 0.5})
                    for label in (writer.SUM, writer.TSV)
                },
            },
        )
        for one in full.seeds
    ]
    other = writer.Results("vision", True, "cpu", 48, 100_000, bare)
    with pytest.MonkeyPatch.context() as patch:
        for module in (writer.module, writer):
            patch.setattr(module, "CLAIMS", [one for one in writer.CLAIMS if "cosine" not in one.shows[0][0]])
        patch.setattr(writer.module, "cosine", writer.of_base)
        patch.setattr(writer.module, "on_others", writer.of_base)
        made = writer.page("command", [full, other])
    section = made.partition("### TIES over averaging\n")[2].partition("###")[0]
    assert "* lm, quick: TIES − averaging" in section
    assert "vision" not in section
    assert "| TIES over averaging | undecided | – |" in made or "| TIES over averaging | holds | – |" in made


def test_a_verdict_is_that_of_the_interval(writer):
    result = [seed(writer, 0.6), seed(writer, 0.61, 1), seed(writer, 0.62, 2)]
    level = writer.score("linear")

    def verdict(*measures):
        return writer.judge(writer.Claim("t", "s", "c", [("x", one) for one in measures]), result)[0]

    assert verdict(level) == "holds"
    assert verdict(lambda s: -level(s)) == "does not hold"
    assert verdict(level, lambda s: -level(s)) == "does not hold"
    assert verdict(lambda s: s.seed - 1) == "undecided"
    assert verdict(level, lambda s: s.seed - 1) == "undecided"


def test_of_one_seed_the_interval_is_that_of_the_items_and_without_items_there_is_none(writer):
    one = [seed(writer, 0.6)]
    assert 0 < writer.over_seeds(writer.score("linear"), one).half < 0.5
    assert math.isnan(writer.over_seeds(writer.at_size("linear", 2), one).half)
    assert writer.judge(writer.Claim("t", "s", "c", [("x", writer.at_size("linear", 2))]), one)[0] == "undecided"
    # the same items on both sides: no difference is none in every draw
    assert writer.over_seeds(writer.minus(writer.score("linear"), writer.score("ties")), one).mean == 0
