"""`cuvee compare`."""

from __future__ import annotations

import pytest
from tiny_models import LAYERS, base_arrays, write_model


@pytest.mark.parametrize("columns", [80, 120])
def test_a_comparison_shows_experts_roles_layers_and_maps(run, models, columns):
    outcome = run("compare", models.base, models.math, models.code, columns=columns)
    assert outcome.code == 0, outcome.err
    out = outcome.out
    for part in ("Task vectors from", "By role", "By layer", "interference", "‖τ‖/‖θ₀‖", "Not compared"):
        assert part in out
    _, _, _, *layers = out.split("By layer")[1].split("\n\n")[0].split("\n")
    assert [line.split()[0] for line in layers] == ["0", "1", "2", "outside"]
    assert all(len(line) <= columns for line in out.split("\n"))


def test_frozen_parts_are_marked_in_the_map(run, models):
    out = run("compare", models.base, models.math, models.code).out
    (norm, _) = (line for line in out.split("\n") if line.startswith("  norm  ") and "·" in line)
    assert norm.count("·") == LAYERS


def test_one_expert_alone_has_no_cosines(run, models):
    out = run("compare", models.base, models.math).out
    assert "cosine" not in out
    assert "interference" not in out


def test_json_has_every_layer_and_role(run, models):
    found = run("compare", models.base, models.math, models.code, "--json").json
    assert [layer["layer"] for layer in found["layers"]] == list(range(LAYERS))
    assert {cell["role"] for cell in found["cells"] if cell["layer"] == 0} >= {"attention_q", "mlp_up", "norm"}
    assert found["total"]["cosines"][0][0] == pytest.approx(1)
    assert found["roles"]["norm"]["cosines"] == [[None, None], [None, None]]
    assert found["total"]["interference"] == pytest.approx(0.5, abs=0.1)
    assert list(found["left_out"]) == ["model.position_ids"]


def test_patterns_choose_the_tensors(run, models):
    found = run("compare", models.base, models.math, "--only", "*.mlp.*", "--exclude", "*down_proj*", "--json").json
    assert set(found["roles"]) == {"mlp_up"}


def test_models_that_do_not_fit_are_refused(run, models, tmp_path):
    arrays = base_arrays()
    del arrays["model.norm.weight"]
    other = write_model(tmp_path / "other", arrays)
    outcome = run("compare", models.base, other)
    assert outcome.code == 2
    assert "models of one architecture, or leave them out: --exclude model.norm.weight\n" in outcome.err
    assert run("compare", models.base, other, "--exclude", "model.norm.weight").code == 0


def test_a_picture_is_drawn_when_asked(run, models, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "maps.png"
    outcome = run("compare", models.base, models.math, models.code, "--png", picture)
    assert outcome.code == 0, outcome.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"{picture} has the heat maps" in outcome.out.replace("\n", "")


def test_a_picture_without_matplotlib_says_what_to_install(run, models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    outcome = run("compare", models.base, models.math, "--png", tmp_path / "maps.png")
    assert outcome.code == 2
    assert "pip install 'cuvee[demo]'" in outcome.err
