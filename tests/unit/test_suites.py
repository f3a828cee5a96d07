"""What every suite promises: the same items for all, nothing on the disk, the base's shape, and models that learn."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import cuvee
from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import read_all
from cuvee.errors import IncompatibleModels, ResourceError
from cuvee.evaluation.byte_text import answers_by_window, exact_answers, novel, windows
from cuvee.evaluation.candidates import holding, skeleton
from cuvee.evaluation.domains import ENGLISH, EXPERTISE, UNSEEN, read_corpus, side_of
from cuvee.evaluation.fetched_domains import sums
from cuvee.evaluation.lora import adapter_config, adapter_tensors, with_lora
from cuvee.evaluation.model_folders import as_json, save_adapter, save_model
from cuvee.evaluation.suites import SUITES, Corruption, lm, suite
from cuvee.evaluation.suites.lm import SUITE, SUITE_LORA, Form, build_lm
from cuvee.evaluation.suites.suite import silently
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.evaluation.training import Training

FORM = Form(
    shape=Shape(hidden=32, intermediate=48, layers=2, heads=4, key_value_heads=2, context=16),
    base=Training(steps=30, learning_rate=4e-3, muon_rate=0.02, warmup=1),
    expert=Training(steps=20, learning_rate=4e-3, warmup=1),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices are small, and the threads of two test processes would wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpora():
    return {d.name: read_corpus(d, train_bytes=20_000, held_out_bytes=2_000) for d in (ENGLISH, *EXPERTISE, UNSEEN)}


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpora):
    return build_lm(SUITE, tmp_path_factory.mktemp("home"), 0, FORM, corpora, silently)


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("quick", [True, False])
def test_tasks_are_known_before_anything_is_made(name, quick):
    tasks = suite(name).tasks(quick=quick)
    if name == "pairs-chgnet":
        assert not tasks
        return
    assert all(task.name == key and (task.expert is not None) == (task.kind == "expert") for key, task in tasks.items())
    assert {"base", "expert"} <= {task.kind for task in tasks.values()}


def test_a_suite_that_is_made_has_the_tasks_that_its_form_lists(built):
    assert list(built.tasks.values()) == lm.tasks_of(FORM)


def test_fewer_items_are_the_first_of_all(built):
    tensors = built.tensors(built.base)
    whole = built.score(tensors, "python")
    assert whole.n > 10
    assert np.array_equal(built.score(tensors, "python", limit=10).items, whole.items[:10])
    assert not np.array_equal(built.score(tensors, "python", split="validation").items, whole.items)


def test_a_score_is_the_same_twice_and_leaves_the_tensors_alone(built):
    tensors = built.tensors(built.experts["yaml"])
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    assert built.score(tensors, "yaml").value == built.score(tensors, "yaml").value
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())


def test_a_merge_is_scored_in_memory(built):
    before = sorted(built.folder.rglob("*"))
    experts = [built.tensors(reference) for reference in built.experts.values()]
    merged = cuvee.merge_tensors("linear", experts, weight=1.0)
    assert built.score(merged, "cpp").value > 0
    assert sorted(built.folder.rglob("*")) == before


def test_an_expert_is_better_than_the_base_and_than_it_was_before(built):
    for name in built.experts:
        base = built.score(built.tensors(built.base), name).value
        weak = built.score(built.tensors(built.weaker[0.25][name]), name).value
        assert built.score(built.tensors(built.experts[name]), name).value < weak < base


def test_corrupted_text_is_harder_the_more_it_is_corrupted(built):
    tensors = built.tensors(built.experts["python"])
    scores = [built.score(tensors, "python", corruption=Corruption("noise", s)).value for s in (1, 5)]
    assert built.score(tensors, "python").value < scores[0] < scores[1]


def test_tensors_of_another_shape_are_refused(built):
    tensors = built.tensors(built.base)
    name = "model.norm.weight"
    with pytest.raises(IncompatibleModels, match=r"model.norm.weight.*\(3,\)"):
        built.score({**tensors, name: torch.zeros(3)}, "python")
    with pytest.raises(IncompatibleModels, match="lacks tensor 'model.norm.weight'"):
        built.score({key: tensor for key, tensor in tensors.items() if key != name}, "python")


def test_unknown_tasks_and_corruptions_suggest_the_nearest(built):
    with pytest.raises(ResourceError) as caught:
        built.score({}, "pyton")
    assert "python" in caught.value.right
    with pytest.raises(ResourceError, match="no corruption 'fog'"):
        built.score({}, "python", corruption=Corruption("fog", 1))


def test_another_seed_is_another_suite(tmp_path, corpora, built):
    short = replace(FORM, base=replace(FORM.base, steps=1), expert=replace(FORM.expert, steps=1))
    one, other = (build_lm(SUITE, tmp_path, seed, short, corpora, silently) for seed in (0, 1))
    assert one.key != other.key
    first = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one.tensors(one.base)[first], other.tensors(other.base)[first])


def test_two_builds_at_once_are_refused(tmp_path, corpora):
    def build_again(model, done, steps, note):
        with pytest.raises(ResourceError, match="another cuvee is writing"):
            build_lm(SUITE, tmp_path, 0, FORM, corpora, silently)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_lm(SUITE, tmp_path, 0, FORM, corpora, build_again)


def test_an_answer_counts_only_when_every_byte_of_it_is_the_likeliest():
    model = TinyLlama(FORM.shape, seed=3)
    prompt = torch.tensor([list(b"12+30=")])
    written = prompt
    with torch.inference_mode():
        for _ in range(3):
            written = torch.cat([written, model(written)[:, -1:].argmax(-1)], 1)
    wrong = written.clone()
    wrong[0, -1] = (wrong[0, -1] + 1) % 256
    is_answer = (torch.arange(9).expand(2, 9) >= 6).long()
    assert exact_answers(model, torch.cat([written, wrong]), is_answer).tolist() == [1, 0]


# --- Adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_adapter_learns_without_moving_the_base_and_is_read_as_what_was_trained(built, corpora):
    lora = build_lm(SUITE_LORA, built.folder.parent.parent.parent, 0, FORM, corpora, silently)
    assert lora.base == built.base
    assert lora.key != built.key
    base, expert = lora.tensors(lora.base), lora.tensors(lora.experts["yaml"])
    moved = {name for name in base if not torch.equal(base[name], expert[name])}
    assert moved == {name for name in base if "_proj" in name}
    assert torch.linalg.matrix_rank(expert[min(moved)] - base[min(moved)]) <= FORM.rank
    assert lora.score(expert, "yaml").value < lora.score(base, "yaml").value


def test_a_lora_model_computes_what_its_adapter_says(tmp_path):
    model = TinyLlama(FORM.shape, seed=1)
    save_model(model, tmp_path / "base")
    with_lora(model, rank=4, alpha=8, seed=2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    config = as_json(adapter_config(str(tmp_path / "base"), 4, 8))
    save_adapter(tmp_path / "adapter", adapter_tensors(model), config)
    opened = open_model(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    merged = TinyLlama(FORM.shape)
    merged.load_state_dict({name: read_all(source).reshape(source.shape) for name, source in opened.tensors.items()})
    tokens = torch.arange(16).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(merged(tokens), model(tokens), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(TinyLlama(FORM.shape, seed=1)(tokens), model(tokens))


@pytest.mark.slow
def test_adapters_are_those_of_peft(tmp_path, built, corpora):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    lora = build_lm(SUITE_LORA, built.folder.parent.parent.parent, 0, FORM, corpora, silently)
    base, _, adapter = lora.experts["yaml"].partition("+")
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    ours = holding(skeleton(TinyLlama(FORM.shape)), lora.tensors(lora.experts["yaml"]))
    tokens = torch.arange(16).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=1e-3, atol=1e-4)


# --- Sums -----------------------------------------------------------------------------------------------------------


def test_no_sum_is_trained_on_and_scored_nor_its_twin():
    by_side = {"train": set(), "validation": set(), "test": set()}
    for name, problems in sums():
        for problem in problems:
            question, _, answer = problem.partition("=")
            assert eval(question) == int(answer)  # noqa: S307 - digits and a sign
            one, sign, other = re.split(r"([+-])", question)
            by_side[side_of(name)] |= {question, other + sign + one}
    train, validation, test = by_side.values()
    assert min(map(len, by_side.values())) > 1000
    assert not train & test and not train & validation and not validation & test


def test_words_are_asked_for_after_their_first_two_letters_where_enough_stands_before(built):
    text = b"# about weights\n- name: weight\n  of layers, the rest\n"
    asked = _answers(text, 16, rb"\b\w\w(\w{2,}\W)")
    # "about" stands too early, and "rest" goes on beyond the third window
    assert asked == [[b"ights\n"], [b"ight\n"], [b"yers,"]]
    found = built.score(built.tensors(built.experts["yaml"]), "words")
    assert found.n > 20
    assert found.higher_is_better
    assert ((found.items >= 0) & (found.items <= 1)).all()
    assert built.tasks["words"].expert == "yaml"


def test_a_passage_of_several_answers_scores_their_share():
    model = TinyLlama(FORM.shape, seed=3)
    written = torch.tensor([list(b"12+30=")])
    with torch.inference_mode():
        for _ in range(6):
            written = torch.cat([written, model(written)[:, -1:].argmax(-1)], 1)
    answers = torch.tensor([[0] * 6 + [1, 1, 2, 2, 3, 3]])
    assert exact_answers(model, written, answers).tolist() == [1]
    written = written.clone()
    written[0, -1] = (written[0, -1] + 1) % 256
    assert exact_answers(model, written, answers).tolist() == pytest.approx([2 / 3])


def test_every_sum_of_a_window_is_asked_for_but_those_at_its_beginning():
    text = b"".join(b"%d+%d=%d\n%d-%d=%d\n" % (n, n + 1, 2 * n + 1, n, n + 1, -1) for n in range(10, 30))
    asked = _answers(text, 48, rb"^\d+-\d+=(-?\d+\n)")
    assert {answer for window in asked for answer in window} == {b"-1\n"}
    assert min(map(len, asked)) >= 2


def _answers(text, context, problem):
    """The answers of each window, in order."""
    both = zip(windows(text, context), answers_by_window(text, context, problem), strict=True)
    return [[bytes(p[a == k].tolist()) for k in range(1, int(a.max()) + 1)] for p, a in both]


# --- What is known from training ------------------------------------------------------------------------------------


def test_a_passage_is_novel_unless_64_of_its_bytes_in_a_row_were_read():
    text = bytes(torch.randint(0, 256, (1000,), generator=torch.Generator().manual_seed(0)).tolist())
    filler = bytes(range(200, 256)) * 2

    def passage(shared):
        return (filler[:10] + text[300 : 300 + shared] + filler)[:100]

    passages = torch.tensor([list(passage(shared)) for shared in (0, 63, 64, 90)])
    assert novel(passages, [b"short", text]).tolist() == [True, True, False, False]
    assert novel(passages, [text[:363], text[301:]]).tolist() == [True, True, True, False]
    assert novel(passages[:, :20], [text]).all()


def test_no_window_is_scored_that_a_model_has_read(tmp_path, corpora):
    form = replace(
        FORM,
        shape=replace(FORM.shape, context=64),
        base=replace(FORM.base, steps=1),
        expert=replace(FORM.expert, steps=1),
    )
    yaml = corpora["yaml"]
    whole, known = (
        build_lm(SUITE, tmp_path, 0, form, {**corpora, "yaml": replace(yaml, train=train)}, silently)
        for train in (b"nothing " * 100, yaml.train + yaml.test[640 : 640 + 65])
    )
    for task in ("yaml", "words"):
        counts = [built.score(built.tensors(built.base), task).n for built in (whole, known)]
        assert 0 < counts[1] < counts[0]
