"""`cuvee moe`."""

from __future__ import annotations

import json
import sys

import pytest
from dense_models import PROMPTS, dense, save, write_tokenizer


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A base, two experts, and a config."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("base", "math", "code")):
        save(dense("llama", seed=seed), folder / name)
    write_tokenizer(folder / "base")
    (folder / "base" / "chat_template.jinja").write_text("{{ messages }}")
    entries = "".join(
        f"  - source_model: {folder / name}\n    positive_prompts: [{prompt}]\n"
        for name, prompt in zip(("math", "code"), PROMPTS, strict=False)
    )
    path = folder / "moe.yml"
    path.write_text(f"base_model: {folder / 'base'}\ngate_mode: cheap_embed\ndtype: bfloat16\nexperts:\n{entries}")
    return path


def test_a_mixture_is_published_with_its_routing(run, experts, tmp_path):
    out = tmp_path / "out"
    outcome = run("moe", experts, out, columns=200)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{out} is published\n")
    assert "Mixtral, experts fused; 2 experts, 2 a token" in outcome.out
    assert "Routing" in outcome.out
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (out / "tokenizer.json").read_bytes() == (experts.parent / "base" / "tokenizer.json").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["num_local_experts"], config["num_experts_per_tok"]) == ("mixtral", 2, 2)
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    card = (out / "README.md").read_text()
    assert "**mixture of experts** (Mixtral layout)" in card
    assert "positive_prompts" in card
    assert run("verify", out).code == 0


def test_the_manifest_says_what_each_model_was_for(run, experts, tmp_path):
    assert run("moe", experts, tmp_path / "out", "--quiet", "--skip-routing").code == 0
    manifest = json.loads((tmp_path / "out" / "cuvee.json").read_text())
    assert [entry["role"] for entry in manifest["inputs"]] == ["base", "expert 0", "expert 1"]
    assert "model.layers.1.mlp.down_proj.weight" in manifest["inputs"][1]["tensors"]
    assert "model.embed_tokens.weight" in manifest["inputs"][1]["unread"]
    assert "model.embed_tokens.weight" in manifest["inputs"][0]["tensors"]
    assert manifest["recipe"]["experts"][1]["positive_prompts"] == [PROMPTS[1]]


def test_json_is_one_object(run, experts, tmp_path):
    outcome = run("moe", experts, tmp_path / "out", "--json", "--seed", "3")
    found = outcome.json
    assert found["layout"] == "Mixtral"
    assert found["fused"] is True
    assert found["routing"]["own"] == [1.0, 1.0]
    assert found["routing"]["chance"] == 1.0
    assert "routing" in found["seconds"]
    manifest = json.loads((tmp_path / "out" / "cuvee.json").read_text())
    assert manifest["recipe_text"].endswith("# on the command line: --seed 3\n")
    assert found["digest"] == manifest["output"]["digest"]
    assert run("moe", experts, tmp_path / "out").code == 2
    assert run("moe", experts, tmp_path / "out", "--overwrite", "--quiet").code == 0


def test_errors_of_config_and_models_end_with_code_2(run, experts, tmp_path):
    bad = tmp_path / "bad.yml"
    bad.write_text(experts.read_text().replace("gate_mode: cheap_embed", "gate_mode: cheap").replace("math", "maths"))
    outcome = run("moe", bad, tmp_path / "out", columns=200)
    assert outcome.code == 2
    assert "bad.yml:2:1 (gate_mode)" in outcome.err
    assert "did you mean 'cheap_embed'?" in outcome.err
    bad.write_text(experts.read_text().replace("math", "maths"))
    assert "there is no file or folder" in run("moe", bad, tmp_path / "out").err
    bad.write_text(experts.read_text() + "architecture: qwen3\n")
    assert "Qwen3 MoE: it is made of qwen3 models, and the base is of model_type 'llama'" in run(
        "moe", bad, tmp_path / "out", columns=200
    ).err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_routing_that_cannot_be_measured_does_not_undo_the_model(run, experts, tmp_path, monkeypatch):
    import cuvee.moe.routing
    from cuvee.errors import ResourceError

    def refuse(*_):
        raise ResourceError("no transformers", right="pip install")

    monkeypatch.setattr(cuvee.moe.routing, "measure_routing", refuse)
    outcome = run("moe", experts, tmp_path / "out", "--json")
    assert outcome.code == 0
    assert outcome.json["routing"] is None
    assert any("the routing was not measured: no transformers" in warning for warning in outcome.json["warnings"])


@pytest.mark.slow
def test_random_gates_need_no_transformers(experts, tmp_path):
    import subprocess

    path = tmp_path / "random.yml"
    path.write_text(experts.read_text().replace("cheap_embed", "random"))
    code = (
        "import sys\nsys.modules['transformers'] = None\nimport cuvee\n"
        f"cuvee.build_moe({str(path)!r}, {str(tmp_path / 'out')!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
