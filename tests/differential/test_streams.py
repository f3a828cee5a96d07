"""A combination read from files leaf by leaf against the same one made in memory."""

from __future__ import annotations

import os

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.tensors import kernels
from cuvee.tensors.rows import Act, Combination, InFile, Middle, Row, Rule, Served

pytestmark = pytest.mark.skipif(not kernels.streams(), reason="this machine does not stream")

WIDTH = {"F32": 4, "BF16": 2, "F16": 2}
SPECIAL = {"F32": np.float32(np.inf), "BF16": np.uint16(0x7F80), "F16": np.float16(np.inf)}


def elements(kind: str, size: int, special: int, generator: np.random.Generator) -> np.ndarray:
    """Raw elements of about ±1, the first `special` of them infinite."""
    values = generator.choice(np.array([0.0, -0.0, 0.5, -0.5, 1.0, -1.5, 3.0], np.float32), size)
    if kind == "BF16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = values.astype(np.float16 if kind == "F16" else np.float32)
    stored[:special] = SPECIAL[kind]
    return stored.view(np.uint8)


def steps(draw, size: int):
    """Steps that know where in the row they are: ties that are counted, and masks."""
    if draw(st.booleans()):
        few = draw(st.integers(0, size))
        yield Act.KEEP_LARGEST, 0.5, {"ties": (size // 3, size, few)}
    if draw(st.booleans()):
        yield Act.KEEP_MASK, 0.0, {"mask": np.arange(size) % 3 > 0}
    yield Act.MULTIPLY, 0.7, {}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_streamed_is_what_is_combined(tmp_path_factory, data):
    draw, kinds = data.draw, st.sampled_from(list(WIDTH))
    leaf, size = draw(st.sampled_from([1, 100, 1024, 1500, 4096])), draw(st.sampled_from([1, 99, 1024, 3000, 9001]))
    models, generator = draw(st.integers(1, 4)), np.random.default_rng(draw(st.integers(0, 99)))
    with_base, gap = draw(st.booleans()), draw(st.integers(0, 9))
    files, memory, found, specials, contents = [], [], {}, [], []
    for number in range(models + with_base):
        kind, special = draw(kinds), draw(st.sampled_from([0, 0, min(2, size)]))
        raw = elements(kind, size, special, generator)
        path = tmp_path_factory.getbasetemp() / f"stream-{number}"
        path.write_bytes(bytes(gap) + raw.tobytes() + b"more")
        digests = np.zeros((-(-size // leaf), 32), np.uint8)
        source = InFile(
            os.open(path, os.O_RDONLY), gap, leaf, digests, lambda: 1 / 0, lambda n, at=number: found.update({at: n})
        )
        one, other = Row(source, kind, (size,)), Row(raw, kind, (size,))
        if with_base and number:
            one, other = Row(source, kind, (size,), files[0]), Row(raw, kind, (size,), memory[0])
        for act, value, details in steps(draw, size) if number >= with_base else ():
            one, other = one.then(act, value, **details), other.then(act, value, **details)
        files.append(one)
        memory.append(other)
        specials.append(special)
        contents.append((raw, WIDTH[kind], digests))
    bases = (files[0], memory[0]) if with_base else (None, None)
    weights, out_kind, scaling = [0.3, 1.0, -0.5, 2.0][:models], draw(kinds), draw(st.sampled_from([1.0, 0.7]))
    rule = draw(st.sampled_from(Rule))
    votes, middle = weights if rule is Rule.CONSENSUS else None, Middle([(0, models - 1)], 0, models, models - 1)
    serves = draw(st.booleans())
    outs = [np.zeros(size * WIDTH[out_kind], np.uint8) for _ in range(2)]

    def combination(rows):
        served = Served(rows[with_base:][::-1], weights, 2) if serves else None
        return Combination(rows[with_base:], weights, 1.7, rule, votes, True, 0.0, middle, served)

    options = {"scaling": scaling, "kind": out_kind}
    streamed = kernels.stream(combination(files), outs[0], lambda n: np.empty(n, np.uint8), base=bases[0], **options)
    combined = kernels.combine(combination(memory), outs[1], base=bases[1], **options)
    for row in files:
        os.close(row.source.fd)
    assert streamed is not None and streamed[0] == combined and streamed[1] >= 0
    np.testing.assert_array_equal(outs[0], outs[1])
    assert found == dict(enumerate(specials))
    for raw, width, digests in contents:
        expected = [blake3(raw[at : at + leaf * width].data).digest() for at in range(0, len(raw), leaf * width)]
        assert [one.tobytes() for one in digests] == expected


def test_a_file_that_ends_too_early_or_cannot_be_read_is_no_result(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4000))
    out, told = np.zeros(4400, np.uint8), []
    with path.open("rb") as readable, path.open("ab") as unreadable:
        for fd in (readable.fileno(), unreadable.fileno()):
            row = Row(InFile(fd, 0, 500, None, lambda: 1 / 0, told.append), "F32", (1100,))
            assert kernels.stream(Combination([row], [1.0]), out, lambda n: np.empty(n, np.uint8)) is None
    assert told == []
