"""A pair as its authors saved it: checked, read where it lies, merged; a model of another training is told from a fine-tune."""

from pathlib import Path

import numpy as np
import pytest
import torch

import cuvee
from cuvee.checkpoints.opening import open_model
from cuvee.engine.comparing import compare
from cuvee.errors import CheckpointError, Problems, ResourceError
from cuvee.evaluation.suites import chgnet, suite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    try:
        return suite("pairs-chgnet").build(tmp_path_factory.mktemp("home"))
    except ResourceError as error:
        pytest.skip(error.found)


@pytest.fixture(scope="module")
def models(built):
    (expert,), (stranger,) = built.experts.values(), built.strangers.values()
    return {"base": built.base, "expert": expert, "stranger": stranger}


def loaded(reference):
    return torch.load(reference, weights_only=True, map_location="cpu")["model"]["state_dict"]  # saved on a GPU


def recipe(models, other, **more):
    return cuvee.Recipe("task_arithmetic", base_model=models["base"], models=[models[other]], **more)


def of_other_shape(models):
    """Names that the stranger lacks, has more, or has in another shape."""
    base, stranger = loaded(models["base"]), loaded(models["stranger"])
    return [n for n in base.keys() | stranger.keys() if n not in base or n not in stranger
            or base[n].shape != stranger[n].shape]  # fmt: skip


def test_files_of_torch_are_read_where_they_lie(built, models):
    for reference in models.values():
        theirs, ours = loaded(reference), built.tensors(reference)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_the_fine_tune_is_near_its_base(models):
    opened = [open_model(models[name]) for name in ("base", "expert")]
    found = compare(opened[0], opened[1:]).total()
    for one in opened:
        one.close()
    base, expert = (
        np.concatenate([t.flatten().numpy() for t in loaded(models[n]).values()]) for n in ("base", "expert")
    )
    relative = np.linalg.norm(expert - base) / np.linalg.norm(base)
    assert np.sqrt(found.gram[1, 1] / found.gram[0, 0]) == pytest.approx(relative, rel=1e-4)
    assert relative == pytest.approx(0.183, abs=1e-3)


def test_a_merge_lies_between_the_two(models, tmp_path):
    cuvee.merge(recipe(models, "expert", parameters={"weight": 0.5}), tmp_path / "out")
    base, expert = loaded(models["base"]), loaded(models["expert"])
    opened = open_model(tmp_path / "out")
    opened.close()
    from safetensors.torch import load_file

    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, (base[name] + expert[name]) / 2, rtol=1e-5, atol=1e-6)


def test_a_stranger_is_refused_for_its_shapes_and_named_without_them(models):
    with pytest.raises(Problems) as caught:
        cuvee.plan(recipe(models, "stranger", parameters={"weight": 0.5}))
    assert "bond_embedding.weight" in str(caught.value)
    warnings = cuvee.plan(
        recipe(models, "stranger", parameters={"weight": 0.5}, exclude=of_other_shape(models))
    ).warnings
    assert any("does not look like a fine-tune" in one for one in warnings)
    assert not any("fine-tune" in one for one in cuvee.plan(recipe(models, "expert")).warnings)


def test_what_is_there_is_checked_and_a_damaged_file_is_written_again(built, models):
    place = Path(models["expert"])
    whole = place.read_bytes()
    place.write_bytes(whole[:-1])
    told = []
    again = suite("pairs-chgnet").build(built.folder.parent.parent.parent, progress=lambda *one: told.append(one))
    assert again.key == built.key
    assert place.read_bytes() == whole
    assert [(model, steps) for model, _, steps, _ in told] == [("base", 0), ("r2scan", 1), ("0.2.0", 0)]


def test_weights_of_another_digest_are_no_weights(built, monkeypatch, tmp_path):
    strange = {path: b"not torch's" for path, _ in chgnet._FILES.values()}
    monkeypatch.setattr(chgnet, "_weights", lambda: strange)
    with pytest.raises(CheckpointError, match="not those that its authors published"):
        suite("pairs-chgnet").build(tmp_path)
    assert not list(tmp_path.rglob("*.tar"))


def test_a_suite_without_tasks_says_so_before_anything_is_scored(built, monkeypatch, capsys):
    from cuvee.cli.app import main

    monkeypatch.setenv("CUVEE_HOME", str(built.folder.parent.parent.parent))
    for command in (("bench", "run", "pairs-chgnet"), ("evaluate", built.base, "--tasks", "pairs-chgnet")):
        with pytest.raises(SystemExit) as end:
            main(list(command))
        assert end.value.code == 2
        assert "has nothing to score" in capsys.readouterr().err
