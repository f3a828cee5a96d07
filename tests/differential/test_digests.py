"""Digests in a kernel against the package blake3."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.tensors import kernels
from cuvee.tensors.digests import TensorDigest
from cuvee.tensors.dtypes import DTYPES
from cuvee.tensors.layout import Layout

pytestmark = pytest.mark.skipif(not kernels.digests(), reason="no kernel digests on this processor")

BYTES = np.random.default_rng(0).integers(0, 256, 3 << 20, dtype=np.uint8)
CHUNK = 1024
SIZES = st.one_of(
    st.integers(1, 70),
    st.integers(1, kernels.MOST_OF_A_LEAF),
    st.builds(lambda chunks, more: max(1, chunks * CHUNK + more), st.integers(0, 80), st.integers(-1, 1)),
)


@settings(max_examples=300, deadline=None)
@given(leaf=SIZES, leaves=st.integers(1, 4), missing=st.integers(0, 1 << 20), start=st.integers(0, 300))
def test_every_leaf_has_the_digest_of_the_package(leaf, leaves, missing, start):
    leaves = min(leaves, len(BYTES[start:]) // leaf)
    raw = BYTES[start : start + leaf * leaves - missing % leaf]
    out = np.zeros((leaves, 32), np.uint8)
    kernels.digest_leaves(raw, leaf, out)
    expected = [blake3(raw[at : at + leaf].data).digest() for at in range(0, len(raw), leaf)]
    assert [one.tobytes() for one in out] == expected


@pytest.mark.parametrize("shape", [(), (1,), (70_000,), (300, 1000), (3, 70_000), (2, 2, 300_000), (0, 4)])
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_a_tensor_has_one_digest_with_and_without_the_kernel(shape, dtype, monkeypatch):
    layout, found = Layout(shape), []
    raw = BYTES[: layout.numel * DTYPES[dtype].itemsize]
    for answer in (True, False):
        monkeypatch.setattr(kernels, "digests", lambda answer=answer: answer)
        digest = TensorDigest(DTYPES[dtype], layout)
        for start, stop in reversed(layout.blocks(layout.leaf)):
            digest.add(start, raw[start * DTYPES[dtype].itemsize : stop * DTYPES[dtype].itemsize])
        found.append((digest.hexdigest(), digest.marks()))
    assert found[0] == found[1]
