"""torch's own files: read byte for byte, lazily, and never run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import assert_blocks_agree, read_model, same_bytes

from cuvee.checkpoints import pickle_machine
from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import StoredTensor
from cuvee.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, dtype=torch.bool)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_is_read_byte_for_byte(protocol: int, tmp_path: Path) -> None:
    tensors = {str(dtype): some(dtype, 3, 4) for dtype in DTYPES}
    torch.save(tensors, tmp_path / "m.pt", pickle_protocol=protocol)
    got = read_model(open_model(tmp_path / "m.pt"))
    assert got.keys() == tensors.keys()
    assert all(same_bytes(got[name], tensor) for name, tensor in tensors.items())


def views() -> dict[str, torch.Tensor]:
    whole = torch.randn(64, 48)
    return {
        "whole": whole, "same": whole, "transposed": whole.t(), "middle": whole[3:9], "steps": whole[1:40:3, 2:40:5],
        "permuted": torch.randn(4, 5, 6).permute(2, 0, 1), "repeated": torch.randn(5, 1).expand(5, 3),
        "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3), "one": torch.randn(1, 7).t(),
        "parameter": torch.nn.Parameter(torch.randn(4)), "diagonal": whole.diagonal(),
    }  # fmt: skip


def test_views_of_one_storage_are_read_as_they_are_seen(tmp_path: Path) -> None:
    tensors = views()
    torch.save({**tensors, "unread": torch.randn(1000)}, tmp_path / "m.bin")
    model = open_model(tmp_path / "m.bin")
    got = read_model(model)
    for name, tensor in tensors.items():
        assert same_bytes(got[name], tensor.detach()), name
        assert_blocks_agree(model.tensors[name], got[name])
    assert isinstance(model.tensors["whole"], StoredTensor)
    assert model.tensors["whole"].place == model.tensors["same"].place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64, torch.uint8])
def test_big_endian_files_are_turned_round(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = some(dtype, 5, 6)
    word = 4 if dtype is torch.complex64 else tensor.element_size()
    torch.save({"t": tensor}, tmp_path / "m.pt")

    def turned(name: str, data: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        is_data = "/data/" in name
        return np.frombuffer(data, np.uint8).reshape(-1, word)[:, ::-1].tobytes() if is_data else data

    rewrite(tmp_path / "m.pt", turned)
    model = open_model(tmp_path / "m.pt")
    assert same_bytes(read_model(model)["t"], tensor)
    assert_blocks_agree(model.tensors["t"], tensor)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state", "model_state_dict", "module"])
def test_training_checkpoints_are_unwrapped_and_the_rest_is_named(wrapper: str, tmp_path: Path) -> None:
    weights = OrderedDict(w=torch.randn(3, 3), b=torch.randn(3))
    module = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    settings = {"args": Namespace(lr=1.0), "best": np.float64(3), "rng": torch.get_rng_state(), "when": {1, 2}}
    torch.save({wrapper: weights, "optimizer": optimizer.state_dict(), "epoch": 3, **settings}, tmp_path / "m.ckpt")
    model = open_model(tmp_path / "m.ckpt")
    assert all(same_bytes(read_model(model)[name], tensor) for name, tensor in weights.items())
    notes = " ".join(model.notes)
    assert all(name in notes for name in (wrapper, "optimizer", "epoch", "rng"))


def test_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "step": 3, "groups": [1, 2], "extra": None}, tmp_path / "m.pt")
    model = open_model(tmp_path / "m.pt")
    assert list(model.tensors) == ["w"]
    assert "step, groups, extra" in model.notes[0]


def test_pytorch_model_bin_with_its_index_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index = '{"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}'
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert set(open_model(tmp_path).tensors) == {"a", "b"}


# ---- refused


class Payload:
    """Runs a command when it is unpickled by Python."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("as_state", [True, False])
def test_pickle_that_would_run_code_is_refused_and_not_run(as_state: bool, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    payload = Payload(f"touch {proof}")
    torch.save({"w": torch.ones(2), "x": payload} if as_state else payload, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="would run code") as caught:
        open_model(tmp_path / "m.bin")
    assert "system" in caught.value.found and not proof.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="torch.nn.modules.linear.Linear"):
        open_model(tmp_path / "m.pt")


def test_formats_of_old_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="before 1.6") as caught:
        open_model(tmp_path / "old.bin")
    assert "torch.save(torch.load(" in caught.value.right
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match="plain pickle"):
        open_model(tmp_path / "plain.bin")
    (tmp_path / "tar.pt").write_bytes(b"x" * 257 + b"ustar" + b"\0" * 300)
    with pytest.raises(CheckpointError, match="tar"):
        open_model(tmp_path / "tar.pt")
    (tmp_path / "lfs.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git-lfs"):
        open_model(tmp_path / "lfs.pt")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt", "a") as archive:
        archive.writestr("m/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_model(tmp_path / "m.pt")


def rewrite(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again, its entries changed; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, data: None if name.endswith("data.pkl") else data, "no data.pkl"),
        (lambda name, data: None if "/data/" in name else data, "no entry 'data/0'"),
        (lambda name, data: data[:-1] if "/data/" in name else data, "reaches to byte"),
        (lambda name, data: b"middle" if name.endswith("byteorder") else data, "byte order"),
        (lambda name, data: data[:-5] if name.endswith("data.pkl") else data, "malformed"),
        (lambda name, data: b"" if name.endswith("data.pkl") else data, "malformed"),
        (lambda name, data: b"\x80\x02]." if name.endswith("data.pkl") else data, "a list, not a dict"),
        (lambda name, data: b"\x80\x02}." if name.endswith("data.pkl") else data, "no tensors by name"),
    ],
)
def test_damaged_archives_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20)}, tmp_path / "m.pt")
    rewrite(tmp_path / "m.pt", change)
    with pytest.raises(CheckpointError, match=said):
        open_model(tmp_path / "m.pt")


def test_compressed_archives_are_refused_without_unpacking_them(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "bomb.pt")
    rewrite(tmp_path / "bomb.pt", lambda name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        open_model(tmp_path / "bomb.pt")


@pytest.mark.parametrize("size", [1 << 20, 1 << 31, 1 << 62, (1 << 64) - 1])
def test_directory_larger_than_the_archive_is_refused(size: int, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20)}, tmp_path / "m.pt")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    place = data.rfind(b"PK\x06\x06")
    data[place + 40 : place + 48] = struct.pack("<Q", size)
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(CheckpointError):
        open_model(tmp_path / "m.pt")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20)}, tmp_path / "m.pt")
    data = (tmp_path / "m.pt").read_bytes()
    for size in range(0, len(data), 7):
        (tmp_path / "cut.pt").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_model(tmp_path / "cut.pt")


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """No flip gives a traceback, a hang or a tensor that reaches outside the file."""
    torch.save({"w": torch.ones(4), "t": torch.ones(3, 2).t()}, tmp_path / "m.pt")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    for place in range(0, len(data), 3):
        data[place] ^= 0x15
        (tmp_path / "flipped.pt").write_bytes(data)
        try:
            read_model(open_model(tmp_path / "flipped.pt"))
        except CheckpointError:
            pass
        data[place] ^= 0x15


def pickled(tmp_path: Path, text: bytes) -> Path:
    torch.save({"w": torch.ones(20)}, tmp_path / "m.pt")
    rewrite(tmp_path / "m.pt", lambda name, data: text if name.endswith("data.pkl") else data)
    return tmp_path / "m.pt"


def tensor_pickle(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 20) -> bytes:
    """Return the pickle of {"w": a view of storage 0}."""
    out = io.BytesIO()

    class Machine(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value == "STORAGE" else None

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Payload):
                args = ("STORAGE", offset, shape, stride, False, OrderedDict())
                return torch._utils._rebuild_tensor_v2, args
            return NotImplemented

    Machine(out, protocol=2).dump({"w": Payload("")})
    return out.getvalue()


def test_a_view_written_by_hand_is_read(tmp_path: Path) -> None:
    model = open_model(pickled(tmp_path, tensor_pickle((4, 5), (5, 1))))
    assert torch.equal(read_model(model)["w"], torch.ones(4, 5))


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "said"),
    [
        ((21,), (1,), 0, "reaches to byte 84"),
        ((20,), (1,), 1, "reaches to byte 84"),
        ((2, 2), (19, 1), 0, "reaches to byte 84"),
        ((1 << 40,), (0,), 0, "repeats itself"),
        ((1 << 40, 1 << 20), (0, 0), 0, "repeats itself"),
        ((-1,), (1,), 0, "malformed"),
        ((2,), (-1,), 5, "malformed"),
        ((2,), (1, 1), 0, "malformed"),
        ((1 << 70,), (1,), 0, "malformed"),
    ],
)
def test_views_outside_their_storage_are_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_model(pickled(tmp_path, tensor_pickle(shape, stride, offset)))


@pytest.mark.parametrize(
    "text",
    [
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02)" + b"\x85" * 300_000 + b"}q\x00h\x00s.",
        b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x02h\x07.",
        b"\x80\x02a.",
        b"\x80\x02}}}u.",
        b"\x80\x02P0\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02(lp0\n.",
        b"\x80\x05\x97.",
        b"I" + b"9" * 5000 + b"\n.",
    ],
)
def test_hostile_pickles_are_refused(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        open_model(pickled(tmp_path, text))


def test_pickles_that_are_too_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_OPERATIONS", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 steps"):
        open_model(pickled(tmp_path, b"\x80\x02" + b"}0" * 1000 + b"}."))


def test_tensors_that_are_not_plain_are_refused_by_name(tmp_path: Path) -> None:
    make_odd = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
        "without data": lambda: torch.ones(3, device="meta"),
    }
    for what, make in make_odd.items():
        with warnings.catch_warnings(action="ignore"):
            torch.save({"fine": torch.ones(2), "odd": make()}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=what) as caught:
            open_model(tmp_path / "m.pt")
        assert "'odd'" in caught.value.where


def test_two_state_dicts_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "module": {"w": torch.ones(1)}}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="2 state dicts: model, module"):
        open_model(tmp_path / "m.pt")


def test_archive_entries_outside_the_file_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(20)}, tmp_path / "m.pt")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        data[place + 42 : place + 46] = struct.pack("<I", len(data) - 10)
        place = data.find(b"PK\x01\x02", place + 4)
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="outside the file|damaged"):
        open_model(tmp_path / "m.pt")
