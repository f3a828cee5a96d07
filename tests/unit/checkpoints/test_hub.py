"""Models of the hub, against a stand-in on 127.0.0.1."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_stand_in import Repo, StandIn, running
from model_files import read_model
from safetensors.torch import save

from cuvee.checkpoints import hub as hub_module
from cuvee.checkpoints.opening import open_model
from cuvee.errors import CheckpointError

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.chdir(tmp_path)
    with running() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        # read once when the library was imported, perhaps by another test
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield stand_in


def files(**tensors: torch.Tensor) -> dict[str, bytes]:
    """A model in one file, with what repositories hold besides."""
    return {
        "model.safetensors": save(tensors or {"w": torch.arange(6.0)}),
        "config.json": b'{"model_type": "tiny"}',
        "tokenizer.json": b"{}",
        "README.md": b"# tiny",
        ".gitattributes": b"",
        "pytorch_model.bin": b"not wanted",
        "onnx/model.onnx": b"not wanted",
        "original/consolidated.00.pth": b"not wanted",
        "1_Pooling/config.json": b'{"pooling": 1}',
        "flax_model.msgpack": b"not wanted",
    }


def test_only_the_needed_files_of_one_commit_are_fetched(hub: StandIn) -> None:
    commit = hub.add("org/tiny", files())
    model = open_model("org/tiny")
    assert torch.equal(read_model(model)["w"], torch.arange(6.0))
    assert model.config == {"model_type": "tiny"} and model.label == "org/tiny"
    assert model.commits == {"org/tiny": commit}
    assert any(commit in note for note in model.notes)
    assert model.folder is not None and model.folder.name == commit
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "README.md", "1_Pooling/config.json"}
    assert hub.fetched() == wanted


def test_sharded_models_are_fetched_by_their_index(hub: StandIn) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    content = {
        names[0]: save({"a": torch.ones(2)}),
        names[1]: save({"b": torch.ones(3)}),
        "consolidated.safetensors": b"not wanted",
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    hub.add("org/sharded", content)
    assert set(open_model("org/sharded").tensors) == {"a", "b"}
    assert hub.fetched() == {*names, "model.safetensors.index.json"}


def test_bin_files_are_fetched_only_where_there_is_no_safetensors(hub: StandIn, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.bin")
    hub.add("org/old", {"pytorch_model.bin": (tmp_path / "m.bin").read_bytes(), "config.json": b"{}"})
    assert set(open_model("org/old").tensors) == {"w"}


def test_revisions_are_branches_tags_and_commits(hub: StandIn) -> None:
    new = hub.add("org/tiny", files(w=torch.ones(1)))
    repo = hub.repos["org/tiny"]
    old = "a" * 40
    repo.commits[old] = files(w=torch.zeros(1))
    repo.branches["v1"] = old
    for reference, revision, commit in (
        ("org/tiny@v1", None, old),
        ("org/tiny", "v1", old),
        ("org/tiny", old, old),
        ("org/tiny@main", None, new),
        ("org/tiny@v1", "v1", old),
    ):
        assert open_model(reference, revision=revision).commits == {"org/tiny": commit}
    with pytest.raises(CheckpointError, match="two revisions"):
        open_model("org/tiny@v1", revision="main")


def test_second_opening_fetches_nothing_again(hub: StandIn) -> None:
    hub.add("org/tiny", files())
    open_model("org/tiny")
    hub.seen.clear()
    open_model("org/tiny")
    assert hub.fetched() == set()


def test_offline_reads_the_cache_and_asks_nobody(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", files())
    with pytest.raises(CheckpointError, match="not in the local cache"):
        open_model("org/tiny", offline=True)
    commit = hub.add("org/tiny", files())
    open_model("org/tiny")
    hub.seen.clear()
    assert open_model("org/tiny", offline=True).commits == {"org/tiny": commit}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_model("org/tiny").commits == {"org/tiny": commit}
    assert hub.seen == []


def test_unreachable_hub_leaves_the_cache_and_says_so(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", files())
    open_model("org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert any("cannot be reached" in note for note in open_model("org/tiny").notes)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        open_model("org/other")


def test_private_models_need_the_token(hub: StandIn) -> None:
    hub.add("org/private", files(), private_to="hf_secret")
    assert set(open_model("org/private", token="hf_secret").tensors) == {"w"}
    with pytest.raises(CheckpointError, match="or it is private") as caught:
        open_model("org/private", token="hf_wrong", revision="main")
    assert "hf auth login" in caught.value.right and "hf_wrong" not in str(caught.value)


def test_faults_are_said_in_words(hub: StandIn) -> None:
    hub.add("org/gated", files(), gated=True)
    with pytest.raises(CheckpointError, match="gated") as caught:
        open_model("org/gated")
    assert f"{hub.url}/org/gated" in caught.value.right
    with pytest.raises(CheckpointError, match="nor is there a file or folder"):
        open_model("org/nothing")
    hub.add("org/tiny", files())
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        open_model("org/tiny@v9")
    hub.add("org/dataset", {"data.csv": b"1,2"})
    with pytest.raises(CheckpointError, match="no model on the hub: data.csv"):
        open_model("org/dataset")


def test_index_that_names_a_missing_file_is_refused(hub: StandIn) -> None:
    hub.add("org/half", {"model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}'})
    with pytest.raises(CheckpointError, match="which the hub does not have"):
        open_model("org/half")


def test_names_that_climb_are_never_fetched(hub: StandIn) -> None:
    hub.add("org/tiny", {**files(), "../../evil.json": b"{}", "a/../../evil.json": b"{}"})
    open_model("org/tiny")
    assert not any("evil" in name for name in hub.fetched())


def test_adapters_of_the_hub_are_applied(hub: StandIn, tmp_path: Path) -> None:
    base = hub.add("org/base", {"model.safetensors": save({"fc.weight": torch.ones(3, 2)})})
    update = {
        "base_model.model.fc.lora_A.weight": torch.ones(1, 2),
        "base_model.model.fc.lora_B.weight": torch.ones(3, 1),
    }
    config = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}).encode()
    content = {"adapter_config.json": config, "adapter_model.safetensors": save(update), "README.md": b"not wanted"}
    adapter = hub.add("org/adapter", content)
    model = open_model("org/base+org/adapter@main")
    assert torch.equal(read_model(model)["fc.weight"], torch.full((3, 2), 3.0))
    assert model.commits == {"org/base": base, "org/adapter": adapter}
    with pytest.raises(CheckpointError, match="holds no adapter on the hub"):
        open_model("org/base+org/base")


def test_what_exists_locally_is_not_looked_up(hub: StandIn, tmp_path: Path) -> None:
    hub.add("org/tiny", files())
    (tmp_path / "org/tiny").mkdir(parents=True)
    (tmp_path / "org/tiny/model.safetensors").write_bytes(save({"local": torch.ones(1)}))
    assert set(open_model("org/tiny").tensors) == {"local"}
    assert hub.seen == []


def test_branch_that_moves_while_it_is_fetched_is_read_at_one_commit(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", files(w=torch.zeros(1)))
    moved = "b" * 40
    original = hub_module._Client.download

    def download(client: hub_module._Client, name: str, revision: str) -> tuple[Path, str]:
        repo = hub.repos["org/tiny"]
        repo.commits[moved] = files(w=torch.ones(1))
        repo.branches["main"] = moved
        return original(client, name, revision)

    monkeypatch.setattr(hub_module._Client, "download", download)
    model = open_model("org/tiny")
    assert model.commits == {"org/tiny": moved} and torch.equal(read_model(model)["w"], torch.ones(1))


def test_missing_package_is_answered_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as caught:
        open_model("org/tiny")
    assert caught.value.right == "pip install cuvee[hub]"


def test_stand_in_knows_commits() -> None:
    assert Repo({"main": "1"}, {"1": {}}).commit("main") == "1"
