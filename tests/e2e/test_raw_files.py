"""Files of tensors that are no model of transformers: .pt, .bin and .safetensors, merged as mergekit-pytorch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import Tensors, read_folder
from safetensors.torch import save_file

import cuvee
from cuvee.errors import IncompatibleModels, ResourceError
from cuvee.recipes import parse_recipe


def tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"features.0.weight": (4, 3, 3, 3), "features.1.running_mean": (4,), "fc.weight": (5, 4), "odd": (7,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {
        "features.1.num_batches_tracked": torch.tensor(3)
    }


@pytest.fixture
def files(tmp_path: Path) -> Path:
    torch.save(tensors(0), tmp_path / "base.pt")
    torch.save({"state_dict": tensors(1), "epoch": 3}, tmp_path / "one.ckpt")
    save_file(tensors(2), tmp_path / "two.safetensors")
    torch.save(tensors(3), tmp_path / "three.bin")
    return tmp_path


RECIPE = """\
merge_method: ties
base_model: {0}/base.pt
models:
  - {{model: {0}/one.ckpt, parameters: {{weight: 1, density: 0.5}}}}
  - {{model: {0}/two.safetensors, parameters: {{weight: [0.5, 9], density: 0.7}}}}
  - {{model: {0}/three.bin, parameters: {{weight: [{{filter: fc, value: 2}}, {{value: 0}}]}}}}
"""


def test_files_are_merged_as_the_tensors_in_them_and_gradients_take_their_first_value(files):
    cuvee.merge(parse_recipe(RECIPE.format(files)), files / "out")
    expected = cuvee.merge_tensors(
        "ties",
        [tensors(1), tensors(2), tensors(3)],
        tensors(0),
        weight=[1, 0.5, [{"filter": "fc", "value": 2}, {"value": 0}]],
        density=[0.5, 0.7, 1.0],
    )
    out = read_folder(files / "out")
    assert out.keys() == expected.keys()
    assert all(torch.equal(out[name], expected[name]) for name in out)
    assert sorted(path.name for path in (files / "out").iterdir()) == ["README.md", "cuvee.json", "model.safetensors"]


def test_what_is_not_a_float_is_carried_over(files):
    cuvee.merge(parse_recipe(RECIPE.format(files)), files / "out")
    assert read_folder(files / "out")["features.1.num_batches_tracked"].item() == 3


def test_a_file_that_lacks_tensors_is_named_with_them(files):
    save_file({name: t for name, t in tensors(2).items() if name != "odd"}, files / "two.safetensors")
    with pytest.raises(IncompatibleModels, match=r"two.safetensors' lacks 1 tensor that .* have: 'odd'"):
        cuvee.plan(parse_recipe(RECIPE.format(files)))


@pytest.mark.parametrize("name", ["out.safetensors", "out.bin", "out.PT"])
def test_the_output_is_a_folder_and_never_called_like_a_file(files, name):
    with pytest.raises(ResourceError, match="the output is a folder, and this is the name of a file"):
        cuvee.merge(parse_recipe(RECIPE.format(files)), files / name)
    assert not (files / name).exists()
