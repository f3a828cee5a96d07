"""A language model takes its place in a vision-language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import assert_equal, read_folder
from test_modules import llava

from cuvee.engine.filling import plan_fill
from cuvee.engine.run import run
from cuvee.errors import IncompatibleModels

transformers = pytest.importorskip("transformers")


def language_model(**settings: int) -> object:
    config = transformers.LlamaConfig(
        **{
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 64,
            **settings,
        }
    )
    torch.manual_seed(9)
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    llava().save_pretrained(tmp_path / "whole")
    language_model().save_pretrained(tmp_path / "part")
    return tmp_path


def test_a_language_model_replaces_that_of_a_vision_language_model(folders):
    run(plan_fill(str(folders / "whole"), str(folders / "part")), folders / "out")
    loaded, said = transformers.LlavaForConditionalGeneration.from_pretrained(folders / "out", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    part = transformers.LlamaForCausalLM.from_pretrained(folders / "part")
    tokens = torch.tensor([[1, 5, 9]])
    assert torch.allclose(loaded(input_ids=tokens).logits, part(input_ids=tokens).logits, atol=1e-5)
    whole, out = read_folder(folders / "whole"), read_folder(folders / "out")
    seeing = [name for name in whole if "vision" in name or "projector" in name]
    assert seeing
    assert_equal({n: out[n] for n in seeing}, {n: whole[n] for n in seeing})
    manifest = json.loads((folders / "out" / "cuvee.json").read_text())
    assert [one["role"] for one in manifest["inputs"]] == ["base", "the part that was filled in"]


def test_a_model_with_the_same_names_fills_too(folders):
    whole = read_folder(folders / "whole")
    some = {name: 2 * tensor for name, tensor in list(whole.items())[:5]}
    (folders / "some").mkdir()
    from safetensors.torch import save_file

    save_file(some, folders / "some" / "model.safetensors", {"format": "pt"})
    run(plan_fill(str(folders / "whole"), str(folders / "some")), folders / "out")
    assert_equal(read_folder(folders / "out"), {**whole, **some})


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"vocab_size": 70}, r"is \(70, 16\) in .* and \(64, 16\) in"),
        ({"num_hidden_layers": 4}, "has no place for 9 of"),
    ],
)
def test_a_part_of_another_size_is_refused(folders, settings, found):
    language_model(**settings).save_pretrained(folders / "other")
    with pytest.raises(IncompatibleModels, match=found):
        plan_fill(str(folders / "whole"), str(folders / "other"))


def test_the_command_publishes(folders, monkeypatch, capsys):
    from cuvee.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["fill", str(folders / "whole"), str(folders / "part"), str(folders / "out"), "--quiet"])
    assert not ended.value.code, capsys.readouterr().err
    assert (folders / "out" / "config.json").exists()
