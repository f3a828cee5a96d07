"""Methods that solve Θ C = T: what their solutions satisfy, on any shape of matrix."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.methods.pieces.regression import from_task_vectors
from cuvee.methods.pieces.spectral_filters import directions_kept

NAME = "model.layers.0.mlp.up_proj.weight"
SHAPES = [(7, 5), (12, 30), (3, 40)]
"""Taller than wide, wider than tall, and fewer rows than columns in all models together."""


def deltas_of(shape: tuple[int, int], count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    sizes = torch.arange(1, count + 1, dtype=torch.float64).reshape(-1, 1, 1)
    return 0.1 * sizes * torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def merged(method: str, deltas: torch.Tensor, **settings) -> torch.Tensor:
    base = {NAME: torch.zeros_like(deltas[0])}
    models = [{NAME: one} for one in deltas]
    return cuvee.merge_tensors(method, models, base, compute_dtype="float64", **settings)[NAME]


def moments(deltas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grams = [one.mT @ one / one.square().sum() for one in deltas]
    return sum(grams), sum(one @ g for one, g in zip(deltas, grams, strict=True))


def loss(x: torch.Tensor, deltas: torch.Tensor) -> float:
    return sum(float(((x - one) @ one.mT).square().sum() / one.square().sum()) for one in deltas)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_regression_is_the_sum_of_those_of_the_models(shape):
    deltas = deltas_of(shape)
    found, (c, t) = from_task_vectors(deltas), moments(deltas)
    values, vectors = found.spectrum
    assert found.is_rows == (shape == (3, 40))
    torch.testing.assert_close((vectors * values) @ vectors.mT, c, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.t, t, rtol=0, atol=1e-13)
    assert found.trace == pytest.approx(3.0)
    x = torch.ones(shape, dtype=torch.float64)
    torch.testing.assert_close(found.gradient(x.dtype)(x), 2 * (x @ c - t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("init", ["sum", "mean", "zero"])
def test_the_landweber_filter_is_that_many_gradient_steps(shape, init):
    deltas = deltas_of(shape)
    c, t = moments(deltas)
    x = {"sum": deltas.sum(0), "mean": deltas.mean(0), "zero": torch.zeros_like(deltas[0])}[init]
    rate = 0.9 / torch.linalg.eigvalsh(c)[-1]
    for _ in range(25):
        x = x - rate * (x @ c - t)
    got = merged("wudi_merging", deltas, filter="landweber", steps=25, init=init)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_wudi_interferes_less_than_what_it_starts_from(shape):
    deltas = deltas_of(shape)
    exact = loss(merged("wudi_merging", deltas, filter="none"), deltas)
    for settings in ({}, {"filter": "tikhonov"}, {"solver": "adam", "lr": 1e-3}, {"rank_rule": "entropy"}):
        assert (
            exact * (1 - 1e-9) <= loss(merged("wudi_merging", deltas, **settings), deltas) < loss(deltas.sum(0), deltas)
        )


def test_wudi_of_one_model_gives_that_model_and_leaves_out_those_that_have_not_moved():
    deltas = deltas_of((7, 5), 1)
    for settings in ({}, {"filter": "none", "init": "zero"}, {"solver": "adam"}):
        torch.testing.assert_close(merged("wudi_merging", deltas, **settings), deltas[0], rtol=0, atol=1e-8)
    pair = deltas_of((7, 5), 2)
    with_unmoved = torch.cat([pair, torch.zeros_like(pair[:1])])
    for settings in ({}, {"solver": "adam"}):
        got, want = (merged("wudi_merging", these, **settings) for these in (with_unmoved, pair))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_rules_of_rank():
    values = torch.tensor([4.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    counts = {"participation_sqrt": 3, "participation": 2, "stable_rank": 2, "entropy": 3, "entropy_sq": 2}
    for rule, count in counts.items():  # 16/6, 36/18, 18/16, exp(0.868), exp(0.426)
        assert directions_kept(rule, values, (4, 4)) == count
    assert [directions_kept("cumvar", values, (4, 4), share) for share in (0.5, 0.7, 0.9, 1.0)] == [1, 2, 3, 3]
    square = torch.tensor([100.0, 9.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert directions_kept("gavish_donoho", square, (5, 5)) == 2  # ω = 2.309 / 1.932 of the median 1
    assert directions_kept("entropy", torch.full((6,), 2.0, dtype=torch.float64), (9, 6)) == 6
