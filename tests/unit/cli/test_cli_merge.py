"""`cuvee merge`."""

from __future__ import annotations

import json

import numpy as np
from tiny_models import expert_arrays, write_model


def test_a_merge_publishes_and_says_so(run, models, tmp_path):
    out = tmp_path / "out"
    outcome = run("merge", models.recipe, out, columns=200)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert outcome.out.startswith(f"{out} is published\n")
    assert "bottleneck: " in outcome.out
    assert "exclude: lm_head*" in outcome.out
    assert (out / "model.safetensors").is_file()
    assert (out / "tokenizer.json").is_file()


def test_quiet_prints_nothing(run, models, tmp_path):
    outcome = run("merge", models.recipe, tmp_path / "out", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_quiet_still_warns(run, models, tmp_path):
    recipe = models.write_recipe("noted.yml", models.recipe.read_text() + 'only: ["*"]\nlazy_unpickle: true\n')
    outcome = run("merge", recipe, tmp_path / "out", "--quiet")
    assert outcome.out == ""
    assert outcome.err.startswith("warning: ")
    assert "lazy_unpickle has no effect" in outcome.err


def test_json_is_one_object_with_what_was_done(run, models, tmp_path):
    out = tmp_path / "out"
    outcome = run("merge", models.recipe, out, "--json")
    found = outcome.json
    manifest = json.loads((out / "cuvee.json").read_text())
    assert found["out"] == str(out)
    assert found["digest"] == manifest["output"]["digest"]
    assert set(found["left_out"]) == {"lm_head.weight", "model.position_ids"}
    assert found["bytes_written"] == sum(a.nbytes for a in expert_arrays(1).values())
    assert found["resumed"] == 0
    assert found["rounds"] == 1
    assert found["bottleneck"] in ("read", "compute", "write")
    assert list(found["seconds"]) == ["import", "plan", "merge", "publish", "total"]
    parts = [found["seconds"][part] for part in ("import", "plan", "merge", "publish")]
    assert sum(parts) <= found["seconds"]["total"]
    assert {"warnings", "non_finite", "visits"} <= set(found)


def test_a_folder_is_replaced_only_when_asked(run, models, published):
    assert run("merge", models.recipe, published).code == 2
    before = (published / "cuvee.json").read_bytes()
    outcome = run("merge", models.recipe, published, "--overwrite", "--json")
    assert outcome.code == 0
    assert (published / "cuvee.json").read_bytes() == before


def test_the_seed_of_the_command_line_is_in_the_lineage(run, models, tmp_path):
    recipe = models.write_recipe(
        "seeded.yml",
        "merge_method: dare_linear\nbase_model: BASE\nmodels: [MATH, CODE]\nparameters: {density: 0.5}\n",
    )
    digests = set()
    for seed in (1, 2):
        digests.add(run("merge", recipe, tmp_path / f"out{seed}", "--seed", seed, "--json").json["digest"])
    assert len(digests) == 2
    manifest = json.loads((tmp_path / "out2" / "cuvee.json").read_text())
    assert manifest["recipe"]["seed"] == 2
    assert manifest["recipe_text"].endswith("# on the command line: --seed 2\n")


def test_nan_is_refused_and_let_through_when_asked(run, models, tmp_path):
    arrays = expert_arrays(3)
    arrays["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    broken = write_model(tmp_path / "broken", arrays)
    recipe = models.write_recipe("nan.yml", f"merge_method: linear\nmodels: [BASE, {broken}]\n")
    refused = run("merge", recipe, tmp_path / "out")
    assert refused.code == 2
    assert "model.layers.0.mlp.up_proj.weight" in refused.err
    assert "--allow-nan" in refused.err
    assert not (tmp_path / "out").exists()
    allowed = run("merge", recipe, tmp_path / "out", "--allow-nan", "--json")
    assert allowed.json["non_finite"] == {"model.layers.0.mlp.up_proj.weight": 1}
    said = run("merge", recipe, tmp_path / "out", "--allow-nan", "--overwrite", columns=120)
    assert "1 value in 1 tensor: model.layers.0.mlp.up_proj.weight" in said.out


def test_any_number_of_threads_gives_the_same_model(run, models, tmp_path):
    found = {
        run("merge", models.recipe, tmp_path / f"out{n}", "--threads", n, "--json").json["digest"] for n in (1, 2, 4)
    }
    assert len(found) == 1


def test_many_left_out_names_are_cut_short(run, models, tmp_path):
    recipe = models.write_recipe(
        "most.yml", 'merge_method: linear\nmodels: [MATH, CODE]\nexclude: ["model.layers.*"]\n'
    )
    outcome = run("merge", recipe, tmp_path / "out", columns=160)
    assert "15 tensors, exclude: model.layers.*" in outcome.out
    assert "and 12 more" in outcome.out


def test_an_expert_is_added_to_a_published_model(run, models, tmp_path):
    recipe = models.write_recipe(
        "opcm.yml", f"merge_method: opcm\nbase_model: {models.base}\nmodels: [{models.math}]\n"
    )
    out = tmp_path / "out"
    assert run("merge", recipe, out).code == 0
    added = run("merge", "--continue", out, "--add", models.code)
    assert added.code == 0, added.err
    assert added.out.startswith(f"{out} is published\n")
    again = run("merge", "--continue", out, "--add", models.code)
    assert again.code == 2
    assert "merged into this model already" in again.err


def test_continuing_takes_a_model_and_experts_and_no_recipe(run, models):
    for arguments, said in (
        (["--continue", "out"], "--add is missing"),
        (["--add", "expert"], "--continue is missing"),
        (["--continue", "out", "--add", "expert", models.recipe], "--continue takes no recipe"),
        (["--continue", "out", "--add", "expert", "--overwrite"], "--continue takes no --overwrite"),
    ):
        outcome = run("merge", *arguments)
        assert (outcome.code, outcome.err.split("\n")[0]) == (2, said)
