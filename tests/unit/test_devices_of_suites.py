"""Suites on a GPU, without one: tensors that meet lie on one device, and nothing is left to chance while they do."""

import dataclasses
import threading
from contextlib import contextmanager

import pytest
import test_encoder_suites as toys
import test_suites as words
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cuvee.errors import ResourceError
from cuvee.evaluation import devices
from cuvee.evaluation.ani import Ani
from cuvee.evaluation.devices import marks, repeatable
from cuvee.evaluation.domains import ENGLISH, EXPERTISE, UNSEEN, read_corpus
from cuvee.evaluation.suites import Corruption, encoders, lm, making, pairs, suite, vision
from cuvee.evaluation.suites.suite import silently
from cuvee.evaluation.training import Training

pytestmark = pytest.mark.slow

pytest.importorskip("transformers")
FAR = "meta"
"""A device that every build of torch has, whose tensors hold nothing."""
SHORT = Training(steps=2, learning_rate=1e-3, muon_rate=1e-2, warmup=1)


class Apart(TorchDispatchMode):
    """Refuses operations on tensors of two devices, also where torch lets them pass, and far ones that may differ from
    run to run; counts the far ones."""

    _between = ("aten._to_copy.default", "aten.copy_.default", "aten.detach.default")

    def __init__(self):
        super().__init__()
        self.far = 0

    def __torch_dispatch__(self, operation, types, arguments=(), parameters=None):
        given = [one for one in tree_leaves((arguments, parameters or {})) if isinstance(one, torch.Tensor)]
        found = {one.device.type for one in given if one.dim()}
        if FAR in found and str(operation) not in self._between:
            assert devices._inside, f"{operation} where torch may do as it likes"
            self.far += 1
        if len(found) > 1 and str(operation) not in self._between:
            raise AssertionError(f"{operation} of tensors on {found}")
        return operation(*arguments, **(parameters or {}))


@pytest.fixture
def watch(monkeypatch):
    """Watch all that is trained, and let far tensors come back as zeros."""
    mode = Apart()

    def near(tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def watched(work):
        def done(*arguments, **parameters):
            with mode:
                return work(*arguments, **parameters)

        return done

    item, cpu = torch.Tensor.item, torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "item", lambda one: 0.0 if one.device.type == FAR else item(one))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: near(one) if one.device.type == FAR else cpu(one))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "far away")
    monkeypatch.setattr(making, "train", watched(making.train))
    monkeypatch.setattr(
        encoders, "each_on_a_core", lambda work, items: [watched(work)(one, lambda: None) for one in items]
    )
    monkeypatch.setattr(devices, "_set", lambda *flags: None)
    return mode


@pytest.fixture(scope="module")
def corpora():
    return {d.name: read_corpus(d, train_bytes=20_000, held_out_bytes=2_000) for d in (ENGLISH, *EXPERTISE, UNSEEN)}


def scored(mode, built, names, corruption):
    """Score zeros on tasks, plain and shifted, all of it watched."""
    mode.far = 0
    tensors = built.tensors(built.base)
    with mode:
        for name in names:
            assert built.score(tensors, name, limit=8).n == 8
            assert built.score(tensors, name, limit=8, corruption=corruption).n == 8
    return mode.far


@pytest.mark.parametrize(
    "made", [pytest.param(lm.SUITE, marks=pytest.mark.slow), lm.SUITE_LORA], ids=["in full", "adapters"]
)
def test_language_models_are_trained_and_scored_on_one_device(watch, tmp_path, corpora, made):
    form = dataclasses.replace(words.FORM, base=SHORT, expert=SHORT, lora=SHORT, held_out_bytes=2_000)
    built = lm.build_lm(made, tmp_path, 0, form, corpora, silently, FAR)
    assert watch.far > 1000
    assert scored(watch, built, ["yaml", "english"], Corruption("noise", 1)) > 100


@pytest.mark.parametrize("network", [pytest.param("vit", marks=pytest.mark.slow), "resnet"])
def test_encoders_are_trained_and_scored_on_one_device(watch, tmp_path, network):
    form = dataclasses.replace(toys.small(network), base=SHORT, expert=SHORT)
    built = vision.build_vision(vision.SUITE, tmp_path, 0, form, toys.TASKS, silently, FAR)
    assert watch.far > 1000
    assert scored(watch, built, ["across", "new"], Corruption("rotation", 1)) > 100


def test_atoms_are_scored_on_one_device(watch):
    scorer = pairs._Scorer(pairs._Sizes(1, 1), FAR)
    tensors = Ani().state_dict()
    scorer._surroundings["test", "calm"] = {"water": torch.zeros(1, 3, 384, device=FAR)}
    with watch, repeatable(FAR), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "MOLECULES", {"water": pairs.MOLECULES["water"]})
        patch.setattr(pairs, "network", lambda family, member: tensors)
        assert scorer(tensors, pairs.Task("ccx", "", "expert", ""), "test", None, None).shape == (1,)
    assert watch.far > 10


def test_the_device_is_a_part_of_the_key(watch, tmp_path, corpora):
    form = dataclasses.replace(words.FORM, base=SHORT, expert=SHORT)
    near, far = (lm.build_lm(lm.SUITE, tmp_path, 0, form, corpora, silently, device) for device in ("cpu", FAR))
    assert near.key != far.key
    assert marks("cpu") == ()
    assert marks("cuda:1") == ("cuda", "far away")


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there_is_refused_in_a_sentence(device, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"no CUDA device|no device 'tpu'") as caught:
        suite("lm").build(tmp_path, quick=True, device=device)
    assert "cpu" in caught.value.right
    assert not list(tmp_path.iterdir())


@contextmanager
def left_alone():
    before = devices._flags()
    yield
    assert devices._flags() == before


def test_nothing_is_left_to_chance_while_anybody_is_at_work(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.allow_tf32 = True
    inside, leave = threading.Event(), threading.Event()

    def other():
        with repeatable("cuda"):
            inside.set()
            leave.wait(10)

    with left_alone():
        with repeatable("cuda"):
            thread = threading.Thread(target=other)
            thread.start()
            assert inside.wait(10)
        assert devices._flags() == (True, False, False, False)  # the other is still at work
        leave.set()
        thread.join()
    with left_alone(), repeatable("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("made", ["lm", "lm-lora", "vision", "vision-resnet"])
def test_a_gpu_trains_and_scores_the_same_bits_twice(tmp_path, corpora, made):
    found = []
    for home in (tmp_path / "one", tmp_path / "two"):
        if made.startswith("lm"):
            built = lm.build_lm(suite(made), home, 0, words.FORM, corpora, silently, "cuda")
        else:
            form = toys.small("resnet" if made.endswith("resnet") else "vit")
            built = vision.build_vision(suite(made), home, 0, form, toys.TASKS, silently, "cuda")
        models = [built.tensors(one) for one in (built.base, *built.experts.values())]
        scores = [built.score(models[0], task).items.tolist() for task in built.tasks]
        found.append((models, scores))
    (models, scores), (again, scores_again) = found
    assert scores == scores_again
    for one, other in zip(models, again, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
