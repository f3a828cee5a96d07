"""Any bytes at all: read as the reference reader reads them, or refused in words. `benchmarks/faults.py` tries many more."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import fuzzing
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cuvee
import cuvee.checkpoints.safetensors_format as safetensors_format
from cuvee.tensors.dtypes import DTYPES

ATTACKS = Path(__file__).parent / "attacks" / "files"

sizes = st.one_of(
    st.integers(0, 4), st.sampled_from([1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, 1 << 64, -1, 1.0, True, None])
)
offsets = st.one_of(st.integers(0, 24), st.sampled_from([1 << 40, 1 << 64, -1, 8.0, False, None]))
names = st.one_of(st.sampled_from(["w", "v", "", "__metadata__", "../x", "a\0b", "\ud800"]), st.text(max_size=3))
anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=3)
)
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(sorted(DTYPES)), anything),
            "shape": st.one_of(st.lists(sizes, max_size=3), anything),
            "data_offsets": st.one_of(st.tuples(offsets, offsets), st.lists(offsets, max_size=3), anything),
        },
        optional={"more": anything},
    ),
    anything,
)


@st.composite
def nearly_valid(draw):
    """Tensors that tile the data, and perhaps one thing wrong."""
    header, end = {}, 0
    for name in draw(st.lists(names.filter(lambda n: n != "__metadata__"), min_size=1, max_size=4, unique=True)):
        dtype = DTYPES[draw(st.sampled_from(["F32", "BF16", "U8", "F4", "I64"]))]
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = torch.Size(shape).numel() * dtype.bits // 8
        header[name] = {"dtype": dtype.name, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        broken = header[draw(st.sampled_from(sorted(header)))]
        broken[draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = draw(
            st.one_of(anything, st.lists(offsets, max_size=3))
        )
    return header, end + draw(st.sampled_from([0, 0, 0, 1, -1]))


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="module")
def folder():
    """A folder to write into."""
    made = fuzzing.scratch_folder()
    yield made
    shutil.rmtree(made)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(names, entries, max_size=4), data=st.binary(max_size=40))
def test_any_header_is_read_as_the_reference_reads_it_or_refused(folder, header, data):
    fuzzing.judge("safetensors", with_header(header, data), folder)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=nearly_valid())
def test_any_header_with_one_thing_wrong_is_judged_as_the_reference_does(folder, what):
    header, size = what
    fuzzing.judge("safetensors", with_header(header, bytes(max(0, size))), folder)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Valid files and attacks of every kind."""
    out = tmp_path_factory.mktemp("published") / "out"
    models = [{"w": torch.randn(4, 3), "v": torch.randn(5).bfloat16()}] * 2
    cuvee.merge(cuvee.Recipe("linear", models=models), out)
    return fuzzing.seeds(ATTACKS, out)


def test_thousands_of_mutated_files_of_every_kind_are_judged_rightly(seeds, folder):
    draws = random.Random(0)
    verdicts = {"accepted": 0, "refused": 0}
    for _ in range(4000):
        kind, content = seeds.pick(draws)
        verdicts[fuzzing.judge(kind, content, folder)] += 1
    assert verdicts["accepted"] > 200 and verdicts["refused"] > 2000


@pytest.mark.parametrize("check", ["_check_tiling", "_is_size", "_count"])
def test_the_judge_sees_a_reader_that_has_lost_a_check(check, seeds, folder, monkeypatch):
    lost = {"_check_tiling": lambda *_, **__: None, "_is_size": lambda value: True, "_count": lambda shape: 2}[check]
    monkeypatch.setattr(safetensors_format, check, lost)
    draws = random.Random(0)
    with pytest.raises(fuzzing.Wrong):
        for _ in range(20_000):
            kind, content = seeds.pick(draws)
            if kind == "safetensors":
                fuzzing.judge(kind, content, folder)
