"""The safetensors reader against the reference package: the same bytes, and nothing accepted that it refuses."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from model_files import assert_blocks_agree, read_model, same_bytes
from safetensors.torch import load_file, save_file

from cuvee.checkpoints.opening import open_model
from cuvee.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits of a dtype, NaN patterns included."""
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, dtype=torch.bool)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8).view(dtype)


def test_every_dtype_is_read_byte_for_byte(tmp_path: Path) -> None:
    tensors = {str(dtype): some(dtype, 7, 5) for dtype in DTYPES}
    save_file(tensors, tmp_path / "m.safetensors")
    model = open_model(tmp_path / "m.safetensors")
    got = read_model(model)
    reference = load_file(tmp_path / "m.safetensors")
    for name, tensor in tensors.items():
        assert same_bytes(got[name], tensor) and same_bytes(got[name], reference[name])
        assert_blocks_agree(model.tensors[name], tensor)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1,), (2, 3, 4, 5)])
def test_scalars_and_empty_tensors_are_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {"x": torch.randn(shape), "z": torch.zeros(0), "y": torch.ones(3)}
    save_file(tensors, tmp_path / "m.safetensors")
    assert all(same_bytes(t, tensors[n]) for n, t in read_model(open_model(tmp_path / "m.safetensors")).items())


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a\0b", "line\nbreak", "x" * 10_000, "𝔘nicode", "\x1b[31m"])
def test_names_are_only_names(name: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(2)}, tmp_path / "m.safetensors")
    assert list(open_model(tmp_path / "m.safetensors").tensors) == [name]


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    values = torch.randn(5)
    write(tmp_path / "m.safetensors", {"x": entry("F32", [5], 0, 20)}, values.numpy().tobytes(), pad=3)
    assert same_bytes(read_model(open_model(tmp_path / "m.safetensors"))["x"], values)


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: bytes = b"", *, pad: int = 0, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * pad
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


F4 = entry("F32", [1], 0, 4)
REFUSED: dict[str, tuple[Any, bytes]] = {
    "hole": ({"a": F4, "b": entry("F32", [1], 8, 12)}, b"\0" * 12),
    "hole at the beginning": ({"a": entry("F32", [1], 4, 8)}, b"\0" * 8),
    "overlap": ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, b"\0" * 8),
    "alias": ({"a": F4, "b": F4}, b"\0" * 4),
    "data beyond the last": ({"a": F4}, b"\0" * 5),
    "data cut short": ({"a": F4}, b"\0" * 3),
    "end before begin": ({"a": entry("F32", [1], 4, 0)}, b"\0" * 4),
    "too few bytes": ({"a": entry("F32", [2], 0, 4)}, b"\0" * 4),
    "overflow": ({"a": entry("F32", [1 << 62, 4], 0, 0)}, b""),
    "overflow hidden by a zero": ({"a": entry("F32", [1 << 63, 1 << 63, 0], 0, 0)}, b""),
    "overflow of floats": ({"a": entry("F32", [1 << 62] * 30, 0, 0)}, b""),
    "negative size": ({"a": entry("F32", [-1], 0, 4)}, b"\0" * 4),
    "fraction": ({"a": entry("F32", [1.0], 0, 4)}, b"\0" * 4),
    "truth as size": ({"a": entry("F32", [True], 0, 4)}, b"\0" * 4),
    "offset too large": ({"a": entry("F32", [1], 1 << 64, (1 << 64) + 4)}, b"\0" * 4),
    "unknown dtype": ({"a": entry("F99", [1], 0, 4)}, b"\0" * 4),
    "dtype of another type": ({"a": entry(["F32"], [1], 0, 4)}, b"\0" * 4),
    "shape of another type": ({"a": entry("F32", {"0": 1}, 0, 4)}, b"\0" * 4),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}, b"\0" * 4),
    "entry is a number": ({"a": 3}, b""),
    "part of a byte": ({"a": entry("F4", [3], 0, 1)}, b"\0"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": F4}, b"\0" * 4),
    "metadata is a list": ({"__metadata__": ["a"], "a": F4}, b"\0" * 4),
    "not JSON": (b"{", b""),
    "not an object": (b"[]", b""),
    "text after it": (b"{}x", b""),
    "byte order mark": (b"\xef\xbb\xbf{}", b""),
    "not Unicode": (b'{"\xff": 1}', b""),
    "half a surrogate": (b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4),
    "NaN": (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"\0" * 4),
    "nested too deep": (b"[" * 100_000, b""),
    "objects nested too deep": (b'{"a":' * 100_000, b""),
    "number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", b""),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_malformed_files_are_refused_as_the_reference_does(fault: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", *REFUSED[fault])
    with pytest.raises(CheckpointError) as caught:
        open_model(path)
    assert str(path) in caught.value.where and caught.value.right
    with pytest.raises(Exception):  # noqa: B017, PT011
        load_file(path)


def test_name_written_twice_is_refused_though_the_reference_takes_the_last(tmp_path: Path) -> None:
    text = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},' * 2
    write(tmp_path / "m.safetensors", text[:-1] + b"}", b"\0" * 4)
    write(
        tmp_path / "m.safetensors", b'{"a": 1, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4
    )
    with pytest.raises(CheckpointError, match="'a' twice"):
        open_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 100_000_001, 1 << 40, (1 << 64) - 1])
def test_length_of_the_header_that_lies_is_refused_at_once(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": F4}, b"\0" * 4, length=length)
    with pytest.raises(CheckpointError):
        open_model(path)


def test_shapes_with_a_million_sizes_are_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": entry("F32", [(1 << 63) - 1] * 200_000, 0, 0)})
    begin = time.monotonic()
    with pytest.raises(CheckpointError):
        open_model(path)
    assert time.monotonic() - begin < 5


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    for size in range(len(data)):
        (tmp_path / "m.safetensors").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_model(tmp_path / "m.safetensors")


def test_every_flipped_byte_is_refused_where_the_reference_refuses_it(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    for place in range(len(data) - 28):
        data[place] ^= 0x05
        (tmp_path / "m.safetensors").write_bytes(data)
        try:
            reference = set(load_file(tmp_path / "m.safetensors"))
        except safetensors.SafetensorError:
            reference = set()
        try:
            names = set(read_model(open_model(tmp_path / "m.safetensors")))
        except CheckpointError:
            names = set()
        assert names <= reference, place
        data[place] ^= 0x05
