"""Inputs that cuvee has published: a merge holds them against their own manifests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import cuvee
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.errors import CheckpointError


@pytest.fixture
def models(workplace):
    """A published model `mine`, and `other`, which is like it."""
    generator = torch.Generator().manual_seed(0)
    tensors = [{n: torch.randn(6, 5, generator=generator) for n in ("up", "down", "norm")} for _ in range(2)]
    cuvee.merge(cuvee.Recipe("linear", models=tensors), "mine")
    shutil.copytree("mine", "other")
    Path("other/cuvee.json").unlink()


def merge(**options):
    return cuvee.merge(cuvee.Recipe("linear", models=["mine", "other"]), "out", **options)


def flip(path: Path, tensor: str) -> None:
    file, tensors, _ = open_safetensors(path)
    file.close()
    content = bytearray(path.read_bytes())
    content[tensors[tensor].offset] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_an_input_that_was_published_is_named_and_nothing_is_written(models):
    flip(Path("mine/model.safetensors"), "norm")
    with pytest.raises(CheckpointError) as caught:
        merge()
    assert caught.value.found == ("tensor 'norm' does not have the values that were published, by mine/cuvee.json")
    assert caught.value.where == "mine/model.safetensors"
    assert "remove mine/cuvee.json" in caught.value.right
    assert not Path("out").exists()


def test_without_its_manifest_it_is_taken_as_it_is(models):
    flip(Path("other/model.safetensors"), "norm")
    merge()
    assert Path("out/model.safetensors").exists()


@pytest.mark.parametrize("damage", ["seal", "text", "newer", "list"])
def test_a_manifest_that_cannot_be_trusted_says_nothing(models, damage):
    flip(Path("mine/model.safetensors"), "norm")
    manifest = json.loads(Path("mine/cuvee.json").read_text())
    text = {
        "seal": json.dumps(manifest | {"cuvee": "other"}),
        "text": "{",
        "newer": json.dumps(manifest | {"format": 99}),
        "list": "[]",
    }[damage]
    Path("mine/cuvee.json").write_text(text)
    merge()
    assert Path("out/model.safetensors").exists()
