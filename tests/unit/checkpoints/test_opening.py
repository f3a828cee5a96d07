"""Which files a reference means, and what is refused before a byte of a tensor is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import WriteModel, read_model, same_bytes
from safetensors.torch import save_file

from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import Scratch
from cuvee.errors import CheckpointError

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write_shards(folder: Path, weight_map: Any = None, **extra: Any) -> Path:
    """Two shards: `a` in the first, `b` and `c` in the second."""
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, folder / A)
    save_file({"b": torch.ones(3), "c": torch.zeros(2)}, folder / B)
    index = {"a": A, "b": B, "c": B} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": index, **extra}))
    return folder


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    model = open_model(write_shards(tmp_path))
    assert {name: source.shape for name, source in model.tensors.items()} == {"a": (2, 3), "b": (3,), "c": (2,)}
    assert model.folder == tmp_path and len(model.files) == 2 and model.config is None
    assert same_bytes(read_model(model)["a"], torch.arange(6.0).reshape(2, 3))


def test_a_script_may_end_with_a_model_open(tmp_path: Path) -> None:
    code = f"import cuvee; model = cuvee.open_model({str(write_shards(tmp_path))!r}); print(len(model.tensors))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_folder_with_one_file_and_config(write_model: WriteModel) -> None:
    config = {"model_type": "tiny", "time_step_limit": [0.0, float("inf")]}
    folder = write_model({"w": torch.ones(2)}, config)
    model = open_model(str(folder))
    assert model.config == config and model.label == str(folder)
    bare = open_model(folder / "model.safetensors")
    assert bare.config == config and bare.folder is None


def test_bare_file_of_another_name_has_no_config(write_model: WriteModel) -> None:
    folder = write_model({"w": torch.ones(2)}, {"model_type": "tiny"})
    (folder / "model.safetensors").rename(folder / "lora_merged.safetensors")
    assert open_model(folder / "lora_merged.safetensors").config is None


def test_model_safetensors_wins_and_the_others_are_named(write_model: WriteModel) -> None:
    folder = write_model({"w": torch.ones(2)})
    save_file({"w": torch.zeros(2), "x": torch.zeros(2)}, folder / "consolidated.safetensors")
    torch.save({"w": torch.zeros(2)}, folder / "pytorch_model.bin")
    model = open_model(folder)
    assert set(model.tensors) == {"w"}
    assert any("consolidated.safetensors" in note for note in model.notes)


def test_all_files_are_read_where_there_is_no_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).unlink()
    assert set(open_model(tmp_path).tensors) == {"a", "b", "c"}


def test_sentence_transformers_folders_are_read_and_their_parts_named(write_model: WriteModel) -> None:
    folder = write_model({"w": torch.ones(2)}, {})
    for part in ("1_Pooling", "2_Dense"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")
    save_file({"linear.weight": torch.ones(2, 2)}, folder / "2_Dense/model.safetensors")
    model = open_model(folder)
    assert set(model.tensors) == {"w"}
    assert [note for note in model.notes if "2_Dense" in note] and not [n for n in model.notes if "1_Pooling" in n]


def test_any_single_index_will_do(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).rename(tmp_path / "diffusion_pytorch_model.safetensors.index.json")
    assert set(open_model(tmp_path).tensors) == {"a", "b", "c"}


def test_cache_of_the_hub_is_followed_through_its_links(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot, blobs = repo / "snapshots" / "abc", repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_shards(tmp_path / "plain")
    for name in (A, B, INDEX):
        (tmp_path / "plain" / name).rename(blobs / f"blob-{name}")
        (snapshot / name).symlink_to(f"../../blobs/blob-{name}")
    assert set(open_model(snapshot).tensors) == {"a", "b", "c"}


def test_paths_may_hold_plus_and_at_signs(tmp_path: Path, write_model: WriteModel) -> None:
    folder = write_model({"w": torch.ones(2)}, name="a+b@c")
    assert set(open_model(str(folder)).tensors) == {"w"}


# ---- refused: the index


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": A, "b": B}, "does not name it"),
        ({"a": A, "b": B, "c": B, "d": B}, "does not hold it"),
        ({"a": A, "b": B, "c": A}, "does not hold it"),
        ({"a": B, "b": B, "c": B}, "does not hold it"),
        ({"a": A, "b": B, "c": B, "d": "model-00003.safetensors"}, "is missing"),
        ({"a": "../" + A, "b": B, "c": B}, "no plain name"),
        ({"a": "/etc/passwd.safetensors", "b": B, "c": B}, "no plain name"),
        ({"a": "sub\\" + A, "b": B, "c": B}, "no plain name"),
        ({"a": "a\0.safetensors", "b": B, "c": B}, "no plain name"),
        ({"a": "config.json", "b": B, "c": B}, "no plain name"),
        ({"a": 3, "b": B, "c": B}, "no plain name"),
        ({"a": [A], "b": B, "c": B}, "no plain name"),
        ({}, "no 'weight_map'"),
        ([A, B], "no 'weight_map'"),
        ("x", "no 'weight_map'"),
    ],
)
def test_index_that_does_not_tell_the_truth_is_refused(weight_map: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        open_model(write_shards(tmp_path, weight_map))
    assert str(tmp_path) in caught.value.where and caught.value.right


def test_error_of_the_index_names_file_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_model(write_shards(tmp_path, {"a": A, "b": B}))
    assert caught.value.where == str(tmp_path / B) and "'c'" in caught.value.found


def test_tensor_named_twice_in_the_index_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).write_text(f'{{"weight_map": {{"a": "{A}", "b": "{B}", "c": "{B}", "a": "{B}"}}}}')
    with pytest.raises(CheckpointError, match="'a' twice"):
        open_model(tmp_path)


@pytest.mark.parametrize("target", ["outside", "fifo", "folder", "nowhere"])
def test_index_entry_that_leads_elsewhere_is_refused(target: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "model")
    (folder / A).rename(tmp_path / "outside.safetensors")
    if target == "fifo":
        os.mkfifo(folder / A)  # opening it would wait forever
    elif target == "folder":
        (folder / A).mkdir()
    else:
        (folder / A).symlink_to(tmp_path / ("outside.safetensors" if target == "outside" else "x"))
    with pytest.raises(CheckpointError, match="outside the folder|not a regular file"):
        open_model(folder)


def test_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "model")
    (folder / A).rename(folder / "real")
    (folder / A).symlink_to("real")
    assert set(open_model(folder).tensors) == {"a", "b", "c"}


def test_two_shards_with_one_name_are_refused_without_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="'a' is also in x.safetensors"):
        open_model(tmp_path)


def test_missing_shard_is_noticed_without_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / A).unlink()
    with pytest.raises(CheckpointError, match=f"{A} is missing"):
        open_model(tmp_path)


# ---- refused: JSON


JSONS: list[tuple[bytes, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[1]", "not an object"),
    (b"[" * 100_000, "not JSON"),
    (b'{"a":' * 100_000, "not JSON"),
    (b'{"a": "\\ud800"}', "half a surrogate"),
    (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    (b'{"a": "\xff"}', "not JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
]


@pytest.mark.parametrize(("text", "said"), JSONS)
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_hostile_json_is_refused(file: str, text: bytes, said: str, tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / file).write_bytes(text)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_model(tmp_path)
    assert caught.value.where == str(tmp_path / file)


@pytest.mark.parametrize("text", [b'{"weight_map": NaN}', b'{"weight_map": {"a": Infinity}}'])
def test_numbers_that_json_does_not_have_are_refused_in_an_index(text: bytes, tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / INDEX).write_bytes(text)
    with pytest.raises(CheckpointError, match="not JSON"):
        open_model(tmp_path)


@pytest.mark.parametrize(("file", "size"), [("config.json", 17 << 20), (INDEX, 65 << 20)])
def test_huge_json_is_refused_without_reading_it(file: str, size: int, tmp_path: Path) -> None:
    write_shards(tmp_path)
    with open(tmp_path / file, "wb") as out:
        out.truncate(size)
    with pytest.raises(CheckpointError, match=f"{size} bytes"):
        open_model(tmp_path)


def test_config_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path, write_model: WriteModel) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": 1}')
    folder = write_model({"w": torch.ones(2)})
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside the folder"):
        open_model(folder)


# ---- refused: references


def test_what_a_folder_holds_is_said_when_it_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="empty"):
        open_model(tmp_path)
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(CheckpointError, match="README.md") as caught:
        open_model(tmp_path)
    assert "model.safetensors" in caught.value.right
    torch.save({"w": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as caught:
        open_model(tmp_path)
    assert str(tmp_path / "weights.pt") in caught.value.right


def test_model_in_a_subfolder_is_pointed_to(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="unet") as caught:
        open_model(tmp_path)
    assert str(tmp_path / "unet") in caught.value.right


def test_misspelt_path_is_answered_with_the_nearest(tmp_path: Path, write_model: WriteModel) -> None:
    write_model({"w": torch.ones(1)}, name="mistral")
    with pytest.raises(CheckpointError) as caught:
        open_model(str(tmp_path / "mistrall"))
    assert str(tmp_path / "mistral") in caught.value.right


@pytest.mark.parametrize(
    "reference", ["", "\0", "no such", "gpt2", "a/b/c", "../x", "x+", "+x", "org/..", "-x/y", "x" * 5000]
)
def test_references_to_nothing_are_refused(reference: str) -> None:
    with pytest.raises(CheckpointError, match="no file or folder"):
        open_model(reference)


def test_path_objects_are_never_looked_up_on_the_hub() -> None:
    with pytest.raises(CheckpointError, match="no file or folder"):
        open_model(Path("org/name"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m.gguf", "GGUF"),
        ("m.txt", "'.txt'"),
        ("m", "without a suffix"),
        (INDEX, "an index"),
        ("adapter_model.safetensors", "an adapter's"),
        ("m.bin", "no archive"),
    ],
)
def test_other_files_are_refused(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(CheckpointError, match=said):
        open_model(tmp_path / name)


def test_pipes_are_refused_without_opening_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        open_model(tmp_path / "m.safetensors")


def test_files_are_closed_when_a_model_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": A, "b": B})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(CheckpointError):
            open_model(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_cut_short_after_opening_is_noticed(write_model: WriteModel) -> None:
    folder = write_model({"w": torch.ones(1000)})
    model = open_model(folder)
    os.truncate(folder / "model.safetensors", 500)
    with pytest.raises(CheckpointError, match="cut short"):
        model.tensors["w"].read(0, 1000, Scratch(), 0)
    with pytest.raises(CheckpointError, match="changed"):
        model.files[0].check_unchanged()
