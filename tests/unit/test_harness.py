"""lm-evaluation-harness on a live model: its numbers, and none of the traps that a search would fall into."""

from __future__ import annotations

import importlib
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_tasks import SUMS, model, nats_of, read_rows, save, write_rows, write_task, write_tasks, written_by

from cuvee.errors import CheckpointError, IncompatibleModels, NonFinite, ResourceError
from cuvee.evaluation.in_memory import in_memory
from cuvee.evaluation.kept_scores import KeptScores

pytest.importorskip("lm_eval", reason="pip install 'cuvee[eval]'")

from cuvee.evaluation import harness_tasks as finding
from cuvee.evaluation.harness import score
from cuvee.evaluation.harness_tasks import find_tasks
from cuvee.evaluation.live_model import live_model

pytestmark = pytest.mark.slow

ALL = ["pick", "write", "read"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    config = importlib.import_module("datasets.config")
    before = config.HF_DATASETS_CACHE
    config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: save(model(seed), folder / name) for seed, name in enumerate(["base", "expert"])}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("harness") / "tasks", model(0))


@pytest.fixture(scope="module")
def tasks(path):
    return find_tasks(ALL, include_path=path)


@pytest.fixture
def live(folders):
    return live_model(in_memory(folders["base"]))


@pytest.fixture
def expert(folders):
    return in_memory(folders["expert"]).tensors


def numbers(scores):
    return [(one.task, one.key, one.value, one.ids, one.items, one.margins) for one in scores]


def one_task(name, path, **options):
    return find_tasks([name], include_path=path, **options)


# ---- what the numbers are


def test_scores_are_what_the_model_itself_says(live, tasks, path):
    rows, base = read_rows(path), model(0)
    accuracy, by_length, written, bits = score(live, tasks)
    nats = np.array([[nats_of(base, row["question"], choice) for choice in row["choices"]] for row in rows])
    right = np.array([row["right"] for row in rows])
    assert accuracy.items == (nats.argmax(1) == right).tolist()
    assert 0 < accuracy.value < 1
    lengths = np.array([[len(choice) for choice in row["choices"]] for row in rows])
    assert by_length.items == ((nats / lengths).argmax(1) == right).tolist()
    others = np.where(np.eye(3, dtype=bool)[right], -np.inf, nats).max(1)
    assert accuracy.margins == pytest.approx(nats[np.arange(len(rows)), right] - others, abs=1e-4)
    assert written.items == [written_by(base, row["question"]) == row["answer"] for row in rows]
    assert written.value == 0.5
    short = [place for place, row in enumerate(rows) if len(row["text"]) < 48]
    assert [bits.items[place] for place in short] == pytest.approx(
        [-nats_of(base, "\0", rows[place]["text"]) / len(rows[place]["text"]) / math.log(2) for place in short],
        abs=1e-4,
    )
    assert (bits.metric, bits.higher_is_better, written.metric) == ("bits per byte", False, "exact answers")


def test_a_live_candidate_scores_what_the_harness_finds_for_its_folder(live, tasks, folders, expert, path):
    import lm_eval

    live.fill(expert)
    with finding.quietly():
        manager = lm_eval.tasks.TaskManager(include_path=str(path), include_defaults=False)
        theirs = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": folders["expert"], "dtype": "auto"},
            tasks=ALL,
            task_manager=manager,
            batch_size=4,
            device="cpu",
            bootstrap_iters=0,
        )
    for one in score(live, tasks):
        assert one.value == theirs["results"][one.task][one.key]
        assert one.n == len(SUMS)


def test_a_group_is_the_mean_of_its_tasks(live, path):
    found = {(one.task, one.key): one for one in score(live, one_task("both", path))}
    group = found["both", "acc,none"]
    assert (group.value, group.n) == (found["pick", "acc,none"].value, len(SUMS))
    assert ("both", "exact_match,none") not in found


def test_fewer_items_are_the_first_of_all_with_the_same_examples(live, path):
    tasks = one_task("pick", path, num_fewshot=1)
    whole, first = score(live, tasks)[0], score(live, tasks, limit=5)[0]
    assert first.ids == whole.ids[:5] == [0, 1, 2, 3, 4]
    assert first.margins == pytest.approx(whole.margins[:5], abs=1e-4)
    assert (first.num_fewshot, whole.n) == (1, len(SUMS))


def test_items_cut_on_the_left_are_told(live, path):
    assert not score(live, one_task("pick", path))[0].is_cut
    assert score(live, one_task("pick", path, num_fewshot=12))[0].is_cut


# ---- traps


def test_another_candidate_gets_its_own_answers(live, tasks, folders, expert):
    before = numbers(score(live, tasks))
    live.fill(expert)
    after = numbers(score(live, tasks))
    assert after != before
    assert after == numbers(score(live_model(in_memory(folders["expert"])), tasks))
    live.fill(in_memory(folders["base"]).tensors)
    assert numbers(score(live, tasks)) == before


def test_items_have_their_true_ids_in_whatever_order_they_are_asked_for(live, tasks):
    whole = {one.key: one for one in score(live, tasks)}
    for one in score(live, tasks, items={"pick": [20, 3, 3, 11]}):
        if one.task == "pick":
            assert one.ids == [3, 11, 20]
            assert one.margins == pytest.approx([whole[one.key].margins[place] for place in one.ids], abs=1e-4)
            assert one.items == [whole[one.key].items[place] for place in one.ids]
        else:
            assert one.n == len(SUMS)


@pytest.mark.parametrize("items", [[], [-1], [len(SUMS)]])
def test_items_that_there_are_not_are_refused(live, tasks, items):
    with pytest.raises(ValueError, match=r"0 to 31"):
        score(live, tasks, items={"pick": items})


def test_scoring_leaves_the_draws_of_the_process_alone(live, path):
    write_task(path, "sampled", SAMPLED)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    wanted = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    tasks = one_task("sampled", path)
    answers = [numbers(score(live, tasks)) for _ in range(2)]
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == wanted
    assert answers[0] == answers[1]


SAMPLED = """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: true, temperature: 1.0}
metric_list:
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
"""


def test_examples_are_the_same_for_every_candidate(live, path):
    tasks = one_task("pick", path, num_fewshot=1)
    first = numbers(score(live, tasks))
    assert numbers(score(live, tasks)) == first


def test_memory_that_runs_out_halves_the_batch(live, path, monkeypatch):
    tasks, room = one_task("pick", path), 2
    wanted = numbers(score(live_with(live, batch=2), tasks))
    forward = type(live.module).forward

    def small(self, input_ids, **options):
        if len(input_ids) > room:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, input_ids, **options)

    monkeypatch.setattr(type(live.module), "forward", small)
    assert numbers(score(live_with(live, batch=8), tasks)) == wanted
    assert live.lm.batch_size_per_gpu == 2
    room = 0
    with pytest.raises(ResourceError, match="one sequence of pick"):
        score(live, tasks)


def live_with(live, batch):
    live.lm.batch_size_per_gpu = batch
    return live


def test_code_of_the_model_runs_only_where_it_may(live, path):
    write_task(path, "code", "unsafe_code: true\n" + SAMPLED)
    tasks = one_task("code", path)
    with pytest.raises(ResourceError, match="runs code that the model writes"):
        score(live, tasks)
    assert score(live, tasks, run_unsafe_code=True, limit=1)[0].n == 1


def test_a_task_that_fails_says_so_in_one_sentence(live, path):
    write_task(path, "long", SAMPLED.replace("max_gen_toks: 3", "max_gen_toks: 48"))
    with pytest.raises(ResourceError, match=r"the task long cannot be scored: .*48.*"):
        score(live, one_task("long", path))


def test_progress_counts_answers(live, tasks):
    told = []
    score(live, tasks, limit=4, progress=lambda *one: told.append(one))
    assert [one for one in told if one[1] == one[2]] == [("pick", 12, 12), ("write", 4, 4), ("read", 4, 4)]


# ---- tensors in place


def test_candidates_are_written_in_place_and_nothing_adds_up(live, folders, expert):
    places = {name: tensor.data_ptr() for name, tensor in live.module.state_dict().items()}
    base, digest = in_memory(folders["base"]).tensors, live.digest
    for _ in range(20):
        live.fill(expert, "expert")
        assert (live.digest != digest, live.label) == (True, "expert")
        live.fill(base)
    assert live.digest == digest
    assert {name: tensor.data_ptr() for name, tensor in live.module.state_dict().items()} == places
    assert not any(live.module.state_dict()[name].data_ptr() == tensor.data_ptr() for name, tensor in base.items())


def test_a_module_fills_another(live, folders):
    live.fill(live_model(in_memory(folders["expert"])).module)
    assert live.digest == live_model(in_memory(folders["expert"])).digest


@pytest.mark.parametrize(
    ("harm", "kind", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), IncompatibleModels, "lacks tensor 'model.norm.weight'"),
        (lambda t: t.update({"strange": torch.ones(1)}), IncompatibleModels, "has a strange tensor 'strange'"),
        (lambda t: t.update({"lm_head.weight": torch.ones(3, 3)}), IncompatibleModels, r"\(3, 3\)"),
        (lambda t: t["model.norm.weight"].fill_(math.nan), NonFinite, "'model.norm.weight' holds NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_none_is_written(live, expert, harm, kind, words):
    before, harmed = live.digest, {name: tensor.clone() for name, tensor in expert.items()}
    harm(harmed)
    with pytest.raises(kind, match=words):
        live.fill(harmed)
    live.fill({name: tensor.clone() for name, tensor in live.module.state_dict().items()})
    assert live.digest == before


def test_tied_tensors_are_written_once(folders, expert):
    one = in_memory(folders["base"])
    tensors = {name: tensor for name, tensor in one.tensors.items() if name != "lm_head.weight"}
    tied = live_model(type(one)("tied", tensors, {**one.config, "tie_word_embeddings": True}, one.sidecars))
    embeddings = expert["model.embed_tokens.weight"]
    without_head = {name: tensor for name, tensor in expert.items() if name != "lm_head.weight"}
    tied.fill(without_head)
    digest = tied.digest
    tied.fill({**without_head, "lm_head.weight": embeddings.clone()})
    assert tied.digest == digest
    assert torch.equal(tied.module.lm_head.weight, embeddings)
    with pytest.raises(IncompatibleModels, match="are tied in the live model"):
        tied.fill(expert)
    assert torch.equal(tied.module.lm_head.weight, embeddings)


def test_candidates_are_rounded_once_to_the_dtype_of_the_live_model(folders, expert):
    one = in_memory(folders["base"])
    half = {name: tensor.bfloat16() for name, tensor in one.tensors.items()}
    live = live_model(type(one)("half", half, {**one.config, "dtype": "bfloat16"}, one.sidecars))
    live.fill(expert)
    assert all(torch.equal(tensor, expert[name].bfloat16()) for name, tensor in live.module.state_dict().items())


def test_what_is_no_language_model_is_named(folders):
    one = in_memory(folders["base"])
    for config, words in [
        (None, "no config.json"),
        ({"model_type": "nonsense"}, "cannot use config.json"),
        ({"model_type": "vit"}, "write no text"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            live_model(type(one)("it", one.tensors, config, one.sidecars))
    with pytest.raises(CheckpointError, match="no tokenizer"):
        live_model(type(one)("it", one.tensors, one.config))


def test_a_tokenizer_without_an_end_gets_one_of_its_own_tokens(folders, tmp_path, tasks):
    one = in_memory(folders["base"])
    sidecars = [beside for beside in one.sidecars if beside.name != "tokenizer_config.json"]
    live = live_model(type(one)("it", one.tensors, one.config, sidecars))
    assert "names no end of text" in live.notes[0]
    assert len(live.lm.tokenizer) == 256


# ---- kept by content


@pytest.fixture
def kept(tmp_path):
    scores = KeptScores(tmp_path / "scores.sqlite")
    yield scores
    scores.close()


@pytest.fixture
def asked(live, monkeypatch):
    """Count the calls of the module."""
    calls = []
    forward = type(live.module).forward
    monkeypatch.setattr(type(live.module), "forward", lambda *a, **o: (calls.append(1), forward(*a, **o))[1])
    return calls


def is_asked(asked, live, tasks, kept, **options):
    before = len(asked)
    found = numbers(score(live, tasks, kept=kept, **options))
    return len(asked) > before, found


def test_what_was_scored_is_not_scored_again(live, path, kept, asked):
    tasks = one_task("pick", path)
    first = is_asked(asked, live, tasks, kept)
    assert first[0]
    assert is_asked(asked, live, find_tasks(["pick", "write"], include_path=path), kept)[0]  # write
    assert is_asked(asked, live, one_task("pick", path), kept) == (False, first[1])
    live.module.model.norm.weight.data[0] = 1.5
    live.fill({name: tensor.clone() for name, tensor in live.module.state_dict().items()})
    assert is_asked(asked, live, tasks, kept)[0]


def test_other_items_examples_data_and_templates_are_scored_anew(folders, path, kept, asked, live, tmp_path):
    tasks = one_task("pick", path)
    assert is_asked(asked, live, tasks, kept)[0]
    assert is_asked(asked, live, tasks, kept, limit=3)[0]
    assert is_asked(asked, live, tasks, kept, items={"pick": [0, 1, 3]})[0]
    assert not is_asked(asked, live, tasks, kept, limit=3)[0]
    assert is_asked(asked, live, one_task("pick", path, num_fewshot=1), kept)[0]
    for template in ("{{ messages[0].content }}", "- {{ messages[0].content }}"):
        live.lm.tokenizer.chat_template = template
        live.key = template  # as live_model makes it of the tokenizer's files
        assert is_asked(asked, live, tasks, kept, chat_template=True)[0]
        assert not is_asked(asked, live, tasks, kept, chat_template=True)[0]


def test_edited_data_are_scored_anew(live, tmp_path, kept, asked):
    path = write_tasks(tmp_path / "tasks", model(0))
    assert is_asked(asked, live, one_task("pick", path), kept)[0]
    rows = read_rows(path)
    write_rows(path, [{**rows[0], "right": 2 - rows[0]["right"] // 2}, *rows[1:]])
    assert is_asked(asked, live, one_task("pick", path), kept)[0]
    assert not is_asked(asked, live, one_task("pick", path), kept)[0]


# ---- what cannot be had


def test_an_unknown_task_is_answered_with_the_nearest_name(path, monkeypatch):
    import lm_eval.tasks

    make = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **o: make(**{**o, "include_defaults": False}))
    with pytest.raises(ResourceError, match="no task 'pikc'") as error:
        one_task("pikc", path)
    assert error.value.right == "did you mean 'pick'?"
    (path / "broken.yaml").write_text("task: broken\n  output_type: [")
    with pytest.raises(ResourceError, match="cannot be read") as error:
        one_task("broken", path)
    assert error.value.where.endswith("broken.yaml")
    (path / "broken.yaml").unlink()
    assert list(one_task("p*", path).tasks) == ["pick"]
    with pytest.raises(ResourceError, match="no such folder"):
        one_task("pick", path / "nowhere")


@pytest.mark.parametrize("offline", [True, False])
def test_data_that_nobody_has_are_told_in_one_sentence(path, monkeypatch, offline):
    monkeypatch.setattr(finding, "hub_answers", lambda: False)
    text = "output_type: generate_until\ndoc_to_text: x\ndoc_to_target: y\n"
    (path / "far.yaml").write_text(f"task: far\ndataset_path: someone/something\ntest_split: test\n{text}")
    with pytest.raises(ResourceError, match=r"needs the data set 'someone/something', which is not in the cache"):
        one_task("far", path, offline=offline)
    text = (path / "pick.yaml").read_text().replace("rows.jsonl", "none.jsonl").replace("task: pick", "task: near")
    (path / "near.yaml").write_text(text)
    with pytest.raises(ResourceError, match=r"cannot be made: FileNotFoundError: .*none.jsonl"):
        one_task("near", path, offline=offline)


def test_without_the_extra_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ResourceError, match="needs lm_eval, which is not installed") as error:
        find_tasks(["pick"])
    assert "pip install 'cuvee[eval]'" in error.value.right


# ---- other architectures


def other_config(kind):
    import transformers

    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    }
    return {
        "experts one by one": lambda: transformers.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=4),
        "tied": lambda: transformers.GPT2Config(vocab_size=256, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "encoder and decoder": lambda: transformers.T5Config(
            vocab_size=256, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["experts one by one", "tied", "encoder and decoder"])
def test_tensors_as_they_are_stored_fill_the_module_that_transformers_makes_of_them(kind, folders, tmp_path, path):
    import transformers

    made = transformers.AutoModelForSeq2SeqLM if kind == "encoder and decoder" else transformers.AutoModelForCausalLM
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        with finding.quietly():
            made.from_config(other_config(kind)).save_pretrained(tmp_path / str(seed))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / str(seed) / name).write_bytes((Path(folders["base"]) / name).read_bytes())
        models.append(in_memory(tmp_path / str(seed)))
    live, wanted = (live_model(one) for one in models)
    assert live.digest != wanted.digest
    live.fill(models[1].tensors)
    assert live.digest == wanted.digest
    tasks = one_task("pick", path)
    assert numbers(score(live, tasks, limit=4)) == numbers(score(wanted, tasks, limit=4))
