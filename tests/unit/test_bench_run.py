"""`cuvee bench run`: one budget for all, test data never choose, nothing twice, a failure is a row."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cuvee
from cuvee.cli import main
from cuvee.cli.evaluate import _asked
from cuvee.errors import MethodError, ResourceError
from cuvee.evaluation import benchmark
from cuvee.evaluation.benchmark import Runner, sizes_between
from cuvee.evaluation.domains import ENGLISH, EXPERTISE, UNSEEN, read_corpus
from cuvee.evaluation.kept_scores import KeptScores, digest_of
from cuvee.evaluation.measures import normalised
from cuvee.evaluation.results import Bench, recovered_share, spread
from cuvee.evaluation.suites import Corruption, Score
from cuvee.evaluation.suites.lm import SUITE, SUITE_LORA, Form, build_lm
from cuvee.evaluation.suites.suite import silently
from cuvee.evaluation.tiny_llama import Shape
from cuvee.evaluation.training import Training
from cuvee.evaluation.variants import GRIDS, Variant, all_variants, merged_adapters, parse_variant, parse_variants
from cuvee.methods.registry import methods
from cuvee.reports.bench_files import as_csv, as_json, as_markdown

pytestmark = pytest.mark.slow

FORM = Form(
    shape=Shape(hidden=16, intermediate=24, layers=1, heads=2, key_value_heads=1, context=16),
    base=Training(steps=20, learning_rate=4e-3, muon_rate=0.02, warmup=1),
    expert=Training(steps=20, learning_rate=4e-3, warmup=1),
)
VARIANTS = [Variant("task_arithmetic"), Variant("linear"), Variant("slerp"), parse_variant("ties:density=0.5")]


class Counting:
    """A scorer that counts, and may stop."""

    def __init__(self, scorer, stop_at=None):
        self.scorer, self.calls, self.stop_at = scorer, 0, stop_at

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return self.scorer(*arguments)


def quietly(done, total, what):
    pass


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    corpora = {d.name: read_corpus(d, train_bytes=8_000, held_out_bytes=600) for d in (ENGLISH, *EXPERTISE, UNSEEN)}
    return build_lm(SUITE, tmp_path_factory.mktemp("home"), 0, FORM, corpora, silently)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    kept = KeptScores(tmp_path_factory.mktemp("kept") / "scores.sqlite")
    yield kept
    kept.close()


@pytest.fixture(scope="module")
def result(built, kept):
    return Runner(built, kept, sizes=[2]).run(VARIANTS, quietly)


@pytest.fixture(scope="module")
def bench(result):
    return Bench("lm", "a title", True, None, [3], "cuvee bench run lm", [result])


def test_a_repeated_run_scores_nothing_and_finds_the_same(built, kept, result, monkeypatch):
    counting = Counting(built.scorer)
    monkeypatch.setattr(cuvee, "merge_tensors", None)  # merges nothing either
    again = Runner(replace(built, scorer=counting), kept, sizes=[2]).run(VARIANTS, quietly)
    assert counting.calls == 0
    for label, outcome in result.outcomes.items():
        assert again.outcomes[label].by_size == outcome.by_size
        assert again.outcomes[label].cost == outcome.cost


@pytest.mark.slow
def test_an_interrupted_run_goes_on(built, tmp_path):
    kept = KeptScores(tmp_path / "scores.sqlite")
    whole = Counting(built.scorer)
    Runner(replace(built, scorer=whole), KeptScores(tmp_path / "other.sqlite")).run(VARIANTS[:1], quietly)
    first = Counting(built.scorer, stop_at=whole.calls // 2)
    with pytest.raises(KeyboardInterrupt):
        Runner(replace(built, scorer=first), kept).run(VARIANTS[:1], quietly)
    second = Counting(built.scorer)
    Runner(replace(built, scorer=second), kept).run(VARIANTS[:1], quietly)
    # threads that were at work when the first was stopped may have scored one item more
    assert abs(first.calls - 1 + second.calls - whole.calls) <= 2
    kept.close()


def test_other_code_merges_again_but_equal_bytes_are_not_scored_again(built, kept, result, monkeypatch):
    real = benchmark.code_of
    counting, merges = Counting(built.scorer), Counting(benchmark.merged)
    monkeypatch.setattr(benchmark, "code_of", lambda places: "another" if places == benchmark.MERGING else real(places))
    monkeypatch.setattr(benchmark, "merged", lambda *arguments: merges(*arguments))
    Runner(replace(built, scorer=counting), kept, sizes=[2]).run(VARIANTS, quietly)
    assert merges.calls > 20
    assert counting.calls == 0


def test_the_coefficient_is_chosen_on_validation_data(built, result):
    tuned = result.outcomes["task_arithmetic"].tuned
    assert [coefficient for coefficient, _ in tuned.curve] == list(GRIDS["scaling"])
    base = built.tensors(built.base)
    experts = {name: built.tensors(one) for name, one in built.experts.items()}
    own = {name: built.score(experts[name], name, split="validation") for name in experts}
    for coefficient, found in tuned.curve[::4]:
        made = cuvee.merge_tensors("task_arithmetic", list(experts.values()), base, scaling=coefficient)
        scores = {name: built.score(made, name, split="validation") for name in experts}
        assert found == pytest.approx(normalised(scores, own), abs=1e-6)
    assert tuned.best == max(tuned.curve, key=lambda point: point[1])[0]
    made = cuvee.merge_tensors("task_arithmetic", list(experts.values()), base, scaling=tuned.best)
    for task in built.tasks:
        assert tuned.scores[task].value == built.score(made, task).value


def test_every_method_has_the_same_budget():
    assert {len(grid) for grid in GRIDS.values()} == {9}
    assert {variant.method for variant in all_variants()} == set(methods())


def test_all_stands_for_every_method_and_no_variant_is_scored_twice():
    assert parse_variants(["all"]) == all_variants()
    more = parse_variants(["ties:density=0.3", "all", "ties"])
    assert [one.label for one in more] == ["ties:density=0.3", *(one.label for one in all_variants())]


@pytest.fixture(scope="module")
def of_adapters(tmp_path_factory):
    corpora = {d.name: read_corpus(d, train_bytes=8_000, held_out_bytes=600) for d in (ENGLISH, *EXPERTISE, UNSEEN)}
    return build_lm(SUITE_LORA, tmp_path_factory.mktemp("lora"), 0, FORM, corpora, silently)


@pytest.mark.slow
def test_one_adapter_merged_as_it_is_is_its_expert(of_adapters):
    as_it_is = parse_variant("copa_merging:density=1,factor_scale=1")
    for share, experts in ((1.0, of_adapters.experts), (0.25, of_adapters.weaker[0.25])):
        folder = of_adapters.adapters[share]["cpp"]
        made = merged_adapters(as_it_is, None, [folder], of_adapters.base)
        assert digest_of(made) == digest_of(of_adapters.tensors(experts["cpp"]))


@pytest.mark.slow
def test_adapters_are_merged_as_they_are_where_the_experts_are_adapters(of_adapters, tmp_path):
    kept = KeptScores(tmp_path / "scores.sqlite")
    runner = Runner(of_adapters, kept, limit=2, sizes=[2])
    outcome = runner.run([Variant("copa_merging")], quietly).outcomes["copa_merging"]
    assert outcome.failure == ""
    assert list(outcome.by_size) == [2, 4]
    assert list(outcome.by_share) == [0.25, 1.0]
    assert outcome.cost.seconds > 0
    folders = list(of_adapters.adapters[1.0].values())
    made = merged_adapters(Variant("copa_merging"), None, folders, of_adapters.base)
    assert outcome.tuned.scores["yaml"].value == of_adapters.score(made, "yaml", limit=2).value
    kept.close()


@pytest.mark.parametrize(("method", "why"), [("recall", "hidden"), ("copa_merging", "no factors of adapters")])
def test_a_method_of_what_the_suite_has_not_is_a_row_that_says_so(built, tmp_path, method, why):
    kept = KeptScores(tmp_path / "scores.sqlite")
    outcome = Runner(built, kept, limit=2).run([Variant(method)], quietly).outcomes[method]
    assert why in outcome.failure
    assert "defect" not in outcome.failure
    assert not outcome.by_size
    kept.close()


def test_a_method_without_a_coefficient_is_scored_once(result):
    tuned = result.outcomes["linear"].tuned
    assert tuned.best is None
    assert list(tuned.curve) == []
    assert {task: s.value for task, s in tuned.scores.items()} == {
        task: s.value for task, s in result.outcomes["linear"].default.items()
    }


def test_a_method_that_fails_is_a_row_that_says_why(bench, result):
    outcome = result.outcomes["slerp"]
    assert "exactly 2 models" in outcome.failure
    assert list(outcome.by_size) == [2]  # with two experts it can
    assert bench.variants[-1] == "slerp"
    assert "exactly 2 models" in as_markdown(bench)
    failed = next(row for row in csv.DictReader(io.StringIO(as_csv(bench))) if row["model"] == "slerp")
    assert failed["normalised"] == ""
    assert "exactly 2 models" in failed["failure"]


def test_a_defect_of_one_method_does_not_cost_the_others_their_scores(built, tmp_path, monkeypatch):
    real = cuvee.merge_tensors

    def broken(method, *arguments, **parameters):
        if method == "ties":
            raise IndexError("off by one")
        return real(method, *arguments, **parameters)

    monkeypatch.setattr(cuvee, "merge_tensors", broken)
    kept = KeptScores(tmp_path / "scores.sqlite")
    found = Runner(built, kept, limit=2).run([Variant("ties"), Variant("linear")], quietly).outcomes
    assert "off by one" in found["ties"].failure
    assert found["linear"].failure == ""
    kept.close()


@pytest.mark.slow
@pytest.mark.parametrize("problem", [RuntimeError("can't allocate memory"), MemoryError(), AssertionError("odd")])
def test_what_may_pass_is_tried_again(built, tmp_path, monkeypatch, problem):
    def broken(*arguments, **parameters):
        raise problem

    kept = KeptScores(tmp_path / "scores.sqlite")
    with monkeypatch.context() as patched:
        patched.setattr(cuvee, "merge_tensors", broken)
        found = Runner(built, kept, limit=2).run([Variant("linear")], quietly).outcomes["linear"]
        assert found.failure and found.cost is None
    found = Runner(built, kept, limit=2).run([Variant("linear")], quietly).outcomes["linear"]
    assert found.failure == "" and found.cost is not None
    kept.close()


def test_a_merge_that_scores_no_number_is_a_row_that_says_so_and_ranks_last(built, tmp_path, monkeypatch):
    kept = KeptScores(tmp_path / "scores.sqlite")
    real = benchmark.kept_score

    def nan(kept, built, digest, tensors, task, **how):
        score = real(kept, built, digest, tensors, task, **how)
        return replace(score, items=score.items * np.nan) if digest == beyond else score

    made = cuvee.merge_tensors("linear", *(list(map(built.tensors, built.experts.values())),))
    beyond = digest_of(made)
    monkeypatch.setattr(benchmark, "kept_score", nan)
    found = Runner(built, kept, limit=2).run([Variant("linear"), Variant("model_stock")], quietly)
    assert "beyond all bounds" in found.outcomes["linear"].failure
    assert Bench("s", "S", True, 2, [], "c", [found]).variants == ["model_stock", "linear"]
    kept.close()


@pytest.mark.parametrize("damage", ["no database", "a folder"])
def test_a_damaged_file_of_scores_is_told_in_a_sentence(tmp_path, damage):
    path = tmp_path / "scores.sqlite"
    path.mkdir() if damage == "a folder" else path.write_bytes(b"no database" * 200)
    with pytest.raises(ResourceError, match="scores that are kept"):
        KeptScores(path)


def test_a_damaged_score_is_told_in_a_sentence(tmp_path):
    kept = KeptScores(tmp_path / "scores.sqlite")
    kept._put("key", b"torn")
    for read in (kept.items, kept.record):
        with pytest.raises(ResourceError, match="scores that are kept"):
            read("key")
    kept.close()


def test_the_interval_of_one_seed_knows_that_model_and_expert_saw_the_same_items(result):
    same = Bench("s", "S", True, None, [], "c", [replace(result, outcomes={})])._summary(
        [{**result.base, **result.own}], [{}]
    )
    assert same.normalised.mean == pytest.approx(1.0) and same.normalised.half == pytest.approx(0.0, abs=1e-7)


def test_a_merge_with_nan_is_no_merge(built, tmp_path, monkeypatch):
    def nan(method, models, base=None, **parameters):
        return {name: tensor * np.nan for name, tensor in models[0].items()}

    monkeypatch.setattr(cuvee, "merge_tensors", nan)
    kept = KeptScores(tmp_path / "scores.sqlite")
    found = Runner(built, kept, limit=2).run([Variant("linear")], quietly).outcomes["linear"]
    assert "NaN" in found.failure
    kept.close()


def test_nested_experts_and_weaker_ones_are_scored(built, result):
    outcome = result.outcomes["task_arithmetic"]
    assert list(outcome.by_size) == [2, 4]
    assert list(outcome.by_share) == [0.25, 1.0]
    assert outcome.by_share[1.0] == normalised(outcome.tuned.scores, result.own)
    # merges of two and of all experts are judged by the same tasks: those of the first two
    first = list(built.experts)[:2]
    own = {task: score for task, score in result.own.items() if built.tasks[task].expert in first}
    assert outcome.by_size[4] == normalised(outcome.tuned.scores, own) != outcome.by_share[1.0]


def test_data_are_shifted_by_every_severity_that_is_asked_for(built, kept, result):
    counting = Counting(built.scorer)
    found = Runner(replace(built, scorer=counting), kept, sizes=[2], severities=[3, 5]).run(VARIANTS, quietly)
    experts = [found.shifted[name] for name in built.experts]
    outcome, before = found.outcomes["task_arithmetic"], result.outcomes["task_arithmetic"]
    assert list(outcome.shifted) == list(found.shifted["base"]) == list(found.shifted["yaml"]) == [3, 5]
    assert list(before.shifted) == [3]
    assert set(outcome.shifted[5]) == set(built.corruptions)
    for severity in (3, 5):
        for name in built.corruptions:
            shift = Corruption(name, severity)
            for model, scores in (
                (built.base, found.shifted["base"]),
                *zip(built.experts.values(), experts, strict=True),
            ):
                one = built.score(built.tensors(model), "yaml", corruption=shift).value
                assert scores[severity][name]["yaml"].value == one
            own = {task: scores[severity][name][task] for task, scores in zip(built.experts, experts, strict=True)}
            assert own.items() <= found.own_shifted(severity)[name].items()
    models = sum(not one.failure for one in found.outcomes.values()) + 1 + len(built.experts)
    assert counting.calls == models * len(result.own) * len(built.corruptions)  # severity 5 alone is new
    summary = Bench("lm", "t", True, None, [3, 5], "", [found]).summary("task_arithmetic")
    worse = [normalised(one["noise"], found.own_shifted(at)["noise"]) for at, one in outcome.shifted.items()]
    assert [summary.shifted[at].mean for at in (3, 5)] == worse
    bench = Bench("lm", "t", True, None, [3, 5], "", [found])
    base = normalised(found.shifted["base"][5]["noise"], found.own_shifted(5)["noise"])
    assert bench.base_summary().shifted[5].mean == base < 1
    assert list(bench.expert_summary("yaml").shifted) == [3, 5]


def test_numbers_of_experts_are_spread_from_two_to_all():
    assert sizes_between(7, 3) == [2, 4, 7]
    assert sizes_between(4, 7) == [2, 3, 4]
    assert sizes_between(2, 3) == [2]
    assert sizes_between(1, 3) == []


def test_a_merge_costs_something(result):
    cost = result.outcomes["task_arithmetic"].cost
    assert cost.seconds > 0
    assert cost.peak_bytes is None or cost.peak_bytes >= 0


def score(*items, better=True):
    return Score(np.array(items, np.float32), better)


def test_recovered_is_zero_for_the_base_and_one_for_the_experts():
    base = {"a": score(0.5), "b": score(4.0, better=False)}
    own = {"a": score(1.0), "b": score(2.0, better=False)}
    assert recovered_share(base, own, base) == 0
    assert recovered_share(own, own, base) == 1
    assert recovered_share({"a": score(0.75), "b": score(3.5, better=False)}, own, base) == pytest.approx(0.375)


def test_one_seed_has_the_interval_of_its_items_and_more_have_that_of_seeds():
    assert spread([(0.8, 0.1)]).half == 0.1
    assert spread([(0.5, 0.1), (0.5, 0.1), (0.5, 0.1)]).half == 0


def test_a_setting_is_read_as_it_is_written():
    for text in ("ties", "ties:density=0.2,trim_scope=model", "dare_linear:rescale=false"):
        assert parse_variant(text).label == text
    with pytest.raises(MethodError, match="tise"):
        parse_variant("tise")
    with pytest.raises(MethodError, match="densty"):
        parse_variant("ties:densty=0.2")
    with pytest.raises(MethodError, match="density"):
        parse_variant("ties:density=2")


def test_a_given_coefficient_is_not_tuned():
    assert parse_variant("ties:scaling=0.3").coefficient is None
    assert parse_variant("ties:scaling=0.3").settings(None)["scaling"] == 0.3


def test_a_digest_tells_models_apart(built):
    tensors = built.tensors(built.base)
    assert digest_of(tensors) == digest_of(dict(reversed(tensors.items())))
    changed = dict(tensors)
    changed["lm_head.weight"] = tensors["lm_head.weight"].clone()
    changed["lm_head.weight"][0, 0] += 1
    assert digest_of(changed) != digest_of(tensors)


def test_files_hold_the_same_numbers(bench):
    rows = list(csv.DictReader(io.StringIO(as_csv(bench))))
    found = json.loads(as_json(bench))
    assert [row["model"] for row in rows] == [one["model"] for one in found["models"]]
    assert rows[0]["kind"] == "base"
    assert float(rows[0]["recovered"]) == 0
    assert found["curves"]["task_arithmetic"][0]["by_experts"].keys() == {"2", "4"}
    best = next(row for row in rows if row["kind"] == "merge")
    assert f"| {best['model']} |" in as_markdown(bench)


@pytest.mark.parametrize("out", ["afile", "afile/deeper", "/proc/nope/x"])
@pytest.mark.usefixtures("workplace")
def test_an_output_that_cannot_be_is_told_before_anything_is_scored(capsys, monkeypatch, out):
    Path("afile").write_text("")
    monkeypatch.setattr("cuvee.cli.bench_run.run_suite", None)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "run", "pairs", "--quick", "--methods", "linear", "--out", out])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and ("where: afile" in said or "where: /proc" in said)
    assert "right: another --out FOLDER\n" in said


def test_all_of_a_suite_is_all_of_it_whatever_else_is_named():
    assert _asked(["lm", "lm/python,lm/python"], quick=True) == ({"lm": []}, [])
    assert _asked(["lm/python", "lm/cpp,lm/python"], quick=True) == ({"lm": ["python", "cpp"]}, [])
