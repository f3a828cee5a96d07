"""Suites of encoders on toy data: heads that never move, experts that gain, items that all share, data that does not leak."""

import dataclasses

import numpy as np
import pytest
import torch

import cuvee
from cuvee.evaluation import images, texts
from cuvee.evaluation.glyphs import GREEK, draw_signs
from cuvee.evaluation.suites import Corruption
from cuvee.evaluation.suites.encoders import EncoderTask, Labelled, prototypes, unlike
from cuvee.evaluation.suites.suite import silently
from cuvee.evaluation.suites.vision import FORMS, SUITE, SUITE_RESNET, build_vision
from cuvee.evaluation.texts import TextTask, split_texts
from cuvee.evaluation.training import Training

pytestmark = pytest.mark.slow

pytest.importorskip("transformers")


def bars(name, kind, across):
    """Bright bars at one of four places, across or down, in noise."""
    generator = torch.Generator().manual_seed(len(name))

    def side(count):
        labels = torch.arange(count) % 4
        pictures = torch.randint(0, 120, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            rows = picture[0] if across else picture[0].T
            rows[7 * label : 7 * label + 4] = 220
        return Labelled(pictures, labels)

    return EncoderTask(name, name, kind, 4, side(200), side(40), side(80))


TASKS = [
    bars("down", "base", False),
    bars("across", "expert", True),
    bars("both", "expert", True),
    bars("new", "unseen", False),
]


def small(network):
    name = "vision" if network == "vit" else "vision-resnet"
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 7,
    }
    form = FORMS[name, True]
    return dataclasses.replace(
        form,
        sizes=sizes if network == "vit" else {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]},
        base=Training(steps=40, learning_rate=1e-2, warmup=2),
        expert=Training(steps=30, learning_rate=3e-3, warmup=2),
        batch=16,
        glimpsed=(),
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices are small, and the threads of two test processes would wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def built(request, tmp_path_factory):
    suite = SUITE if request.param == "vit" else SUITE_RESNET
    return build_vision(suite, tmp_path_factory.mktemp("home"), 0, small(request.param), TASKS, silently)


def test_an_expert_gains_on_its_own_task(built):
    base = built.score(built.tensors(built.base), "across").value
    assert built.score(built.tensors(built.experts["across"]), "across").value > base + 0.02


def test_items_are_right_or_wrong_and_the_first_of_all(built):
    tensors = built.tensors(built.experts["both"])
    whole = built.score(tensors, "both")
    assert set(np.unique(whole.items)) <= {0.0, 1.0}
    assert np.array_equal(built.score(tensors, "both", limit=30).items, whole.items[:30])
    assert whole.n == 80
    assert built.score(tensors, "both", split="validation").n == 40


def test_a_merge_with_its_buffers_is_scored_in_memory(built):
    experts = [built.tensors(reference) for reference in built.experts.values()]
    merged = cuvee.merge_tensors("task_arithmetic", experts, built.tensors(built.base), weight=0.0)
    assert built.score(merged, "new").value == built.score(built.tensors(built.base), "new").value
    merged = cuvee.merge_tensors("ties", experts, built.tensors(built.base), weight=0.5, density=0.5)
    assert 0 <= built.score(merged, "across").value <= 1


@pytest.mark.parametrize("name", ["noise", "blur", "contrast", "rotation"])
def test_corruptions_are_the_same_for_all_and_harm(built, name):
    tensors = built.tensors(built.experts["across"])
    strong = Corruption(name, 5)
    assert np.array_equal(
        built.score(tensors, "across", corruption=strong).items, built.score(tensors, "across", corruption=strong).items
    )
    assert built.score(tensors, "across", corruption=strong).value <= built.score(tensors, "across").value + 0.05


def test_an_expert_loads_in_transformers(built):
    transformers = pytest.importorskip("transformers")
    loaded, info = transformers.AutoModel.from_pretrained(built.experts["across"], output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all("pooler" in name for name in info["missing_keys"])
    ours = built.tensors(built.experts["across"])
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items() if "pooler" not in name)


def test_a_head_of_prototypes_tells_clusters_apart():
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
    head = prototypes(features, torch.tensor([0, 0, 1, 1]), 2)
    logits = features @ head[:, :-1].T + head[:, -1]
    assert logits.argmax(1).tolist() == [0, 0, 1, 1]
    middle = torch.stack([features[:2].mean(0), features[2:].mean(0)]).mean(0)
    assert head[:, :-1] @ middle + head[:, -1] == pytest.approx([0, 0], abs=1e-5)


# --- Data -----------------------------------------------------------------------------------------------------------


def task_of(pairs):
    return TextTask("t", "T", lambda: iter(pairs))


def test_no_text_is_on_two_sides_and_classes_take_turns():
    pairs = [(label, f"{label} text number {i} of this kind") for label in "abc" for i in range(60)]
    sides = split_texts(task_of(pairs), train=60, validation=9, test=12)
    all_of = {name: [text for text, _ in getattr(sides, name)] for name in ("train", "validation", "test")}
    assert [len(one) for one in all_of.values()] == [60, 9, 12]
    assert len(set().union(*map(set, all_of.values()))) == 81
    assert [label for _, label in sides.test] == [0, 1, 2] * 4


def test_the_order_of_texts_does_not_matter_and_copies_count_once():
    pairs = [(label, f"{label} text number {i} of this kind") for label in "ab" for i in range(30)]
    assert split_texts(task_of(pairs), train=9, validation=4, test=8) == split_texts(
        task_of([*reversed(pairs), *pairs]), train=9, validation=4, test=8
    )


def test_a_text_of_two_classes_is_left_out():
    pairs = [("a", "the very same words in both"), ("b", "the very same words in both")]
    pairs += [(label, f"{label} text number {i} of this kind") for label in "ab" for i in range(10)]
    sides = split_texts(task_of(pairs), train=99, validation=2, test=2)
    assert not any("very same" in text for text, _ in (*sides.train, *sides.validation, *sides.test))


def test_a_small_class_keeps_texts_to_train_on():
    pairs = [(label, f"{label} text number {i} of this kind") for label in "ab" for i in range(10)]
    sides = split_texts(task_of(pairs), train=100, validation=50, test=50)
    assert len(sides.train) >= 10


def test_texts_that_belong_together_are_those_of_docstrings(monkeypatch):
    written = [f"Say what function {n} does in one sentence.\n\n{n} " + "and at great length " * 10 for n in range(30)]
    monkeypatch.setattr(texts, "_docstrings", lambda library: [*written, "Short.\n\nToo short."])
    firsts, rests = texts.matching_texts(20)
    assert len(set(firsts)) == len(rests) == 20
    assert all(first.split()[3] == rest.split()[0] for first, rest in zip(firsts, rests, strict=True))


def test_signs_are_scored_in_other_fonts_than_they_are_trained_in():
    pytest.importorskip("matplotlib")
    train, labels = draw_signs(GREEK, 48, held_out=False, seed=1)
    test, _ = draw_signs(GREEK, 48, held_out=True, seed=1)
    assert train.shape == (48, 28, 28)
    assert labels.tolist() == [*range(24), *range(24)]
    assert train.max() > 200
    assert not any(np.array_equal(one, other) for one in train for other in test)


def test_signs_are_drawn_once_and_kept(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path))
    first = images.GREEK.pictures("test", 30)
    images._drawn_signs.cache_clear()
    with monkeypatch.context() as broken:
        broken.setattr(images, "draw_signs", None)
        again = images.GREEK.pictures("test", 30)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    (kept,) = (tmp_path / "drawn").iterdir()
    kept.write_bytes(b"torn" + kept.read_bytes()[4:])
    images._drawn_signs.cache_clear()
    assert all(np.array_equal(one, other) for one, other in zip(first, images.GREEK.pictures("test", 30), strict=True))
    images._drawn_signs.cache_clear()


def test_examples_that_look_the_same_to_an_encoder_are_on_one_side():
    test = Labelled(torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([0, 1, 2]))
    train = Labelled(torch.tensor([[3, 4], [6, 5]]), torch.tensor([0, 0]))
    kept = unlike(test, train, Labelled(torch.tensor([[5, 6]]), torch.tensor([2])))
    assert kept.inputs.tolist() == [[1, 2]]
    assert kept.labels.tolist() == [0]
