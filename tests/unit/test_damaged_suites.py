"""What was made and is damaged since: told with the file and the command, made again to the same bytes, never scored."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cuvee.errors import CheckpointError, IncompatibleModels
from cuvee.evaluation import training
from cuvee.evaluation.damage import digests_file, keep_digests, kept_digests, need_whole
from cuvee.evaluation.suites import BASE, lm, making
from cuvee.evaluation.suites.lm import SUITE, SUITE_LORA, read_corpora
from cuvee.evaluation.tiny_llama import Shape
from cuvee.evaluation.training import Training

pytestmark = pytest.mark.slow

FORM = lm.Form(
    shape=Shape(hidden=16, intermediate=24, layers=1, heads=2, key_value_heads=1, context=16),
    expertise=lm.QUICK.expertise[:2],
    base=Training(steps=4, learning_rate=4e-3, muon_rate=0.02, warmup=1),
    expert=Training(steps=4, learning_rate=4e-3, warmup=1),
    lora=Training(steps=4, learning_rate=4e-3, warmup=1),
    train_bytes=4_000,
    held_out_bytes=600,
)


@pytest.fixture(scope="module")
def corpora():
    return read_corpora(FORM)


@pytest.fixture
def quickly(tmp_path, monkeypatch, corpora):
    """Build the suite, small, in a home of its own."""
    monkeypatch.setattr(lm, "QUICK", FORM)
    monkeypatch.setattr(lm, "read_corpora", lambda form: corpora)
    torch.set_num_threads(1)
    return lambda suite=SUITE, **how: suite.build(tmp_path, quick=True, **how)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def lose_a_tensor(file):
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file)


def gone(place):
    shutil.rmtree(place) if place.is_dir() else place.unlink()


DAMAGES = [
    ("python/model.safetensors", cut),
    ("python/model.safetensors", flip),
    ("python/model.safetensors", lose_a_tensor),
    ("python/model.safetensors", gone),
    ("python/config.json", gone),
    ("python/config.json", flip),
    ("python-after-25/model.safetensors", flip),
    ("base/model.safetensors", flip),
]


@pytest.mark.parametrize(("file", "harm"), DAMAGES)
def test_damage_is_told_and_mended_to_the_same_bytes(quickly, file, harm):
    folder = quickly().folder
    before = contents(folder)
    harm(folder / file)
    with pytest.raises(CheckpointError) as refused:
        quickly()
    assert refused.value.where == str(folder / file)
    assert refused.value.right == "cuvee bench build lm --quick, which makes it again"
    told = []
    quickly(mend=True, progress=lambda model, done, steps, note: told.append((model, done)))
    assert contents(folder) == before
    made = {model for model, done in told if done}
    assert made == {file.partition("/")[0].partition("-")[0]}
    quickly()


@pytest.mark.parametrize("name", ["cpp", "cpp-after-25"])
def test_a_model_that_is_gone_is_made_without_a_word(quickly, name):
    folder = quickly().folder
    before = contents(folder)
    gone(folder / name)
    quickly()
    assert contents(folder) == before


def test_an_adapter_is_looked_at_too(quickly):
    folder = quickly(SUITE_LORA).folder
    flip(folder / "cpp-lora" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        quickly(SUITE_LORA)
    assert "cpp-lora" in refused.value.where and "cuvee bench build lm-lora --quick" in refused.value.right
    quickly(SUITE_LORA, mend=True)
    quickly(SUITE_LORA)
    quickly(SUITE)  # they share the base


def test_the_command_makes_that_very_suite(quickly):
    folder = quickly(seed=2).folder
    cut(folder / "cpp" / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        quickly(seed=2)
    assert refused.value.right == "cuvee bench build lm --quick --seeds 3, which makes it again"


def without_digests(folder):
    for path in folder.glob(".*.digests.json"):
        path.unlink()


def test_models_from_before_digests_were_kept_are_taken_as_they_are_and_watched_from_then_on(quickly):
    folder = quickly().folder
    before = contents(folder)
    without_digests(folder)
    told = []
    quickly(progress=lambda model, done, steps, note: told.append(steps))
    assert set(told) == {0}
    assert contents(folder) == before  # with the digests
    flip(folder / "cpp" / "model.safetensors")
    with pytest.raises(CheckpointError, match="bytes are not those that were made"):
        quickly()


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("cpp/model.safetensors", cut),
        ("cpp/model.safetensors", lose_a_tensor),
        ("cpp/model.safetensors", gone),
        ("cpp/config.json", gone),
        ("cpp/config.json", lambda file: file.write_text("{")),
        ("base/model.safetensors", lose_a_tensor),
    ],
)
def test_of_those_the_form_is_looked_at(quickly, file, harm):
    folder = quickly().folder
    without_digests(folder)
    harm(folder / file)
    with pytest.raises(CheckpointError) as refused:
        quickly()
    assert file.partition("/")[0] in refused.value.where
    quickly(mend=True)
    quickly()


def test_a_base_that_comes_out_as_another_takes_its_experts_with_it(quickly):
    folder = quickly().folder
    before = contents(folder)
    digests = digests_file(folder / BASE)
    digests.write_text(json.dumps(dict.fromkeys(kept_digests(folder / BASE), "0" * 64)))  # as of another machine
    told = []
    quickly(mend=True, progress=lambda model, done, steps, note: told.append((model, done)))
    assert {model for model, done in told if done} == {BASE, "python", "cpp"}
    assert contents(folder) == before


def test_a_build_that_is_killed_over_such_a_base_is_told_of_it_again(quickly, monkeypatch):
    folder = quickly().folder
    digests = digests_file(folder / BASE)
    digests.write_text(json.dumps(dict.fromkeys(kept_digests(folder / BASE), "0" * 64)))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, "_remove_all_but", killed)
        with pytest.raises(KeyboardInterrupt):
            quickly(mend=True)
    told = []
    quickly(mend=True, progress=lambda model, done, steps, note: told.append((model, done)))
    assert {model for model, done in told if done} == {BASE, "python", "cpp"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null", b"5", b"[1]", b"{}"])
def test_digests_that_are_damaged_themselves_are_kept_anew(quickly, content):
    folder = quickly().folder
    before = contents(folder)
    digests_file(folder / "cpp").write_bytes(content)
    quickly()
    assert contents(folder) == before


def test_a_folder_among_the_files_of_a_model_is_no_damage(quickly):
    folder = quickly().folder
    (folder / "cpp" / "notes").mkdir()
    quickly()


def test_a_file_alone_is_watched_too(tmp_path):
    heads = tmp_path / "heads.safetensors"
    save_file({"one": torch.zeros(3)}, heads)
    need_whole([heads])
    keep_digests(heads)
    need_whole([heads])
    flip(heads)
    with pytest.raises(CheckpointError, match="bytes are not those"):
        need_whole([heads])


@pytest.mark.parametrize("harm", [cut, flip, lambda file: file.write_bytes(b"")])
def test_a_training_does_not_go_on_from_a_damaged_snapshot(quickly, tmp_path, monkeypatch, harm):
    monkeypatch.setattr(training, "_SNAPSHOT_EVERY_S", 0.0)
    whole = contents(quickly().folder)
    shutil.rmtree(tmp_path / "suites")

    def stop(model, done, steps, note):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickly(progress=stop)
    (snapshot,) = tmp_path.rglob(".base.training")
    harm(snapshot)
    told = []
    folder = quickly(progress=lambda model, done, steps, note: told.append((model, done))).folder
    assert (BASE, 1) in told
    assert contents(folder) == whole


# --- Shapes ---------------------------------------------------------------------------------------------------------


def test_a_model_of_another_shape_is_told_from_its_shapes_alone():
    quick, full = SUITE.shaper(quick=True), SUITE.shaper(quick=False)
    SUITE.need_fit(quick, quick=True, where="m")
    SUITE.need_fit(full, quick=False, where="m")
    with pytest.raises(IncompatibleModels, match="the suite lm cannot score this model") as refused:
        SUITE.need_fit(quick, quick=False, where="m")
    assert refused.value.where == "m" and refused.value.right.startswith("add --quick")
    with pytest.raises(IncompatibleModels) as refused:
        SUITE.need_fit(full, quick=True, where="m")
    assert refused.value.right.startswith("leave out --quick")
    with pytest.raises(IncompatibleModels, match="strange tensor 'odd'") as refused:
        SUITE.need_fit({**full, "odd": (3,)}, quick=False, where="m")
    assert "quick" not in refused.value.right


def test_shapes_are_known_before_anything_is_made_and_are_those_that_are_made(quickly):
    built = quickly()
    wanted = SUITE.shaper(quick=True)
    for reference in (built.base, *built.experts.values()):
        assert {name: tuple(one.shape) for name, one in built.tensors(reference).items()} == wanted
