"""Suites made for real, from packages, by the command line. Skipped where a package is not to be had."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from cuvee.errors import ResourceError
from cuvee.evaluation.home import cuvee_home
from cuvee.evaluation.suites import suite
from cuvee.evaluation.suites.suite import silently

pytestmark = pytest.mark.slow
pytest.importorskip("transformers")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own that shares the packages of the real one."""
    packages = cuvee_home() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (tmp_path / "packages").symlink_to(packages)
    monkeypatch.setenv("CUVEE_HOME", str(tmp_path))
    return tmp_path


def bench_build(*arguments):
    command = [sys.executable, "-m", "cuvee", "bench", "build", *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_suite_is_built_and_found_again(home):
    done = bench_build("vision-resnet", "--quick")
    if done.returncode and "cannot be downloaded" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout)["built"]
    assert len(said["experts"]) >= 6
    told = []
    built = suite("vision-resnet").build(quick=True, progress=lambda *one: told.append(one))
    assert built.key == said["key"]
    assert all(steps == 0 for _, _, steps, _ in told)  # all was there
    base = built.tensors(built.base)
    assert {name: tuple(one.shape) for name, one in base.items()} == built.suite.shaper(quick=True)
    gains = {
        name: built.score(built.tensors(reference), name).value - built.score(base, name).value
        for name, reference in built.experts.items()
    }
    assert sum(gains.values()) / len(gains) > 0.02
    assert sum(gain > 0 for gain in gains.values()) >= 5


def test_the_text_encoder_is_the_real_one_and_its_experts_move(home):
    from cuvee.evaluation.suites import text_encoder

    torch.set_num_threads(1)
    tiny = dataclasses.replace(
        text_encoder.QUICK,
        experts=text_encoder.QUICK.experts[:1],
        unseen=(),
        tokens=24,
        train=64,
        validation=16,
        test=32,
        pairs=24,
        training=dataclasses.replace(text_encoder.QUICK.training, steps=3),
    )
    try:
        built = text_encoder.build_text_encoder(
            text_encoder.SUITE, home, 0, tiny, text_encoder.read_tasks(tiny), silently
        )
    except ResourceError as error:
        pytest.skip(error.found)
    base, expert = built.tensors(built.base), built.tensors(built.experts["reuters"])
    assert base["embeddings.word_embeddings.weight"].shape == (30522, 384)
    moved = {name for name in base if not torch.equal(base[name], expert[name])}
    assert "encoder.layer.0.attention.self.query.weight" in moved
    assert {name: tuple(one.shape) for name, one in base.items()} == text_encoder.SUITE.shaper(quick=True)
    assert not any("pooler" in name for name in moved)
    assert built.score(base, "finding").value > 0.5  # chance is 1 in 24
    assert built.score(base, "reuters").value > 0.5  # of 8 classes, by prototypes
