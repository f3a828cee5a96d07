"""The demo: text split without overlap, trainings that are whole or not there, true folders, scores that mean something."""

import contextlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import cuvee
from cuvee.checkpoints import fs
from cuvee.errors import ResourceError
from cuvee.evaluation import demo, training
from cuvee.evaluation.byte_text import Portion, bits_of_windows, passage_loss, windows
from cuvee.evaluation.chart import draw
from cuvee.evaluation.domains import ENGLISH, EXPERTISE, UNSEEN, Document, Domain, read_corpus, side_of
from cuvee.evaluation.model_folders import is_model, load_model, save_model
from cuvee.evaluation.muon import orthogonalized
from cuvee.evaluation.scoring import Row, ScoreBoard, recovered
from cuvee.evaluation.suites import BASE
from cuvee.evaluation.suites.lm import SUITE, Form, build_lm
from cuvee.evaluation.suites.suite import silently
from cuvee.evaluation.tables import as_json, as_markdown, as_table
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.evaluation.training import Training, train
from cuvee.recipes import load_recipe

SMALL = Shape(hidden=32, intermediate=48, layers=2, heads=4, key_value_heads=2, context=16)
RECIPES = sorted(demo.EXAMPLES.glob("*.yml"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the demo trains; the threads of two test processes would wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpora():
    return {d.name: read_corpus(d, train_bytes=20_000, held_out_bytes=2_000) for d in (ENGLISH, *EXPERTISE, UNSEEN)}


def domain(*texts):
    return Domain("d", "D", "a test", lambda: [Document(name, lambda text=text: text) for name, text in texts])


def build_small(home, corpora, progress=silently, steps=3):
    base = Training(steps=steps, learning_rate=4e-3, muon_rate=0.02, warmup=1)
    expert = Training(steps=steps, learning_rate=4e-3, warmup=1)
    return build_lm(SUITE, home, 0, Form(shape=SMALL, base=base, expert=expert), corpora, progress)


# --- Text -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [d.name for d in (ENGLISH, *EXPERTISE, UNSEEN)])
def test_no_document_is_on_two_sides(corpora, name):
    corpus = corpora[name]
    for side, names in corpus.names.items():
        assert names
        assert {side_of(one) for one in names} == {side}
    for held_out in (corpus.validation, corpus.test):
        assert not any(passage in corpus.train for passage in held_out.split(b"\n\n") if len(passage) > 200)


def test_a_copied_document_is_read_once():
    texts = [(f"file{i}", f"{i} ".encode() * 100) for i in range(60)]
    corpus = read_corpus(domain(*texts, *((name + "-copy", text) for name, text in texts)))
    assert sum(map(len, corpus.names.values())) == 60


def test_a_domain_without_text_says_so():
    with pytest.raises(ResourceError, match="no text for the domain 'd'"):
        read_corpus(domain(("short", b"too short")))


def test_the_split_does_not_depend_on_the_order_of_files():
    texts = [(f"file{i}", f"{i} ".encode() * 100) for i in range(60)]
    assert read_corpus(domain(*texts)).train == read_corpus(domain(*reversed(texts))).train


# --- Model and training ---------------------------------------------------------------------------------------------


def test_a_saved_folder_gives_the_same_logits_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = TinyLlama(Shape(), seed=3)
    save_model(model, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "élan\n\x00 U+3042 あ"
    tokens = torch.tensor([tokenizer(text)["input_ids"]])
    assert tokens[0].tolist() == list(text.encode())
    assert tokenizer.decode(tokens[0]) == text
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)
        assert torch.equal(load_model(tmp_path / "m")(tokens), model(tokens))


def trained(steps, seed=0, text=bytes(range(256)) * 4, passages=4, on_step=lambda done, loss: None, snapshot=None):
    model = TinyLlama(SMALL)
    training = Training(steps=steps, learning_rate=1e-2, muon_rate=0.02, seed=seed)
    train(model, passage_loss(model, [Portion(text, passages)], seed), training, on_step=on_step, snapshot=snapshot)
    return model.model.layers[0].mlp.up_proj.weight


def test_same_seed_same_weights_and_another_seed_others():
    assert torch.equal(trained(4, seed=1), trained(4, seed=1))
    assert not torch.equal(trained(4, seed=1), trained(4, seed=2))


def test_training_lowers_the_loss():
    losses = []
    trained(60, text=b"the quick brown fox " * 20, passages=8, on_step=lambda done, loss: losses.append(loss))
    assert losses[0] == pytest.approx(8 * math.log(2), abs=0.2)
    assert losses[-1] < 2 * math.log(2)


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    def stop_at_six(done, loss):
        if done == 6:
            raise KeyboardInterrupt

    done_again = []
    monkeypatch.setattr(training, "_SNAPSHOT_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(9, on_step=stop_at_six, snapshot=tmp_path / "state")
    resumed = trained(9, on_step=lambda done, loss: done_again.append(done), snapshot=tmp_path / "state")
    assert done_again == [7, 8, 9]
    assert torch.equal(resumed, trained(9))


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalized(torch.randn(*shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5
    assert values.max() < 1.3


# --- Whole or not there ---------------------------------------------------------------------------------------------


def test_an_interrupted_training_leaves_no_model_and_the_next_one_trains_only_what_is_missing(tmp_path, corpora):
    def interrupt(model, done, steps, note):
        if model != BASE and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_small(tmp_path, corpora, interrupt)
    (folder,) = (tmp_path / "suites" / "lm").iterdir()
    assert [path.name for path in folder.iterdir() if "-after-" not in path.name and path.is_dir()] == [BASE]
    told = []
    built = build_small(tmp_path, corpora, lambda model, done, steps, note: told.append((model, steps)))
    assert (BASE, 0) in told
    assert (BASE, 3) not in told
    assert all(is_model(built.folder / name) for name in (BASE, *built.experts))


def test_an_interrupted_save_is_not_taken_for_a_model(tmp_path, monkeypatch):
    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fs, "rename", killed)
        save_model(TinyLlama(SMALL), tmp_path / "m")
    assert not is_model(tmp_path / "m")
    assert [path for path in tmp_path.iterdir() if path.is_dir()]
    save_model(TinyLlama(SMALL), tmp_path / "m")
    assert is_model(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_other_text_makes_other_models(tmp_path, corpora):
    one = build_small(tmp_path, corpora, steps=1)
    changed = {**corpora, "yaml": replace(corpora["yaml"], test=b"something else")}
    assert build_small(tmp_path, changed, steps=1).folder != one.folder


# --- Scores ---------------------------------------------------------------------------------------------------------


def board():
    return ScoreBoard(
        {"english": "English", "python": "Python", "cpp": "C++"},
        [
            Row("base", "base", {"english": 2.0, "python": 4.0, "cpp": 5.0}),
            Row("python", "expert", {"english": 2.0, "python": 3.0, "cpp": 5.5}),
            Row("cpp", "expert", {"english": 2.5, "python": 4.0, "cpp": 3.0}),
            Row("poor", "merge", {"english": 3.0, "python": 5.0, "cpp": 5.0}),
            Row("good", "merge", {"english": 2.0, "python": 3.25, "cpp": 4.5}),
        ],
    )


def test_the_base_has_nothing_and_an_expert_all_of_its_own_gain():
    assert recovered(4.0, 3.0, 4.0) == 0
    assert recovered(4.0, 3.0, 3.0) == 1
    assert recovered(4.0, 3.0, 4.5) == -0.5


def test_normalised_score_is_the_mean_share_of_the_experts_gains():
    scores = board()
    best, worst = scores.merges
    assert (best.name, worst.name) == ("good", "poor")
    assert scores.recovered(best) == {"python": 0.75, "cpp": 0.25}
    assert scores.normalised(best) == 0.5
    assert scores.normalised(worst) == -0.5
    assert scores.normalised(scores.base) == 0
    assert scores.normalised(scores.experts["python"]) == pytest.approx((1 - 0.25) / 2)


def test_an_expert_that_learned_nothing_is_an_error():
    with pytest.raises(ResourceError, match="learned nothing"):
        recovered(3.0, 3.0, 2.0)


def test_a_model_that_knows_nothing_needs_eight_bits_a_byte():
    model = TinyLlama(SMALL)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert bits_of_windows(model, windows(bytes(range(256)), 16)) == pytest.approx([8] * 15)


def test_bits_per_byte_are_those_of_whole_windows():
    model = TinyLlama(SMALL, seed=5)
    text = bytes(range(100, 149))  # three windows of 16 bytes, each byte but the first predicted once
    parts = [torch.tensor([list(text[start : start + 17])]) for start in (0, 16, 32)]
    with torch.inference_mode():
        expected = [model.loss(part).item() / math.log(2) for part in parts]
    assert bits_of_windows(model, windows(text, 16)) == pytest.approx(expected)


def test_tables_say_the_same_numbers(tmp_path):
    scores = board()
    lines = as_markdown(scores).splitlines()
    assert lines[0] == "| model | English | Python | C++ | normalised |"
    assert lines[5] == "| good | 2.00 | 3.25 | 4.50 | **50 %** |"
    assert lines[6] == "| poor | 3.00 | 5.00 | 5.00 | −50 % |"
    assert as_table(scores).row_count == 5
    models = json.loads(as_json(scores, seconds={"train": 1.0}))["models"]
    assert [model["normalised"] for model in models if model["kind"] == "merge"] == [0.5, -0.5]
    draw(scores, tmp_path)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


# --- Recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_example_begins_with_what_it_is_and_names_the_demos_models(path):
    assert path.read_text().startswith("# ")
    recipe = load_recipe(path)
    names = {one.model.removeprefix("examples/models/") for one in recipe.models}
    assert names <= {BASE, *(d.name for d in EXPERTISE)}


@pytest.mark.slow
def test_every_example_merges_and_is_scored(tmp_path, corpora, monkeypatch):
    examples = tmp_path / "clone" / "examples"
    shutil.copytree(demo.EXAMPLES, examples, ignore=shutil.ignore_patterns("models"))
    monkeypatch.setattr(demo, "EXAMPLES", examples)
    built = build_small(tmp_path / "home", corpora, steps=12)
    console = Console(quiet=True)
    merged = demo._merge_all(console, built, demo._recipes(), tmp_path / "merged")
    assert len(merged) == len(RECIPES) >= 5
    scores = demo._score_all(console, built, merged)
    assert len(scores.rows) == 1 + len(EXPERTISE) + len(merged)
    assert scores.normalised(scores.base) == 0
    with contextlib.chdir(examples.parent):
        cuvee.merge("examples/ties.yml", "out")
    assert is_model(examples.parent / "out")
