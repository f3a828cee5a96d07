"""`cuvee verify --load`: transformers is asked what it would miss, without a weight being read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import LLAMA, write_family

import cuvee
from cuvee.cli import main
from cuvee.engine.loading import check_loads
from cuvee.errors import CheckpointError
from cuvee.recipes import Recipe

pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_family(tmp_path)
    recipe = Recipe("linear", models=[str(tmp_path / "math"), str(tmp_path / "code")], parameters={"weight": 1})
    cuvee.merge(recipe, tmp_path / "out")
    return tmp_path / "out"


def test_a_published_model_has_all_that_its_config_promises(out, capsys):
    assert check_loads(out) == []
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(out), "--load"])
    assert not ended.value.code
    assert "transformers finds all its tensors" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"num_hidden_layers": 3}, "9 tensors are missing: 'model.layers.2."),
        ({"num_hidden_layers": 1}, "9 tensors belong to no part of the architecture: 'model.layers.1."),
        ({"vocab_size": 50}, "is (48, 16), and config.json makes it (50, 16)"),
    ],
)
def test_a_config_that_promises_something_else_is_named(out, change, found):
    (out / "config.json").write_text(json.dumps({**LLAMA, **change}))
    assert any(found in error.found for error in check_loads(out))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama"}, "names no architecture"),
        ({"architectures": ["TheirForCausalLM"]}, "has no TheirForCausalLM"),
    ],
)
def test_an_architecture_that_transformers_does_not_have_is_said(out, config, found):
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=found):
        check_loads(out)
