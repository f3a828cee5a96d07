"""Singular vectors by random projection: as those of the whole decomposition, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blake3 import blake3

import cuvee
from cuvee.methods import spectral
from cuvee.methods.calls import Call, Place, activated
from cuvee.methods.papers.iso_c import iso_c
from cuvee.methods.pieces.star import star
from cuvee.methods.spectral import numerical_rank, projected_svd, strong_svd, svd
from cuvee.tensors.layout import Layout

M, N = 520, 700
WHOLE = spectral._whole_svd


def with_spectrum(s, *, dtype=torch.float32, m=M, n=N):
    """A matrix (m, n) of these singular values."""
    generator = torch.Generator().manual_seed(len(s))
    u, v = (torch.linalg.qr(torch.randn(k, len(s), generator=generator, dtype=torch.float64)).Q for k in (m, n))
    return ((u * torch.as_tensor(s, dtype=torch.float64)) @ v.mT).to(dtype)


def stored(matrix, dtype=torch.bfloat16):
    """The task vector of weights that were stored after a change was added."""
    base = 0.02 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1))
    base = base.to(dtype).float()
    return (base + matrix).to(dtype).float() - base


def keeping(matrix):
    """A call on a matrix that keeps decompositions."""
    layout = Layout(tuple(matrix.shape))
    return Call(Place("x", layout, 0, layout.numel), decompositions=cuvee.KeptDecompositions())


LOW = {
    "exact": lambda: with_spectrum([3.0, 2.0, 1.0, 0.5]),
    "turned": lambda: with_spectrum([3.0, 2.0, 1.0, 0.5], m=N, n=M),
    "equal": lambda: with_spectrum([1.0] * 16),
    "stored in bfloat16": lambda: stored(with_spectrum(torch.linspace(4, 1, 16).tolist())),
    "float64": lambda: with_spectrum([1.0, 0.1, 0.02], dtype=torch.float64),
    "one row": lambda: torch.cat([torch.zeros(M - 1, N), torch.full((1, N), 1e-30)]),
    "sparse": lambda: with_spectrum([3.0, 1.0]) * (torch.arange(N) >= N - 40),
}
WHOLE_ONES = {
    "noise": lambda: torch.randn(M, N, generator=torch.Generator().manual_seed(0)),
    "1/j": lambda: with_spectrum([1 / j for j in range(1, M)]),
    "1/j²": lambda: with_spectrum([1 / j**2 for j in range(1, M)]),
    "falling": lambda: with_spectrum([0.8**j for j in range(60)]),
    "no gap where it is cut": lambda: with_spectrum([1.0] * 4 + [0.02] + [0.008] * 100),
    "zero": lambda: torch.zeros(M, N),
    "small": lambda: with_spectrum([1.0], m=100),
}


@pytest.mark.parametrize("name", LOW)
def test_what_a_gap_sets_apart_is_found_as_the_whole_decomposition_finds_it(name):
    matrix = LOW[name]()
    found, whole = projected_svd(matrix), WHOLE(matrix, None)
    whole = whole.cut(numerical_rank(whole.s, M))
    assert found is not None
    tolerance = 1e-10 if matrix.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(found.s, whole.s, rtol=tolerance, atol=0)
    torch.testing.assert_close(found.matrix, whole.matrix, rtol=0, atol=tolerance * float(whole.s[0]))
    for one, other in ((found.u, whole.u), (found.vh.mT, whole.vh.mT)):
        one, other = one.double(), other.double()
        torch.testing.assert_close(one @ one.mT, other @ other.mT, rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("name", WHOLE_ONES)
def test_what_no_gap_sets_apart_is_left_to_the_whole_decomposition(name):
    matrix = WHOLE_ONES[name]()
    assert projected_svd(matrix) is None
    assert all(map(torch.equal, svd(matrix, 7), WHOLE(matrix, 7)))
    whole = WHOLE(matrix, None)
    assert all(map(torch.equal, strong_svd(matrix), whole.cut(numerical_rank(whole.s, min(matrix.shape)))))


def test_star_takes_a_known_rank_at_its_word():
    matrix = LOW["stored in bfloat16"]()
    found = WHOLE(matrix, 16)
    kept = int((found.s.cumsum(0) < 0.6 * found.s.sum()).sum()) + 1
    want = found.cut(kept).matrix * (found.s.sum() / found.s[:kept].sum())
    torch.testing.assert_close(star(matrix, eta=60, known_rank=16), want, rtol=0, atol=1e-5)


def test_a_rank_beyond_what_a_gap_sets_apart_asks_for_the_whole():
    matrix = LOW["stored in bfloat16"]()
    assert len(strong_svd(matrix, 40).s) == len(svd(matrix, 16).s) == 16
    assert all(map(torch.equal, svd(matrix, 40), WHOLE(matrix, 40)))


@pytest.mark.parametrize("method", ["tsv_m", "stf", "dc_merge", "r_tsvm", "iso_c", "iso_cts", "opcm"])
def test_adapters_that_were_merged_into_models_are_never_decomposed_whole(method, monkeypatch):
    name = "model.layers.0.mlp.up_proj.weight"
    base = 0.02 * torch.randn(M, N, generator=torch.Generator().manual_seed(1))
    experts = [{name: base + with_spectrum([float(j) for j in range(2 * k, 0, -2)])} for k in (3, 5)]
    how = {"continual": False} if method == "opcm" else {}
    known = cuvee.KeptDecompositions()
    sides: list[int] = []
    decomposed = spectral._decomposed

    def watched(symmetric):
        sides.append(len(symmetric))
        return decomposed(symmetric)

    monkeypatch.setattr(spectral, "_decomposed", watched)
    got = cuvee.merge_tensors(method, experts, {name: base}, decompositions=known, **how)[name]
    assert sides and max(sides) < 200
    sides.clear()
    again = cuvee.merge_tensors(method, experts, {name: base}, decompositions=known, **how)[name]
    assert torch.equal(got, again) and not [side for side in sides if side > 20]
    monkeypatch.setattr(spectral, "projected_svd", lambda matrix, digest=None: None)
    want = cuvee.merge_tensors(method, experts, {name: base}, **how)[name]
    assert float((got - want).norm() / (want - base).norm()) < 1e-5


def test_a_matrix_is_digested_once_whether_a_gap_is_found_or_not(monkeypatch):
    digested: list[int] = []
    monkeypatch.setattr(spectral, "blake3", lambda given: digested.append(len(given)) or blake3(given))
    for matrix in (WHOLE_ONES["noise"](), LOW["exact"]()):
        for decompose in (lambda one: svd(one, 4), strong_svd, lambda one: iso_c(one[None])):
            digested.clear()
            with activated(keeping(matrix)):
                decompose(matrix)
            assert digested.count(4 * matrix.numel()) == 1


def test_what_other_code_or_another_torch_decomposed_is_made_again(monkeypatch):
    matrix, counted = with_spectrum([2.0, 1.0], m=30, n=40), []
    decomposed = spectral._decomposed
    monkeypatch.setattr(spectral, "_decomposed", lambda given: counted.append(1) or decomposed(given))
    with activated(keeping(matrix)):
        svd(matrix, 2), svd(matrix, 2)
        assert len(counted) == 1
        assert blake3(Path(spectral.__file__).read_bytes()).hexdigest() in spectral._made_by()
        assert torch.__version__ in spectral._made_by()
        monkeypatch.setattr(spectral, "_made_by", lambda: "another")
        svd(matrix, 2)
        assert len(counted) == 2
