"""What methods note of tensors: in the manifest, on the card, in a few lines, and nowhere in the bytes."""

from __future__ import annotations

import json

import pytest
import torch
from models import LLAMA, family, llama_shapes, write_model

import cuvee
from cuvee.engine.notes import notes_in_words, notes_of_tensor
from cuvee.methods.calls import Call, Place, activated, noted
from cuvee.methods.combination import Matrices
from cuvee.methods.papers.ortho_merge import ortho_merge
from cuvee.methods.pieces.star import star
from cuvee.tensors.layout import Layout

UP, NORM, NARROW = "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.self_attn.k_proj.weight"
LOW = {"math": 3, "code": 2, "chat": 30}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and experts whose task vectors have these ranks, and one that is broken."""
    root = tmp_path_factory.mktemp("noted")
    shapes = llama_shapes(LLAMA)
    base, (one,) = family(1, shapes)
    generator = torch.Generator().manual_seed(3)
    write_model(root / "base", base, LLAMA)
    for name, rank in LOW.items():
        model = dict(base)
        for tensor, shape in shapes.items():
            if len(shape) == 2:
                left, right = (
                    torch.randn(shape[0], rank, generator=generator),
                    torch.randn(rank, shape[1], generator=generator),
                )
                model[tensor] = base[tensor] + 0.01 * left @ right
        write_model(root / name, model, LLAMA)
    write_model(root / "again", one, LLAMA)
    write_model(root / "still", base, LLAMA)
    write_model(root / "bad", {name: 100 * torch.randn(one[name].shape, generator=generator) for name in one}, LLAMA)
    return root


def merged(folders, out, method, names=tuple(LOW), base="base", **given):
    before = given.pop("before", ())
    recipe = cuvee.Recipe(
        method,
        models=[str(folders / name) for name in names],
        base_model=base and str(folders / base),
        parameters=given,
        before=before,
    )
    report = cuvee.merge(recipe, out)
    tensors = json.loads((out / "cuvee.json").read_text())["output"]["tensors"]
    return (
        report,
        {name: one["notes"] for name, one in tensors.items() if "notes" in one},
        (out / "README.md").read_text(),
    )


def test_ranks_and_fallbacks_are_said_of_each_tensor_and_summed_up(folders, tmp_path):
    report, notes, card = merged(folders, tmp_path / "out", "tsv_m")
    assert notes[UP].keys() == {"rank", "stack_condition"} and notes[UP]["rank"] == [3, 2, 16 // 3]
    assert all(1 < one < 1e4 for one in notes[UP]["stack_condition"])
    assert NORM not in notes
    ranks, conditions = report.notes
    assert ranks == (
        "rank: attention_k 2, attention_o 2 to 5, attention_q 2 to 5, attention_v 2, "
        "mlp_down 2 to 5, mlp_gate 2 to 5, mlp_up 2 to 5"
    )
    assert conditions.startswith("stack condition: attention_k ")
    assert all(f"- {line}" in card for line in report.notes)


@pytest.mark.parametrize("method", ["tsv_m", "r_tsvm", "dc_merge", "stf"])
def test_directions_that_models_share_are_said_to_be_repeated(folders, tmp_path, method):
    report, notes, _ = merged(folders, tmp_path / "out", method, ("math", "math", "code"))
    _, alone, _ = merged(folders, tmp_path / "others", method, ("math", "code"))
    assert notes[UP]["repeated_directions"] == (3 if method == "stf" else [3, 3])
    assert "repeated_directions" not in alone[UP]
    assert any(line.startswith("repeated directions: ") for line in report.notes)


def test_a_stack_of_what_is_orthogonal_already_has_condition_1(folders, tmp_path):
    _, notes, _ = merged(folders, tmp_path / "out", "iso_cts", common_fraction=1)
    assert notes[UP] == {"rank": 16, "own_directions": 0, "stack_condition": [1, 1]}


@pytest.mark.parametrize("method", ["wudi_merging", "optmerge", "doge", "bayesian_model_merging"])
def test_models_that_have_not_moved_are_counted(folders, tmp_path, method):
    report, notes, _ = merged(folders, tmp_path / "out", method, ("math", "still", "code"))
    assert notes[UP]["unmoved_models"] == 1
    assert any(line.startswith("unmoved models: attention_k 1, ") for line in report.notes)
    _, notes, _ = merged(folders, tmp_path / "others", method, ("math", "code"))
    assert not any("unmoved_models" in one for one in notes.values())


def test_models_that_turn_something_by_half_a_turn_are_counted():
    base = torch.eye(3)
    call = Call(Place("x", Layout((3, 3)), 0, 9))
    with activated(call):
        moved = [torch.diag(torch.tensor([-2.0, -2.0, 0.0])), torch.full((3, 3), 0.01)]
        ortho_merge(Matrices((2, 3, 3), lambda k: moved[k].clone()), base=base, ridge=0.0)
    assert call.notes == {"models_not_rotated": 1}


def test_what_becomes_the_mean_says_why(folders, tmp_path):
    names = (*LOW, "again", *LOW)
    report, notes, _ = merged(folders, tmp_path / "out", "tsv_m", names)
    assert notes[NARROW] == {"fallback": "the mean: min(m, n) < 2 K"}
    assert report.notes[-1] == "4 matrices became the mean: min(m, n) < 2 K"


def test_what_took_the_straight_line_is_counted(folders, tmp_path):
    names, shapes = ("again", "math"), llama_shapes(LLAMA)
    report, notes, _ = merged(folders, tmp_path / "out", "slerp", names, None, t=0.5, dot_threshold=0.5)
    assert notes[NORM] == {"fallback": "a straight line between the two"}
    assert list(report.notes) == [f"{len(notes)} tensors became a straight line between the two"]
    report, notes, _ = merged(folders, tmp_path / "arc", "slerp", ("again", "bad"), None, t=0.5)
    assert not {name for name in notes if len(shapes[name]) > 1}
    report, notes, _ = merged(folders, tmp_path / "stock", "model_stock", ("again", "bad"))
    assert set(notes) < set(shapes) and {one["fallback"] for one in notes.values()} == {
        "the base: task vectors point apart"
    }


def test_a_filter_says_of_each_model_its_own(folders, tmp_path):
    _, notes, _ = merged(folders, tmp_path / "out", "iso_c", before=[{"star": {"eta": 99}}])
    assert notes[UP]["star_rank"].keys() == {"0", "1", "2"}
    assert notes[UP]["star_rank"]["0"] == 3 and notes[UP]["rank"] == 16


def test_the_models_that_are_chosen_are_named(folders, tmp_path):
    names = ("math", "bad", "code", "chat", "again")
    report, notes, card = merged(folders, tmp_path / "out", "multi_krum", names, None, m=3)
    assert {tuple(one["chosen"]) for one in notes.values()} and not any(1 in one["chosen"] for one in notes.values())
    count = len(llama_shapes(LLAMA))
    assert len(notes) == count
    (line,) = report.notes
    assert f"{folders / 'bad'} in 0 of {count}" in line and f"bad in 0 of {count}" in card


def test_each_expert_of_a_tensor_has_its_choice(tmp_path):
    name, config = "model.layers.0.mlp.experts.down_proj", {**LLAMA, "num_local_experts": 4}
    tensors = [{name: size * torch.ones(4, 6, 5)} for size in (0.0, 1.0, 1.1, 1.2, 9.0)]
    for place, one in zip(("base", "a", "b", "c", "bad"), tensors, strict=True):
        write_model(tmp_path / place, one, config)
    names = ("a", "b", "c", "bad")
    report, notes, _ = merged(tmp_path, tmp_path / "out", "multi_krum", names, m=3, f=0, before=[{"star": {}}])
    assert notes[name]["chosen"] == [[0, 1, 2]] * 4
    assert report.notes[-1].startswith("chosen: ") and f"{tmp_path / 'bad'} in 0 of 4" in report.notes[-1]
    assert f"{tmp_path / 'a'} in 4 of 4" in report.notes[-1]


def test_a_matrix_of_zeros_has_no_rank():
    call = Call(Place("x", Layout((3, 2)), 0, 6))
    with activated(call):
        assert not star(torch.zeros(3, 2)).any()
    assert call.notes == {"star_rank": 0}


def test_a_method_that_notes_nothing_leaves_nothing(folders, tmp_path):
    report, notes, card = merged(folders, tmp_path / "out", "ties", density=0.5)
    assert not report.notes and not notes and "What the method did" not in card


def test_notes_of_experts_are_listed_under_each_name():
    assert notes_of_tensor([{"rank": 3}, {"fallback": "the mean"}]) == {
        "rank": [3, None],
        "fallback": [None, "the mean"],
    }
    assert notes_in_words([], {}, {}) == []


def test_what_is_noted_outside_a_merge_is_nobodys():
    noted(rank=3)
    layout = Layout((2, 2))
    call = Call(Place("x", layout, 0, 4))
    with activated(call), call.model(1):
        noted(rank=3)
    assert call.notes == {"rank": {"1": 3}}
