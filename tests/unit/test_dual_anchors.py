"""Functional dual anchors: gradients that turn to the task vector, and layers that come to answer as the experts do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import cuvee
from cuvee.checkpoints.garbage import find_leftovers
from cuvee.checkpoints.sources import read_all
from cuvee.cli import main
from cuvee.engine.run import run
from cuvee.errors import CuveeError, IncompatibleModels, MethodError, ResourceError
from cuvee.evaluation.model_folders import load_model, save_model
from cuvee.evaluation.tiny_llama import Shape, TinyLlama
from cuvee.learning import AnchorSettings, adapt, construct_anchors, mismatch, plan_anchors, start_of_anchors

pytest.importorskip("transformers")
SHAPE = Shape(hidden=16, intermediate=24, layers=2, heads=2, key_value_heads=1, context=32)
SMALL = AnchorSettings(anchors=8, tokens=4, steps=20, epochs=15, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(parameters, inputs):
    """A layer of two maps with a norm and a residual."""
    hidden = torch.nn.functional.layer_norm(inputs, inputs.shape[-1:])
    return inputs + torch.tanh(hidden @ parameters["up"].mT) @ parameters["down"].mT


def drawn(seed=0, size=0.05):
    generator = torch.Generator().manual_seed(seed)
    base = {
        name: torch.randn(shape, generator=generator) / 3 for name, shape in {"up": (12, 6), "down": (6, 12)}.items()
    }
    experts = [
        {name: tensor + size * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(2)
    ]
    return base, experts


def anchors_of(base, expert, steps=60):
    start = start_of_anchors(expert, (16, 3, 6), "weights", 0)
    return construct_anchors(network, base, expert, start, steps=steps, learning_rate=2e-2)


def test_the_gradient_at_the_anchors_turns_to_the_task_vector():
    base, (expert, _) = drawn()
    found = anchors_of(base, expert)
    assert len(found.cosines) == 61
    assert max(found.cosines) > found.cosines[0] + 0.1
    # what is kept is the best: measured anew, by hand
    moved = {name: tensor.clone().requires_grad_() for name, tensor in base.items()}
    agreement = torch.nn.functional.cosine_similarity(
        network(moved, found.inputs), network(expert, found.inputs), dim=-1
    )
    gradients = torch.autograd.grad(agreement.mean(), list(moved.values()))
    along = [
        torch.nn.functional.cosine_similarity(gradient.flatten(), (expert[name] - base[name]).flatten(), dim=0)
        for name, gradient in zip(moved, gradients, strict=True)
    ]
    assert float(torch.stack(along).mean()) == pytest.approx(max(found.cosines), abs=1e-5)


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_training_on_one_experts_anchors_lowers_the_mismatch_steadily(loss):
    base, (expert, _) = drawn()
    anchors = anchors_of(base, expert).inputs
    found = adapt(network, base, [(expert, anchors)], epochs=40, learning_rate=1e-3, batch=16, loss=loss)
    assert all(after < before for before, after in zip(found.losses, found.losses[1:], strict=False))
    assert found.losses[-1] < found.losses[0] / 4
    assert found.losses[-1] == pytest.approx(
        float(mismatch(network(found.parameters, anchors), network(expert, anchors), loss)), rel=1e-4
    )


def test_a_step_along_the_gradient_at_the_anchors_is_a_step_towards_the_expert():
    base, (expert, _) = drawn()
    anchors = anchors_of(base, expert, steps=200).inputs
    found = adapt(network, base, [(expert, anchors)], epochs=60, learning_rate=1e-3, batch=16)
    before, after = ({n: float((p[n] - expert[n]).norm()) for n in base} for p in (base, found.parameters))
    assert all(after[name] < before[name] for name in base)


def test_several_experts_are_answered_together_and_equal_calls_give_equal_bits():
    base, experts = drawn()
    targets = [(expert, anchors_of(base, expert).inputs) for expert in experts]
    one, other = (adapt(network, base, targets, epochs=20, learning_rate=1e-3, batch=8, seed=3) for _ in range(2))
    assert one.losses[-1] < one.losses[0]
    assert all(torch.equal(one.parameters[name], other.parameters[name]) for name in base)


def test_from_a_merge_coefficients_of_its_task_vector_are_learned():
    base, experts = drawn()
    merged = {name: sum(expert[name] for expert in experts) / 2 for name in base}
    merged["up"][0] = base["up"][0]
    targets = [(expert, anchors_of(base, expert).inputs) for expert in experts]
    found = adapt(network, merged, targets, base=base, epochs=20, learning_rate=1e-2, batch=8)
    assert found.losses[-1] < found.losses[0]
    assert torch.equal(found.parameters["up"][0], base["up"][0]), "no coefficient moves what the merge has not"


def test_an_expert_that_has_moved_nothing_and_no_steps_leave_the_start_as_it_is():
    base, (expert, _) = drawn()
    start = start_of_anchors(base, (4, 2, 6), "gauss", 1)
    found = construct_anchors(network, base, dict(base), start)
    assert torch.equal(found.inputs, start) and not found.cosines
    assert torch.equal(construct_anchors(network, base, expert, start, steps=0).inputs, start)


def test_anchors_begin_with_rows_of_the_weights_each_once():
    _, (expert, _) = drawn()
    start = start_of_anchors(expert, (5, 2, 6), "weights", 0).reshape(-1, 6)
    rows = {tuple(row.tolist()) for row in expert["up"]}
    assert len({tuple(row.tolist()) for row in start} & rows) == 10
    many = start_of_anchors(expert, (20, 2, 6), "weights", 0).reshape(-1, 6)
    assert len({tuple(row.tolist()) for row in many} & rows) >= 12
    with pytest.raises(MethodError, match="rows of 7"):
        start_of_anchors(expert, (5, 2, 7), "weights", 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anchors")
    save_model(TinyLlama(SHAPE, seed=1), folder / "base")
    for seed, name in enumerate(("one", "two")):
        trained = load_model(folder / "base")
        generator = torch.Generator().manual_seed(seed)
        for value in trained.parameters():
            value.data += 0.02 * torch.randn(value.shape, generator=generator)
        save_model(trained, folder / name)
    return folder


def tensors(path):
    model = cuvee.open_model(path)
    return {name: read_all(source) for name, source in model.tensors.items()}


@pytest.mark.slow
def test_every_layer_of_a_model_is_trained_and_all_else_is_the_base(models, tmp_path):
    seen = []
    planned = plan_anchors(
        models / "base", [models / "one", models / "two"], SMALL, watch=lambda layer, *_: seen.append(layer)
    )
    run(planned, tmp_path / "out")
    got, base = tensors(tmp_path / "out"), tensors(models / "base")
    inside = [name for name in base if ".layers." in name]
    assert all(not torch.equal(got[name], base[name]) for name in inside)
    assert all(torch.equal(got[name], base[name]) for name in base if name not in inside)
    assert [layer.name for layer in seen] == ["model.layers.0", "model.layers.1"]
    assert all(after > before for layer in seen for before, after in layer.cosines)
    assert all(layer.losses[1] < layer.losses[0] for layer in seen)
    manifest = json.loads((tmp_path / "out" / "cuvee.json").read_text())
    assert set(manifest["recipe"]["fda"]["read"]) == {str(models / name) for name in ("base", "one", "two")}
    again = plan_anchors(models / "base", [models / "one", models / "two"], SMALL)
    assert again.plan_id == planned.plan_id


def stopped_after(count):
    def watch(_, done, total):
        if done == count:
            raise KeyboardInterrupt

    return watch


@pytest.mark.slow
def test_a_stopped_run_goes_on_after_the_last_whole_layer(models, tmp_path, monkeypatch):
    asked = (models / "base", [models / "one", models / "two"])
    said = {}
    whole = plan_anchors(*asked, SMALL, watch=lambda layer, done, _: said.setdefault(done, layer))
    folder = tmp_path / "learned"
    with pytest.raises(KeyboardInterrupt):
        plan_anchors(*asked, SMALL, learned=folder, watch=stopped_after(1))
    (file,) = folder.iterdir()
    trained = []
    monkeypatch.setattr("cuvee.learning.dual_anchors.adapt", lambda *a, **k: trained.append(1) or adapt(*a, **k))
    again = {}
    found = plan_anchors(*asked, SMALL, learned=folder, watch=lambda layer, done, _: again.setdefault(done, layer))
    assert found.plan_id == whole.plan_id and again == said and len(trained) == 1
    # other settings, and a damaged file, are trained again
    plan_anchors(*asked, replace(SMALL, seed=1), learned=folder)
    assert len(trained) == 3
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert plan_anchors(*asked, SMALL, learned=folder).plan_id == whole.plan_id
    assert len(trained) == 4


def test_what_the_command_learned_stays_beside_the_output_until_that_is_published(models, tmp_path, monkeypatch):
    arguments = ["fda", *(str(models / name) for name in ("base", "one")), "--out", str(tmp_path / "out"), "--quiet"]
    settings = ["--anchors", "8", "--anchor-tokens", "4", "--steps", "5", "--epochs", "5"]
    kept = tmp_path / ".out.cuvee-learned"
    with monkeypatch.context() as broken, pytest.raises(SystemExit):
        broken.setattr("cuvee.engine.run.check_space", raising(ResourceError("the disk is full", right="free space")))
        main([*arguments, *settings])
    assert len(list(kept.iterdir())) == 2
    (found,) = (one for one in find_leftovers(tmp_path) if one.path == kept)
    assert found.out == tmp_path / "out" and found.kept.startswith("too young")
    (kept / "mine.txt").write_text("")
    assert [one.kept for one in find_leftovers(tmp_path) if one.path == kept] == [
        "not what cuvee leaves: look for yourself"
    ]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *settings])
    assert ended.value.code == 0 and (tmp_path / "out" / "config.json").is_file() and not kept.exists()


def raising(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


def test_the_command_trains_mlps_from_a_merge(models, tmp_path):
    recipe = cuvee.Recipe(
        "task_arithmetic",
        models=[models / "one", models / "two"],
        base_model=models / "base",
        parameters={"weight": 0.5},
    )
    cuvee.merge(recipe, tmp_path / "merged")
    names = [str(models / name) for name in ("base", "one", "two")]
    arguments = [*names, "--out", str(tmp_path / "out"), "--from", str(tmp_path / "merged"), "--part", "mlp"]
    settings = ["--anchors", "16", "--anchor-tokens", "1", "--steps", "10", "--epochs", "10", "--seed", "2", "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main(["fda", *arguments, *settings])
    assert ended.value.code == 0
    got, merged = tensors(tmp_path / "out"), tensors(tmp_path / "merged")
    changed = {name for name in got if not torch.equal(got[name], merged[name])}
    assert changed == {name for name in got if ".mlp." in name}


def test_what_cannot_be_trained_is_refused_in_words(models, tmp_path):
    save_model(
        TinyLlama(Shape(hidden=16, intermediate=40, layers=2, heads=2, key_value_heads=1, context=32)), tmp_path / "x"
    )
    with pytest.raises(IncompatibleModels, match="and the base's is"):
        plan_anchors(models / "base", [tmp_path / "x"], SMALL)
    with pytest.raises(MethodError, match="no experts"):
        plan_anchors(models / "base", [], SMALL)
    with pytest.raises(MethodError, match="anchors is 0"):
        AnchorSettings(anchors=0)
    broken = load_model(models / "one")
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    save_model(broken, tmp_path / "broken")
    with pytest.raises(CuveeError, match="NaN"):
        plan_anchors(models / "base", [tmp_path / "broken"], SMALL)
