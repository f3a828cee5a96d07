"""Adapters merged as they are: folders in, a folder out that PEFT loads and that applies to the base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.engine.verifying import verify
from cuvee.errors import CheckpointError, CuveeError, IncompatibleModels
from cuvee.evaluation.model_folders import save_model
from cuvee.evaluation.tiny_llama import Shape, TinyLlama

pytest.importorskip("peft")
SHAPE = Shape(hidden=16, intermediate=24, layers=2, heads=2, key_value_heads=1, context=32)
TOKENS = torch.tensor([[3, 200, 7, 65]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base, and two adapters of it that PEFT has saved, with a module that is saved whole."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters")
    save_model(TinyLlama(SHAPE, seed=1), folder / "base")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
        network = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
        for key, value in network.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                value.data += 0.1 * torch.randn_like(value)
        network.save_pretrained(folder / name)
    return folder


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(models=("one", "two"), out="out", **parameters):
    return cuvee.merge(cuvee.Recipe("copa_merging", models=models, parameters=parameters), out)


def test_the_output_is_an_adapter_that_peft_loads_and_that_applies_to_the_base(workplace):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merge(density=0.5)
    assert {path.name for path in (workplace / "out").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (workplace / "out" / "config.json").exists()
    network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "out").merge_and_unload().eval()
    cuvee.merge(cuvee.Recipe("linear", models=["base+out"]), "applied")
    ours = AutoModelForCausalLM.from_pretrained("applied").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS).logits, network(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_a_recipe_gives_the_bytes_of_direct_use_and_verifies(workplace):
    merge(density=0.3, clamp_top=0.5)
    want = cuvee.merge_tensors(
        "copa_merging",
        [load_file(f"{name}/adapter_model.safetensors") for name in ("one", "two")],
        density=0.3,
        clamp_top=0.5,
    )
    got = load_file("out/adapter_model.safetensors")
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert not verify(workplace / "out").problems
    manifest = json.loads((workplace / "out/cuvee.json").read_text())
    assert [one["model"] for one in manifest["inputs"]] == ["one", "two"]
    assert all(len(one["tensors"]) == len(got) for one in manifest["inputs"])


def test_what_is_no_factor_is_averaged(workplace):
    merge()
    one, two, out = (load_file(f"{name}/adapter_model.safetensors") for name in ("one", "two", "out"))
    (head,) = [name for name in out if "lm_head" in name]
    torch.testing.assert_close(out[head], (one[head] + two[head]) / 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora_alpha", 16), ("use_rslora", True), ("alpha_pattern", {"q_proj": 3}), ("fan_in_fan_out", True)],
)
def test_adapters_that_scale_their_factors_differently_are_refused(workplace, key, value):
    path = workplace / "two" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(IncompatibleModels, match=f"{key} is .* different updates") as raised:
        merge()
    assert "BASE+one" in raised.value.right
    assert not (workplace / "out").exists()


def test_adapters_of_other_bases_are_pointed_out(workplace):
    path = workplace / "two" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "other"}))
    assert any("different bases" in said for said in merge().warnings)


def test_what_is_no_adapter_is_refused_in_words(workplace):
    for models, error, said in (
        (["base", "one"], CheckpointError, "holds no adapter"),
        (["none", "one"], CheckpointError, "no file or folder 'none'"),
        (["base+one", "two"], CheckpointError, "no file or folder"),
    ):
        with pytest.raises(error, match=said):
            merge(models)
    with pytest.raises(IncompatibleModels, match="no factors of adapters"):
        merge([{"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)}])
    tensors = load_file("two/adapter_model.safetensors")
    del tensors[next(name for name in tensors if "q_proj.lora_B" in name)]
    save_file(tensors, "two/adapter_model.safetensors")
    with pytest.raises(CuveeError, match="lacks 1 tensor"):
        merge()
    with pytest.raises(CuveeError, match="have no slices"):
        part = cuvee.RecipeModel("one", layer_range=(0, 1))
        cuvee.plan(cuvee.Recipe("copa_merging", slices=[_slice(part)]))
    assert not (workplace / "out").exists()


def _slice(part):
    from cuvee.recipes import Slice

    return Slice([part])


def test_nan_in_a_factor_is_named(workplace):
    tensors = load_file("two/adapter_model.safetensors")
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, "two/adapter_model.safetensors")
    with pytest.raises(CuveeError, match="NaN"):
        merge()
    assert not (workplace / "out").exists()


def test_a_stage_cannot_be_an_adapter(workplace):
    (workplace / "recipe.yml").write_text(
        "name: first\nmerge_method: linear\nmodels: [base]\n---\nmerge_method: copa_merging\nmodels: [first, one]\n"
    )
    with pytest.raises(CuveeError, match="this is a recipe"):
        cuvee.merge("recipe.yml", "out")
