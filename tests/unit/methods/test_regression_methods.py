"""Methods that solve Θ C = T: what their solutions satisfy, on any shape of matrix."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import MethodError
from cuvee.methods.needs import module_of
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


def swudi(deltas: torch.Tensor, time: float, gamma: float, ridge: float, power: float, floor: float) -> torch.Tensor:
    """All knobs of SWUDI at once, by full matrices, from the sum."""
    c, t = moments(deltas)
    values, q = torch.linalg.eigh(c)
    values = values.clamp(min=1e-8)
    f = (1 - torch.exp(-values * time)) ** gamma * values / (values + ridge)
    w = torch.stack([(one @ q).square().sum(0) / one.square().sum() for one in deltas])
    f = f * (floor + (1 - floor) * (w.sum(0).square() / w.square().sum(0) / len(deltas)) ** power)
    f[values <= 1e-8] = 0
    total = deltas.sum(0)
    return total - total @ q @ torch.diag(f) @ q.mT + t @ q @ torch.diag(f / values) @ q.mT


@pytest.mark.parametrize("shape", SHAPES)
def test_the_knobs_of_swudi(shape):
    deltas = deltas_of(shape)
    knobs = {"time": 3.0, "gamma": 0.9, "ridge": 0.02}
    got = merged("wudi_merging", deltas, consensus_power=1.5, consensus_floor=0.2, **knobs)
    torch.testing.assert_close(got, swudi(deltas, power=1.5, floor=0.2, **knobs), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_filter_of_outputs_follows_any_method(shape):
    deltas = deltas_of(shape)
    sigma, u = torch.linalg.eigh(sum(one @ one.mT / one.square().sum() for one in deltas))
    gain = 1 - torch.exp(-sigma.clamp(min=1e-8) * 2.0)
    for method in ("wudi_merging", "task_arithmetic"):
        want = u @ torch.diag(gain) @ u.mT @ merged(method, deltas)
        got = merged(method, deltas, after=[{"output_filter": {"time": 2.0}}])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    unmoved = torch.zeros_like(deltas)
    assert not merged("wudi_merging", unmoved, after=["output_filter"], consensus_power=1.0).any()


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


@pytest.mark.parametrize("shape", SHAPES)
def test_bmm_is_the_ridge_around_its_anchor(shape):
    deltas = deltas_of(shape)
    c, t = moments(deltas)
    eye = torch.eye(shape[1], dtype=torch.float64)
    want = (t + 0.02 * deltas.mean(0)) @ torch.linalg.inv(c + 0.02 * eye)
    settings = {"anchor": "mean", "prior_precision": 0.02, "gram_norm": "delta_frobenius"}
    torch.testing.assert_close(merged("bayesian_model_merging", deltas, **settings), want, rtol=0, atol=1e-8)
    # In units of the mean diagonal of C, which is 3 / n, it is the same prior.
    settings |= {"gram_norm": "mean_diagonal", "prior_precision": 0.02 * shape[1] / 3}
    torch.testing.assert_close(merged("bayesian_model_merging", deltas, **settings), want, rtol=0, atol=1e-8)
    after = {"prior_precision": 0.02, "gram_norm": "delta_frobenius"}
    got = merged("task_arithmetic", deltas, weight=1 / 3, after=[{"reforge": after}])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


def test_bmm_goes_from_the_regression_to_the_anchor():
    deltas = deltas_of((12, 30))
    for method, settings in (("bayesian_model_merging", {"anchor": "sum"}), ("reforge", {"inner": "tsv_m"})):
        anchor = deltas.sum(0) if method != "reforge" else merged("tsv_m", deltas)
        far = merged(method, deltas, prior_precision=1e9, **settings)
        torch.testing.assert_close(far, anchor, rtol=0, atol=1e-6)
        near = merged(method, deltas, prior_precision=0.0, **settings)
        torch.testing.assert_close(near, merged("wudi_merging", deltas, filter="none"), rtol=0, atol=1e-9)


def test_bmm_gives_what_is_no_matrix_the_mean_or_its_anchor():
    vectors = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    models = [{"model.norm.weight": one} for one in vectors]
    base = {"model.norm.weight": torch.zeros(2, dtype=torch.float64)}
    wanted = {"sum": [4.0, 7.0], "mean": [2.0, 3.5], "zero": [0.0, 0.0]}
    for settings, want in [
        *(({"anchor": anchor, "others": "anchor"}, want) for anchor, want in wanted.items()),
        *(({"others": other}, wanted["zero" if other == "base" else other]) for other in ("sum", "mean", "base")),
        ({}, wanted["mean"]),
    ]:
        got = cuvee.merge_tensors("bayesian_model_merging", models, base, importance=[5.0, 1.0], **settings)
        assert got["model.norm.weight"].tolist() == want


def grams_of(count: int, side: int, kind: str = "gram", name: str = NAME) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(side)
    rows = torch.randn(count, 2 * side, side, generator=generator, dtype=torch.float64)
    return {f"{kind}/model{k}/{name}": one.mT @ one / (2 * side) for k, one in enumerate(rows)}


def test_bmm_takes_the_grams_of_data_and_says_what_is_wrong_with_them():
    deltas, given = deltas_of((7, 5)), grams_of(3, 5)
    c = sum(given.values())
    t = sum(one @ g for one, g in zip(deltas, given.values(), strict=True))
    settings = {"statistics": given, "prior_precision": 0.5, "gram_norm": "none", "anchor": "zero"}
    want = t @ torch.linalg.inv(c + 0.5 * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(merged("bayesian_model_merging", deltas, **settings), want, rtol=0, atol=1e-10)
    renamed = {key.removesuffix(".weight"): g for key, g in given.items()}
    got = merged("bayesian_model_merging", deltas, **settings | {"statistics": renamed})
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    elsewhere = {"gram/model0/other": torch.eye(5)}
    got = merged("bayesian_model_merging", deltas, statistics=elsewhere, anchor="mean")
    torch.testing.assert_close(got, deltas.mean(0))  # a matrix without Gram matrices is the anchor
    first = f"gram/model0/{NAME}"
    wrong = {
        "some models have gram of this tensor, and model 1, counted from 0, has none": {first: given[first]},
        r"shape \(4, 4\)": given | {first: torch.eye(4)},
        "NaN or Inf": given | {first: given[first] * float("nan")},
    }
    for said, statistics in wrong.items():
        with pytest.raises(MethodError, match=said) as caught:
            merged("bayesian_model_merging", deltas, statistics=statistics)
        assert "gram/model" in caught.value.where


@pytest.mark.parametrize("method", ["bayesian_model_merging", "reforge"])
def test_a_hybrid_mixes_grams_of_data_and_of_task_vectors_each_of_trace_one(method):
    deltas, given = deltas_of((7, 5)), grams_of(3, 5)
    settings = {"statistics": given, "prior_precision": 0.5, "gram": "hybrid"}
    own = [one.mT @ one / one.square().sum() for one in deltas]
    mixed = [0.3 * g / g.trace() + 0.7 * o for g, o in zip(given.values(), own, strict=True)]
    c, t = sum(mixed), sum(one @ g for one, g in zip(deltas, mixed, strict=True))
    scale = 5 / c.trace()
    prior = 0.5 * torch.eye(5, dtype=torch.float64)
    want = (t * scale + prior[0, 0] * deltas.sum(0)) @ torch.linalg.inv(c * scale + prior)
    torch.testing.assert_close(merged(method, deltas, mix=0.3, **settings), want, rtol=0, atol=1e-10)
    for mix, gram in ((0.0, "task_vector"), (1.0, "data")):
        alone = merged(method, deltas, **settings | {"gram": gram, "gram_norm": "delta_frobenius"})
        got = merged(method, deltas, mix=mix, **settings | {"gram_norm": "delta_frobenius"})
        torch.testing.assert_close(got, alone, rtol=0, atol=1e-10)
    elsewhere = {"statistics": {"gram/model0/other": torch.eye(5)}}
    got, want = (merged(method, deltas, prior_precision=0.5, **one) for one in (elsewhere | {"gram": "hybrid"}, {}))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    with pytest.raises(MethodError, match="no model has Gram matrices") as raised:
        merged(method, deltas, gram="hybrid")
    assert "cuvee collect gram" in raised.value.right


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("center", [False, True])
def test_optmerge_meets_its_targets_on_the_probed_inputs_and_stays_elsewhere(shape, center):
    deltas, rank = deltas_of(shape, 2), min(shape) // 2
    probes = [truncated(one, rank) / one.norm() for one in deltas]
    middle = deltas.mean(0) if center else torch.zeros_like(deltas[0])
    targets = [middle + truncated(one - middle, rank) for one in deltas]
    got = merged("optmerge", deltas, center=center, filter="none")
    gradient = sum((got - t) @ p.mT @ p for t, p in zip(targets, probes, strict=True))
    assert float(gradient.abs().max()) < 1e-10
    unseen = torch.eye(shape[1], dtype=torch.float64) - torch.linalg.pinv(torch.cat(probes), rtol=1e-8) @ torch.cat(
        probes
    )
    torch.testing.assert_close(got @ unseen, deltas.mean(0) @ unseen, rtol=0, atol=1e-8)


def test_optmerge_descends_to_its_closed_form():
    deltas = deltas_of((7, 5), 2)
    got = merged("optmerge", deltas, solver="sgd", lr=0.3, steps=3000)
    torch.testing.assert_close(got, merged("optmerge", deltas, filter="none"), rtol=0, atol=1e-6)


def test_optmerge_with_whole_task_vectors_is_wudi():
    deltas = deltas_of((7, 5))
    for how in ({"solver": "adam", "lr": 1e-3, "steps": 50}, {"filter": "none"}, {"filter": "exponential"}):
        settings = {"init": "sum", **how}
        got, want = merged("optmerge", deltas, rank_ratio=1.0, **settings), merged("wudi_merging", deltas, **settings)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_weak_directions_do_not_make_optmerge_larger_than_the_task_vectors():
    left, right = deltas_of((60, 40), 4), deltas_of((40, 40), 1)[0]
    deltas = left @ torch.diag(torch.logspace(0, -5, 40, dtype=torch.float64)) @ right
    size = float(deltas.norm(dim=(1, 2)).sum())
    assert (
        float(merged("optmerge", deltas, filter="none").norm())
        > 3 * size
        > 3 * float(merged("optmerge", deltas).norm())
    )


def test_optmerge_of_one_model_gives_that_model():
    deltas = deltas_of((12, 30), 1)
    torch.testing.assert_close(merged("optmerge", deltas, init="zero", filter="none"), deltas[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(merged("optmerge", deltas, center=True), deltas[0], rtol=0, atol=1e-9)


def test_a_time_of_its_own_for_each_matrix_follows_from_the_largest_eigenvalues_of_all():
    names = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
    ]
    deltas = {name: deltas_of(shape) for name, shape in zip(names, SHAPES, strict=True)}
    tops = {name: float(torch.linalg.eigvalsh(moments(deltas[name])[0])[-1]) for name in names}
    mean = torch.tensor(list(tops.values()), dtype=torch.float64).log().mean().exp()
    base = {name: torch.zeros_like(one[0]) for name, one in deltas.items()}
    models = [{name: one[k] for name, one in deltas.items()} for k in range(3)]
    settings = {"compute_dtype": "float64", "others": "base"}
    got = cuvee.merge_tensors("wudi_merging", models, base, time=2.0, time_exponent=0.7, **settings)
    for name in names:
        own = 2.0 * float(mean / tops[name]) ** 0.7
        want = cuvee.merge_tensors("wudi_merging", models, base, time=own, **settings)[name]
        torch.testing.assert_close(got[name], want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("tensor", "module"),
    [("a.up.weight", "a.up"), ("a.up.weight[3]", "a.up[3]"), ("a.up", "a.up"), ("a.weight.x", "a.weight.x")],
)
def test_a_gram_matrix_may_be_named_by_the_module(tensor, module):
    assert module_of(tensor) == module
