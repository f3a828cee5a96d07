"""Verifying: whatever is changed in a published model is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.engine.manifest import is_sealed, manifest_json, read_manifest
from cuvee.engine.verifying import Verified, verify
from cuvee.errors import CheckpointError

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged model in three files."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.{w}_proj.weight" for i in range(3) for w in ("up", "down")]
    models = [{name: torch.randn(8, 8, generator=generator) for name in names} for _ in range(2)]
    out = tmp_path_factory.mktemp("published") / "out"
    cuvee.merge(cuvee.Recipe("linear", models=models), out, shard_size=512)
    return out


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "out"))


def manifest_of(model: Path) -> dict[str, Any]:
    return json.loads((model / "cuvee.json").read_text())


def problems(model: Path) -> list[tuple[str, str]]:
    return [(problem.found, Path(problem.where).name) for problem in verify(model, threads=2).problems]


def shard(model: Path, number: int = 1) -> Path:
    return model / f"model-{number:05d}-of-00003.safetensors"


def test_what_was_published_is_whole(original):
    for threads in (1, 2):
        found = verify(original, threads=threads)
        assert found == Verified(6, 6 * 64 * 4, manifest_of(original)["output"]["digest"], ())


def test_every_altered_tensor_is_named(model):
    file, tensors, _ = open_safetensors(shard(model, 2))
    file.close()
    content = bytearray(shard(model, 2).read_bytes())
    for tensor in tensors.values():
        content[tensor.offset + 5] ^= 1
    shard(model, 2).write_bytes(content)
    assert problems(model) == [
        (f"tensor {name!r} does not have the values that were published", shard(model, 2).name)
        for name in sorted(tensors)
    ]
    assert verify(model).digest == ""


def test_a_file_that_is_gone_is_named(model):
    shard(model, 3).unlink()
    ((found, where),) = problems(model)
    assert "is missing" in found
    assert where == shard(model, 3).name


def test_a_file_cut_short_is_named_and_the_others_are_checked(model):
    shard(model, 1).write_bytes(shard(model, 1).read_bytes()[:-1])
    found = verify(model)
    assert [Path(problem.where).name for problem in found.problems] == [shard(model, 1).name]
    assert found.tensors == 4


def test_a_tensor_that_is_gone_and_one_too_many_are_named(model):
    content = shard(model, 1).read_bytes().replace(b"model.layers.0.mlp.up_", b"model.layers.9.mlp.up_")
    shard(model, 1).write_bytes(content)
    assert problems(model) == [
        ("tensor 'model.layers.0.mlp.up_proj.weight' is missing", shard(model, 1).name),
        ("tensor 'model.layers.9.mlp.up_proj.weight' is not in the manifest", shard(model, 1).name),
    ]


def test_another_shape_or_dtype_is_named(model):
    content = shard(model, 1).read_bytes().replace(b'"shape":[8,8]', b'"shape":[64] ', 1)
    content = content.replace(b'"dtype":"F32","shape":[8,8]', b'"dtype":"I32","shape":[8,8]', 1)
    shard(model, 1).write_bytes(content)
    assert [found for found, _ in problems(model)] == [
        "tensor 'model.layers.0.mlp.down_proj.weight' is F32 [64] in the file and F32 [8, 8] in the manifest",
        "tensor 'model.layers.0.mlp.up_proj.weight' is I32 [8, 8] in the file and F32 [8, 8] in the manifest",
    ]


def test_swapped_files_are_named(model):
    one, two = shard(model, 1).read_bytes(), shard(model, 2).read_bytes()
    shard(model, 1).write_bytes(two)
    shard(model, 2).write_bytes(one)
    found = problems(model)
    assert len(found) == 8
    assert any("by the manifest" in text for text, _ in found)


def test_a_file_of_weights_that_nobody_published_is_named(model):
    shutil.copy(shard(model, 1), model / "adapter_model.safetensors")
    assert problems(model) == [("the manifest does not name this file", "adapter_model.safetensors")]


def test_a_changed_index_is_named(model):
    index = json.loads((model / INDEX).read_text())
    index["weight_map"].popitem()
    (model / INDEX).write_text(json.dumps(index))
    assert problems(model) == [("the index names other tensors or files than the manifest", INDEX)]
    (model / INDEX).write_text("{")
    assert [where for _, where in problems(model)] == [INDEX]
    (model / INDEX).unlink()
    assert problems(model) == [("the index is missing", INDEX)]


def test_a_changed_manifest_is_named(model):
    manifest = manifest_of(model)
    manifest["output"]["digest"] = "0" * 64
    (model / "cuvee.json").write_text(json.dumps(manifest))
    ((found, where),) = problems(model)
    assert "it was changed" in found
    assert where == "cuvee.json"


@pytest.mark.parametrize("output", [None, [], {"tensors": []}, {"digest": "", "tensors": {"a": 1}}, {"digest": 0}])
def test_a_manifest_without_tensors_is_refused(model, output):
    (model / "cuvee.json").write_text(json.dumps(manifest_of(model) | {"output": output}))
    with pytest.raises(CheckpointError, match="does not say which tensors"):
        verify(model)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "", "..", "a\0b"])
def test_a_manifest_that_points_out_of_the_folder_reads_nothing_there(model, file):
    manifest = manifest_of(model)
    for entry in manifest["output"]["tensors"].values():
        entry["file"] = file
    (model / "cuvee.json").write_text(json.dumps(manifest))
    found = verify(model)
    assert found.tensors == 0
    assert any("is not a plain file name" in problem.found for problem in found.problems)


def test_progress_is_told(original):
    seen: list[tuple[int, int]] = []
    verify(original, threads=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6 * 64 * 4, 6 * 64 * 4)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged model of one tensor of five leaves and one of a single leaf."""
    generator = torch.Generator().manual_seed(1)
    models = [{"long": torch.randn(4 * 65536 + 7, generator=generator), "one": torch.randn(9)} for _ in range(2)]
    out = tmp_path_factory.mktemp("published") / "long"
    cuvee.merge(cuvee.Recipe("linear", models=models), out)
    return out


def spoil(model: Path, tensor: str, *elements: int) -> None:
    path = model / "model.safetensors"
    file, tensors, _ = open_safetensors(path)
    file.close()
    content = bytearray(path.read_bytes())
    for element in elements:
        content[tensors[tensor].offset + 4 * element] ^= 1
    path.write_bytes(content)


def test_the_leaf_of_a_changed_bit_is_named(long, tmp_path):
    model = Path(shutil.copytree(long, tmp_path / "out"))
    spoil(model, "long", 65536 + 5)
    says = "tensor 'long' does not have the values that were published"
    assert problems(model) == [(f"{says} in leaf 2 of 5: elements 65536 to 131071", "model.safetensors")]
    spoil(model, "long", 4 * 65536 + 6)
    ((found, _),) = problems(model)
    assert found.endswith("in leaf 2 of 5: elements 65536 to 131071, and 1 more of its leaves")
    spoil(model, "one", 3)
    assert len(problems(model)) == 2


def test_a_sample_reads_its_share_and_finds_what_lies_in_it(long, tmp_path):
    whole = verify(long, sample=1.0)
    assert (whole.tensors, whole.bytes, whole.problems) == (2, 4 * (4 * 65536 + 7 + 9), ())
    assert whole.digest == ""  # not that of the model: it was not read in one piece
    part = verify(long, sample=0.3)
    assert 0 < part.bytes <= 2 * 4 * 65536 and part.problems == ()
    model = Path(shutil.copytree(long, tmp_path / "out"))
    spoil(model, "long", 2 * 65536 + 1)
    found = [bool(verify(model, sample=0.3).problems) for _ in range(40)]
    assert any(found) and not all(found)  # two leaves of six: others each time
    (problem,) = verify(model, sample=1.0).problems
    assert problem.found.endswith("in leaf 3 of 5: elements 131072 to 196607")


def test_any_flipped_bit_of_a_manifest_is_found(long, tmp_path):
    model = Path(shutil.copytree(long, tmp_path / "out"))
    content = (model / "cuvee.json").read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        (model / "cuvee.json").write_bytes(changed)
        try:
            manifest = read_manifest(model)
        except CheckpointError:
            continue
        assert not is_sealed(manifest), (at, bytes(changed[max(0, at - 20) : at + 20]))


def test_fields_of_a_later_version_are_kept_and_sealed(long, tmp_path):
    model = Path(shutil.copytree(long, tmp_path / "out"))
    manifest = {key: value for key, value in manifest_of(model).items() if key != "seal"}
    manifest["licence"] = {"of": ["later", "days"]}
    (model / "cuvee.json").write_bytes(manifest_json(manifest))
    assert verify(model).problems == ()
    assert read_manifest(model)["licence"] == {"of": ["later", "days"]}
    text = (model / "cuvee.json").read_text()
    (model / "cuvee.json").write_text(text.replace("later", "other"))
    ((found, where),) = problems(model)
    assert "it was changed" in found and where == "cuvee.json"


def test_a_manifest_of_a_newer_version_is_refused_in_a_sentence(long, tmp_path):
    model = Path(shutil.copytree(long, tmp_path / "out"))
    (model / "cuvee.json").write_text(json.dumps(manifest_of(model) | {"format": 2, "cuvee": "9.1\x1b[2J"}))
    with pytest.raises(CheckpointError, match=r"the manifest has format 2, written by cuvee 9\.1") as caught:
        verify(model)
    assert "\x1b" not in str(caught.value)
    assert caught.value.right == "pip install -U cuvee"


def test_a_changed_file_beside_the_weights_is_named(workplace):
    base = Path("base")
    (base / "extra").mkdir(parents=True)
    save_file({"w": torch.ones(3)}, base / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "extra/code.py"):
        (base / name).write_text("{}")
    cuvee.merge(cuvee.Recipe("linear", models=["base", "base"]), "out")
    assert problems(Path("out")) == []
    Path("out/README.md").write_text("my own words")  # the card is the user's
    assert problems(Path("out")) == []
    Path("out/tokenizer.json").write_text("{ }")
    Path("out/extra/code.py").write_text("import os")
    Path("out/config.json").unlink()
    assert sorted(problems(Path("out"))) == [
        ("'config.json' is missing", "config.json"),
        ("the file is not what was published", "code.py"),
        ("the file is not what was published", "tokenizer.json"),
    ]
    shutil.rmtree("out/extra")
    Path("out/extra").symlink_to(Path("base/extra").absolute())
    assert ("'extra/code.py' leads out of the folder", "code.py") in problems(Path("out"))


@pytest.mark.parametrize("name", ["../base/config.json", "/etc/passwd", "extra/../../x", "", "a//b", "a\0b"])
def test_a_manifest_that_names_files_elsewhere_reads_nothing_there(long, tmp_path, name):
    model = Path(shutil.copytree(long, tmp_path / "out"))
    manifest = {key: value for key, value in manifest_of(model).items() if key != "seal"}
    manifest["output"]["files"] = {name: "00"}
    (model / "cuvee.json").write_bytes(manifest_json(manifest))
    ((found, _),) = problems(model)
    assert "is not a plain file name" in found or "leads out of the folder" in found
