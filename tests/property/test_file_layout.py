"""Our safetensors files: laid out beforehand, filled in any order, read the same by us and by the safetensors package."""

from __future__ import annotations

import json
import math
import random
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.safetensors_format import lay_out, open_safetensors
from cuvee.checkpoints.sources import Scratch, read_all
from cuvee.checkpoints.writing import INDEX_NAME, ShardWriter, index_json, plan_shards
from cuvee.tensors.dtypes import DTYPES, dtype_of_torch, torch_dtype
from cuvee.tensors.layout import Layout

WRITABLE = ["F64", "F32", "BF16", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
names = st.one_of(
    st.sampled_from(
        ["model.layers.0.w", "model.layers.10.w", "model.layers.9.w", "Z", "a", "é", "\U0001f347", 'quo"te']
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def tensors(draw):
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name in draw(st.lists(names, min_size=1, max_size=6, unique=True)):
        dtype, shape = DTYPES[draw(st.sampled_from(WRITABLE))], draw(shapes)
        size = math.prod(shape) * dtype.itemsize
        raw = torch.randint(0, 2 if dtype.name == "BOOL" else 256, (size,), generator=generator, dtype=torch.uint8)
        result[name] = raw.view(torch_dtype(dtype)).reshape(shape)
    return result


def described(values):
    return {name: (dtype_of_torch(t.dtype), tuple(t.shape)) for name, t in values.items()}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def write(folder: Path, values, shard_size: int, seed: int, elements: int = 3):
    shards = plan_shards(described(values), shard_size)
    writer = ShardWriter(folder, shards, keep=False)
    blocks = [(name, *block) for name, t in values.items() for block in _blocks(t.numel(), elements)]
    random.Random(seed).shuffle(blocks)
    for name, start, stop in blocks:
        part = values[name].reshape(-1)[start:stop]
        writer.write(name, start * part.element_size(), part.contiguous().view(torch.uint8).numpy())
    writer.sync()
    writer.close()
    if len(shards) > 1:
        (folder / INDEX_NAME).write_bytes(index_json(shards))
    return shards


def _blocks(numel: int, elements: int):
    return [(at, min(at + elements, numel)) for at in range(0, numel, elements)]


@settings(max_examples=60, deadline=None)
@given(tensors(), st.integers(1, 400), st.integers(0, 99))
def test_what_is_written_in_any_order_is_read_back_bit_for_bit(values, shard_size, seed):
    with tempfile.TemporaryDirectory() as folder:
        shards = write(Path(folder), values, shard_size, seed)
        theirs = {}
        for shard in shards:
            theirs.update(load_file(Path(folder) / shard.file))
        model = open_model(folder)
        assert theirs.keys() == values.keys() == model.tensors.keys()
        for name, tensor in values.items():
            ours = read_all(model.tensors[name])
            for found in (theirs[name], ours):
                assert found.dtype == tensor.dtype and found.shape == tensor.shape
                assert bits(found) == bits(tensor)
        model.close()


@settings(max_examples=60, deadline=None)
@given(tensors(), st.integers(1, 400), st.integers(0, 99))
def test_files_are_aligned_sorted_complete_and_depend_on_nothing_but_the_tensors(values, shard_size, seed):
    backwards = dict(reversed(values.items()))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        shards = write(Path(one), values, shard_size, seed, elements=2)
        write(Path(other), backwards, shard_size, seed + 1, elements=5)
        assert sorted(p.name for p in Path(one).iterdir()) == sorted(p.name for p in Path(other).iterdir())
        for shard in shards:
            content = (Path(one) / shard.file).read_bytes()
            assert content == (Path(other) / shard.file).read_bytes()
            assert len(content) == shard.layout.size
            (length,) = struct.unpack("<Q", content[:8])
            assert (8 + length) % 64 == 0
            header = json.loads(content[8 : 8 + length])
            assert header.pop("__metadata__") == {"format": "pt"}
            order = [(DTYPES[entry["dtype"]].rank, name.encode()) for name, entry in header.items()]
            assert order == sorted(order)
            ends = [entry["data_offsets"] for entry in header.values()]
            assert [begin for begin, _ in ends] == [0, *(end for _, end in ends[:-1])]
            for entry in header.values():
                assert entry["data_offsets"][0] % max(1, DTYPES[entry["dtype"]].itemsize) == 0


@settings(max_examples=100, deadline=None)
@given(tensors(), st.integers(1, 400))
def test_shards_hold_runs_of_names_up_to_the_size(values, shard_size):
    shards = plan_shards(described(values), shard_size)
    held = [name for shard in shards for name in sorted(shard.tensors, key=str.encode)]
    assert held == sorted(values, key=str.encode)
    for n, shard in enumerate(shards, 1):
        size = sum(values[name].numel() * values[name].element_size() for name in shard.tensors)
        assert size <= shard_size or len(shard.tensors) == 1
        expected = "model.safetensors" if len(shards) == 1 else f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        assert shard.file == expected
    sizes = [sum(values[name].nbytes for name in shard.tensors) for shard in shards]
    firsts = [values[min(shard.tensors, key=str.encode)].nbytes for shard in shards]
    # greedy: what begins a shard did not fit into the one before
    assert all(size + following > shard_size for size, following in zip(sizes, firsts[1:], strict=False))


@settings(max_examples=40, deadline=None)
@given(tensors(), st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3))
def test_files_of_the_safetensors_package_are_read_bit_for_bit(values, metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.safetensors"
        save_file({name: t.contiguous() for name, t in values.items()}, path, metadata or None)
        file, found, read_metadata = open_safetensors(path)
        assert read_metadata == metadata
        assert found.keys() == values.keys()
        for name, tensor in values.items():
            assert found[name].shape == tuple(tensor.shape)
            assert bits(read_all(found[name])) == bits(tensor)
        file.close()


@settings(max_examples=40, deadline=None)
@given(tensors(), st.data())
def test_any_run_of_elements_is_a_slice_of_the_tensor(values, data):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), values, 10**9, 0)
        file, found, _ = open_safetensors(Path(folder) / "model.safetensors")
        scratch = Scratch()
        for name, tensor in values.items():
            start = data.draw(st.integers(0, tensor.numel()))
            stop = data.draw(st.integers(start, tensor.numel()))
            run = found[name].read(start, stop, scratch, "slot")
            assert bits(run) == bits(tensor.reshape(-1)[start:stop])
        file.close()


def test_the_metadata_says_format_pt(tmp_path):
    write(tmp_path, {"w": torch.zeros(2)}, 10**9, 0)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_file_written_out():
    layout = lay_out(
        {"b": (DTYPES["F32"], (2,)), "a": (DTYPES["F32"], ()), "c": (DTYPES["I64"], (1,))}, {"format": "pt"}
    )
    text = (
        '{"__metadata__":{"format":"pt"},'
        '"c":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},'
        '"a":{"dtype":"F32","shape":[],"data_offsets":[8,12]},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}'
    )
    padded = text.encode() + b" " * (-(8 + len(text)) % 64)
    assert layout.header == struct.pack("<Q", len(padded)) + padded
    start = len(layout.header)
    assert layout.offsets == {"c": start, "a": start + 8, "b": start + 12}
    assert layout.size == start + 20


@pytest.mark.parametrize("keep", [True, False])
def test_a_kept_file_keeps_its_bytes_and_a_new_one_must_not_exist(tmp_path, keep):
    values = {"w": torch.arange(6.0)}
    shards = plan_shards(described(values), 10**9)
    write(tmp_path, values, 10**9, 0)
    if not keep:
        with pytest.raises(FileExistsError):
            ShardWriter(tmp_path, shards, keep=False)
        return
    writer = ShardWriter(tmp_path, shards, keep=True)
    buffer = bytearray(12)
    assert writer.read("w", 3, memoryview(buffer), 4)
    assert struct.unpack("<3f", buffer) == (3, 4, 5)
    assert not writer.read("w", 4, memoryview(buffer), 4)
    writer.close()
    assert Layout((6,)).numel == 6
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], values["w"])
