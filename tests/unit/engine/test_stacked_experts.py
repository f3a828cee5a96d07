"""Tensors that hold the matrices of several experts: to methods on matrices each expert is a matrix of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import read_folder, write_model
from safetensors.torch import save_file

import cuvee
from cuvee.cli import main
from cuvee.engine.continuing import plan_continued
from cuvee.engine.verifying import verify
from cuvee.errors import IncompatibleModels, NonFinite
from cuvee.methods import spectral
from cuvee.methods.registry import MATRIX, NONE, edits, methods

WIDTH, INNER, COUNT = 8, 12, 3
LAYER = "model.layers.0"
GATE_UP, DOWN = f"{LAYER}.mlp.experts.gate_up_proj", f"{LAYER}.mlp.experts.down_proj"
STACKS = {GATE_UP: (COUNT, 2 * INNER, WIDTH), DOWN: (COUNT, WIDTH, INNER)}
REST = {f"{LAYER}.mlp.gate.weight": (COUNT, WIDTH), f"{LAYER}.self_attn.o_proj.weight": (WIDTH, WIDTH)}
MIXTRAL = {"model_type": "mixtral", "hidden_size": WIDTH, "num_local_experts": COUNT}
GPT_OSS = {**MIXTRAL, "model_type": "gpt_oss"}
NO_MODELS = {"copa_merging", "recall"}
ON_MATRICES = sorted(one.name for one in methods().values() if one.unit is MATRIX and one.name not in NO_MODELS)
EDITS = sorted(one.name for one in edits().values() if one.unit is MATRIX)
SETTINGS = {"drm": {"split_fused": False}, "opcm": {"continual": False}}


def family(count=3, stacks=STACKS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def drawn(size):
        return {
            name: size * torch.randn(shape, generator=generator).to(dtype) for name, shape in (stacks | REST).items()
        }

    base = drawn(1.0)
    return base, [{name: base[name] + change for name, change in drawn(0.1).items()} for _ in range(count)]


def taken_apart(model):
    """Each expert's matrix as a tensor of its own, as checkpoints stored them before."""
    apart = {name: value for name, value in model.items() if name not in STACKS}
    for name, number in ((name, number) for name in STACKS for number in range(COUNT)):
        apart[name.replace("experts.", f"experts.{number}.") + ".weight"] = model[name][number]
    return apart


def turned(model):
    """As gpt-oss stores experts: inputs by outputs."""
    return {name: value.mT.contiguous() if name in STACKS else value for name, value in model.items()}


@pytest.mark.parametrize("name", [*ON_MATRICES, *EDITS])
def test_each_expert_is_merged_as_a_matrix_of_its_own_however_it_is_stored(name):
    base, experts = family()
    how = {"compute_dtype": "float64", **SETTINGS.get(name, {})}
    base = None if name in methods() and methods()[name].base is NONE else base
    want = cuvee.merge_tensors(
        name, list(map(taken_apart, experts)), base and taken_apart(base), context=MIXTRAL, **how
    )
    plain = cuvee.merge_tensors(name, experts, base, context=MIXTRAL, **how)
    other = cuvee.merge_tensors(name, list(map(turned, experts)), base and turned(base), context=GPT_OSS, **how)
    for got in (taken_apart(plain), taken_apart(turned(other))):
        assert got.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-9, msg=key)


def test_what_is_drawn_and_trimmed_is_drawn_and_trimmed_for_each_expert():
    base, experts = family()
    alone = {f"{DOWN}[{e}]": [one[DOWN][e] for one in (base, *experts)] for e in range(COUNT)}
    before = [{"dare": {"density": 0.5}}, {"trim": {"density": 0.6}}]
    got = cuvee.merge_tensors("iso_c", experts, base, context=MIXTRAL, before=before)[DOWN]
    want = cuvee.merge_tensors(
        "iso_c",
        [{name: of[1 + k] for name, of in alone.items()} for k in range(len(experts))],
        {name: of[0] for name, of in alone.items()},
        before=before,
    )
    assert torch.equal(got, torch.stack([want[f"{DOWN}[{e}]"] for e in range(COUNT)]))
    assert not torch.allclose(got[0] - base[DOWN][0], got[1] - base[DOWN][1])


def test_not_matrix_names_the_tensor_as_it_is_stored():
    base, experts = family()
    mean = torch.stack([one[DOWN] for one in experts]).mean(0)
    got = cuvee.merge_tensors("tsv_m", experts, base, context=MIXTRAL, not_matrix=["*.down_proj"])
    torch.testing.assert_close(got[DOWN], mean)
    assert not torch.allclose(got[GATE_UP], torch.stack([one[GATE_UP] for one in experts]).mean(0), atol=1e-2)


def test_kernels_of_convolutions_are_flattened_as_they_were():
    generator = torch.Generator().manual_seed(0)
    kernels = [{"conv.weight": torch.randn(6, 5, 3, generator=generator)} for _ in range(4)]
    got = cuvee.merge_tensors("tsv_m", kernels[1:], kernels[0], conv="flatten")["conv.weight"]
    flat = [{"conv.weight": one["conv.weight"].reshape(6, 15)} for one in kernels]
    want = cuvee.merge_tensors("tsv_m", flat[1:], flat[0])["conv.weight"]
    assert torch.equal(got.reshape(6, 15), want)


LARGE = {GATE_UP: (COUNT, 300, 250), DOWN: (5, 40, 30)}  # leaves lie across experts, and hold several
METHODS = {
    "tsv_m": {},
    "opcm": {"continual": False},
    "doge": {"steps": 3},
    "ties": {"after": [{"singular_value_calibration": {}}], "density": 0.5},
}


def write(folder, models, config=MIXTRAL):
    return [str(write_model(folder / f"m{n}", one, config)) for n, one in enumerate(models)]


def recipe_of(method, folders, **given):
    """The first folder is the base."""
    after = given.pop("after", ())
    return cuvee.Recipe(method, models=folders[1:], base_model=folders[0], parameters=given, after=after)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_a_published_merge_is_that_of_memory_and_verifies(tmp_path, method, dtype):
    base, experts = family(2, LARGE, dtype)
    folders = write(tmp_path, (base, *experts))
    cuvee.merge(recipe_of(method, folders, **METHODS[method]), tmp_path / "out", threads=2)
    made = read_folder(tmp_path / "out")
    want = cuvee.merge_tensors(method, experts, base, context=MIXTRAL, **METHODS[method])
    assert made.keys() == want.keys() and all(torch.equal(made[name], want[name]) for name in want)
    assert not verify(tmp_path / "out").problems
    cuvee.merge(recipe_of("task_arithmetic", folders), tmp_path / "plain")
    one, other = (json.loads((tmp_path / name / "cuvee.json").read_text())["inputs"] for name in ("out", "plain"))
    assert one == other


def test_a_merge_that_was_stopped_goes_on_with_the_experts_tensors_that_are_left(tmp_path, monkeypatch):
    base, experts = family(2, LARGE, torch.float32)
    recipe = recipe_of("tsv_m", write(tmp_path, (base, *experts)))
    cuvee.merge(recipe, tmp_path / "whole")
    calls, polar = [], spectral.orthogonalized

    def failing(*given, **how):
        calls.append(1)
        if len(calls) > 6 * 2:
            raise OSError(28, "No space left on device")
        return polar(*given, **how)

    monkeypatch.setattr("cuvee.methods.pieces.subspaces.orthogonalized", failing)
    with pytest.raises(cuvee.CuveeError):
        cuvee.merge(recipe, tmp_path / "out", threads=1)
    monkeypatch.undo()
    report = cuvee.merge(recipe, tmp_path / "out", threads=1)
    assert 0 < report.resumed < len(STACKS | REST)
    assert (tmp_path / "out/cuvee.json").read_bytes() == (tmp_path / "whole/cuvee.json").read_bytes()


def test_a_sweep_decomposes_each_expert_once(monkeypatch):
    base, experts = family()
    known = cuvee.KeptDecompositions()
    first = cuvee.merge_tensors("iso_c", experts, base, context=MIXTRAL, decompositions=known)
    monkeypatch.setattr(spectral, "_decomposed", None)
    second = cuvee.merge_tensors("iso_c", experts, base, context=MIXTRAL, decompositions=known, scaling=0.5)
    torch.testing.assert_close(second[DOWN], (base[DOWN] + first[DOWN]) / 2)


def test_a_continued_merge_goes_on_with_each_expert(tmp_path):
    base, experts = family(3, dtype=torch.float32)
    folders = write(tmp_path, (base, *experts))
    cuvee.merge(recipe_of("opcm", folders), tmp_path / "all")
    cuvee.merge(recipe_of("opcm", folders[:3]), tmp_path / "grown")
    cuvee.run(plan_continued(tmp_path / "grown", folders[3:]), tmp_path / "grown", overwrite=True)
    one, other = read_folder(tmp_path / "all"), read_folder(tmp_path / "grown")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_stacked_statistic_says_of_each_expert_its_own(tmp_path, on_disk):
    _, experts = family(2)
    generator = torch.Generator().manual_seed(7)
    fisher = [torch.rand(STACKS[DOWN], generator=generator) + 0.1 for _ in experts]
    want = sum(f.double() * one[DOWN] for f, one in zip(fisher, experts, strict=True)) / sum(fisher)
    how = {"objective": "diag_fisher", "iterations": "converged"}
    if on_disk:
        folders = write(tmp_path, experts)
        for k, one in enumerate(fisher):
            save_file({f"fisher/{DOWN}": one}, tmp_path / f"{k}.st")
        models = [cuvee.RecipeModel(one, statistics=str(tmp_path / f"{k}.st")) for k, one in enumerate(folders)]
        cuvee.merge(cuvee.Recipe("mats", models=models, parameters=how), tmp_path / "out")
        got = read_folder(tmp_path / "out")[DOWN]
    else:
        given = {f"fisher/model{k}/{DOWN}": one for k, one in enumerate(fisher)}
        got = cuvee.merge_tensors("mats", experts, statistics=given, context=MIXTRAL, **how)[DOWN]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [COUNT - 1, COUNT + 1])
def test_a_statistic_of_another_number_of_experts_is_refused(tmp_path, number):
    base, (one, other) = family(2, dtype=torch.float32)
    folders = write(tmp_path, (base, one, other))
    save_file({f"gram/{DOWN}": torch.eye(INNER).repeat(number, 1, 1)}, tmp_path / "gram.st")
    models = [cuvee.RecipeModel(place, statistics=str(tmp_path / "gram.st")) for place in folders[1:]]
    recipe = cuvee.Recipe("bayesian_model_merging", models=models, base_model=folders[0])
    with pytest.raises(IncompatibleModels, match=rf"gram/{DOWN}.*shape \({number}, 12, 12\).*holds {COUNT} experts"):
        cuvee.plan(recipe)
    given = {f"gram/model{k}/{DOWN}": torch.eye(INNER).repeat(number, 1, 1) for k in range(2)}
    with pytest.raises(IncompatibleModels, match=rf"gram/model0/{DOWN}.*shape \({number}, 12, 12\).*{COUNT} experts"):
        cuvee.merge_tensors("bayesian_model_merging", [one, other], base, context=MIXTRAL, statistics=given)


def test_nan_in_one_expert_is_named_and_let_through_stays_there(tmp_path):
    base, experts = family(2, dtype=torch.float32)
    experts[1][DOWN][1, 0, 0] = float("nan")
    recipe = recipe_of("tsv_m", write(tmp_path, (base, *experts)))
    with pytest.raises(NonFinite, match=rf"{DOWN}.*holds NaN or infinite values: 1 of"):
        cuvee.merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = cuvee.merge(recipe, tmp_path / "out", allow_nan=True)
    assert report.non_finite == {DOWN: WIDTH * INNER}
    assert read_folder(tmp_path / "out")[DOWN].isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_more_experts_need_no_more_memory(tmp_path):
    def planned(count):
        base, experts = family(2, {DOWN: (count, 400, 300)}, torch.bfloat16)
        return cuvee.plan(recipe_of("tsv_m", write(tmp_path / str(count), (base, *experts))), memory=10**9)

    for count in (2, 8):
        (tmp_path / str(count)).mkdir()
    assert planned(2).budget == planned(8).budget


def test_a_plan_counts_the_matrices_of_experts_and_the_command_merges_them(tmp_path, capsys):
    base, experts = family(2, dtype=torch.bfloat16)
    folders = write(tmp_path, map(turned, (base, *experts)), GPT_OSS)
    recipe = tmp_path / "r.yml"
    recipe.write_text(json.dumps({"merge_method": "tsv_m", "base_model": folders[0], "models": folders[1:]}))
    for words, said in ((["plan", str(recipe)], "4 merged (4 as 8 matrices), 0 copied"), (["merge", str(recipe)], "")):
        with pytest.raises(SystemExit) as ended:
            main([*words, *([str(tmp_path / "out")] if words[0] == "merge" else [])])
        assert not ended.value.code and said in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["plan", str(recipe), "--json"])
    assert json.loads(capsys.readouterr().out)["tensors"]["matrices"] == 8
    want = cuvee.merge_tensors("tsv_m", experts, base, context=MIXTRAL)
    got = turned(read_folder(Path(tmp_path / "out")))
    for name in want:
        torch.testing.assert_close(got[name].float(), want[name].float(), rtol=0.01, atol=1e-6)
