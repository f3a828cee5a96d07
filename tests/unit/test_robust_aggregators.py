"""Robust aggregators: what bad models can do to them, and what their coefficients are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cuvee
from cuvee.errors import MethodError, NonFinite

GENERATOR = torch.Generator().manual_seed(0)
GOOD = [
    {"a.weight": torch.randn(6, 5, generator=GENERATOR), "b": torch.randn(7, generator=GENERATOR)} for _ in range(6)
]
CENTER = {name: torch.stack([one[name] for one in GOOD]).mean(0) for name in GOOD[0]}


def bad(size: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, size) for name, tensor in CENTER.items()}


def flat(tensors) -> np.ndarray:
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)]).double().numpy()


@pytest.mark.parametrize("method", ["trimmed_mean", "mean_around_median", "phocas", "multi_krum"])
@pytest.mark.parametrize("f", [3, 4, 2**50])
def test_more_bad_models_than_a_method_bears_are_answered_with_how_many_it_does(method, f):
    with pytest.raises(MethodError, match=f"f is {f}, which takes") as refused:
        cuvee.merge_tensors(method, GOOD, f=f)
    bearable = refused.value.right.removeprefix("f: ")
    assert bearable == ("1" if method == "multi_krum" else "2")
    cuvee.merge_tensors(method, GOOD, f=int(bearable))


@pytest.mark.parametrize("method", ["multi_krum", "geometric_median", "centered_clipping", "flag_aggregator"])
def test_a_model_that_goes_far_away_cannot_take_the_result_along(method):
    radius = max(np.linalg.norm(flat(one) - flat(CENTER)) for one in GOOD)
    base = {name: torch.zeros_like(one) for name, one in CENTER.items()} if method == "flag_aggregator" else None
    for size in (1e2, 1e4, 1e13, 1e20, 1e30):
        merged = cuvee.merge_tensors(method, [*GOOD, bad(size)], base)
        assert np.linalg.norm(flat(merged) - flat(CENTER)) < radius


@pytest.mark.parametrize("count", [3, 5])
def test_the_geometric_median_is_the_same_however_far_a_bad_model_is(count):
    """Its pull is of length 1 whatever its distance: only its direction counts."""
    near, *far = (
        flat(cuvee.merge_tensors("geometric_median", [*GOOD[: count - 1], bad(size)]))
        for size in (1e8, 1e13, 1e20, 1e37)
    )
    for merged in far:
        assert merged == pytest.approx(near, rel=1e-4, abs=1e-4)


def test_the_weights_say_which_models_are_the_most():
    centre = flat(cuvee.merge_tensors("geometric_median", GOOD[:2]))
    models = [*GOOD[:2], bad(1e20), bad(2e20), bad(-1e20)]
    merged = cuvee.merge_tensors("geometric_median", models, weight=[1.0, 1.0, 0.01, 0.01, 0.01])
    assert np.linalg.norm(flat(merged) - centre) < np.linalg.norm(flat(GOOD[0]) - centre) * 1.1


def _replicas(count: int, away: float, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    origin = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    apart = [away * (1 + n) * torch.randn(50, 40, generator=generator, dtype=torch.float64) for n in range(count)]
    return [{"w": (origin + one).to(dtype)} for one in apart]


@pytest.mark.parametrize(("away", "dtype"), [(1e-9, torch.float64), (1e-6, torch.float32)])
@pytest.mark.parametrize("variant", ["paper", "garfield"])
def test_krum_tells_replicas_apart_that_are_all_but_equal(away, dtype, variant):
    models = [_replicas(7, away, dtype)[n] for n in (6, 2, 0, 5, 3, 1, 4)]
    values = np.stack([flat(one) for one in models])
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1) + np.diag([np.inf] * 7)
    nearest = np.sort(distances, axis=1)[:, : 7 - 1 - (2 if variant == "paper" else 1)]
    chosen = int(np.argmin((nearest**2 if variant == "paper" else nearest).sum(1)))
    for block in (256, 100_000):
        merged = cuvee.merge_tensors(
            "multi_krum", models, m=1, variant=variant, compute_dtype=str(dtype)[6:], block_elements=block
        )
        assert flat(merged).tolist() == values[chosen].tolist()


@pytest.mark.parametrize("method", ["geometric_median", "centered_clipping"])
def test_a_centre_of_replicas_far_from_zero_is_that_of_what_they_differ_by(method):
    away = [{"w": 1e-8 * one["w"]} for one in _replicas(5, 1.0, torch.float64)]
    far = [{"w": 1.0 + one["w"]} for one in away]
    options = {"compute_dtype": "float64"} | ({"eps": 1e-15} if method == "geometric_median" else {})
    expected = flat(cuvee.merge_tensors(method, away, **options))
    found = flat(cuvee.merge_tensors(method, far, **options))
    assert found - 1.0 == pytest.approx(expected, abs=1e-3 * float(np.abs(expected).max()))


def test_krum_takes_the_model_with_the_closest_neighbours():
    at = [{"w": torch.tensor([x])} for x in (0.0, 1.0, 1.5, 2.1, 50.0)]
    assert cuvee.merge_tensors("multi_krum", at, f=1, m=1, variant="paper")["w"].tolist() == [1.5]
    assert cuvee.merge_tensors("multi_krum", at, f=1, variant="paper")["w"].tolist() == [1.25]  # 1 and 1.5
    # Distances to three others: 4.6 from 0, 2.6 from 1 and from 1.5, 3.8 from 2.1.
    assert cuvee.merge_tensors("multi_krum", at, f=1)["w"].tolist() == [1.25]
    assert cuvee.merge_tensors("multi_krum", at, f=1, m=5)["w"].item() == pytest.approx(10.92)
    with pytest.raises(MethodError, match="f is 2, which takes 7 models, and there are 5"):
        cuvee.merge_tensors("multi_krum", at, f=2)
    with pytest.raises(MethodError, match="m is 6, and there are 5 models"):
        cuvee.merge_tensors("multi_krum", at, m=6)


def test_the_geometric_median_of_three_on_a_line_is_the_middle_one():
    at = [{"w": torch.tensor([x, 2 * x])} for x in (0.0, 1.0, 10.0)]
    assert cuvee.merge_tensors("geometric_median", at, max_iter=1000)["w"].tolist() == pytest.approx([1, 2], abs=1e-4)
    two = cuvee.merge_tensors("geometric_median", at[:2])["w"].tolist()
    assert two == pytest.approx([0.5, 1])


def test_the_geometric_median_has_the_least_sum_of_distances():
    models = np.stack([flat(one) for one in GOOD])
    merged = flat(cuvee.merge_tensors("geometric_median", GOOD))

    def total(point: np.ndarray) -> float:
        return float(np.linalg.norm(models - point, axis=1).sum())

    generator = np.random.default_rng(0)
    for _ in range(20):
        assert total(merged) <= total(merged + 0.05 * generator.standard_normal(merged.shape)) + 1e-9


def test_centered_clipping_without_a_limit_is_the_mean():
    merged = cuvee.merge_tensors("centered_clipping", GOOD, tau=1e9, max_iter=1)
    assert flat(merged) == pytest.approx(flat(CENTER), abs=1e-6)
    still = cuvee.merge_tensors("centered_clipping", GOOD, tau=0.0)
    assert flat(still) == pytest.approx(flat(cuvee.merge_tensors("coordinate_median", GOOD)), abs=1e-6)


def test_the_flag_aggregator_projects_the_mean():
    base = {name: torch.zeros_like(tensor) for name, tensor in CENTER.items()}
    whole = cuvee.merge_tensors("flag_aggregator", GOOD, base, r=6, scale="preserve")
    assert flat(whole) == pytest.approx(flat(CENTER), abs=1e-6)
    # Three models in a plane, one out of it: r = 2 keeps the plane and drops what is orthogonal to it.
    x, y, z = torch.eye(3)
    models = [{"w": x}, {"w": y}, {"w": x + y}, {"w": 0.1 * z}]
    origin = {"w": torch.zeros(3)}
    merged = cuvee.merge_tensors("flag_aggregator", models, origin, r=2, scale="preserve")["w"].tolist()
    assert merged == pytest.approx([0.5, 0.5, 0], abs=1e-3)
    with pytest.raises(MethodError, match="init_seed makes a matrix of 3 rows and 2 columns for the whole model"):
        cuvee.merge_tensors("flag_aggregator", models, {"w": torch.zeros(3)}, r=2, init_seed=1, scope="tensor")
    with pytest.raises(MethodError, match="r is 7, and 6 models span 6 dimensions"):
        cuvee.merge_tensors("flag_aggregator", GOOD, base, r=7)


def test_the_flag_aggregator_gives_all_models_the_median_length():
    x, y, _ = torch.eye(3)
    models, origin = [{"w": x}, {"w": 2 * x}, {"w": 1e20 * y}], {"w": torch.zeros(3)}
    assert cuvee.merge_tensors("flag_aggregator", models, origin, r=3)["w"].tolist() == pytest.approx([4 / 3, 2 / 3, 0])
    still = [{"w": 0 * x}, {"w": 0 * y}, {"w": 1e20 * y}]
    assert cuvee.merge_tensors("flag_aggregator", still, origin)["w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("method", ["multi_krum", "geometric_median", "centered_clipping", "flag_aggregator"])
def test_a_model_with_nan_is_refused_or_let_through_but_never_a_traceback(method, scope):
    base = {name: torch.zeros_like(one) for name, one in CENTER.items()} if method == "flag_aggregator" else None
    for bad_value in (float("nan"), float("inf")):
        with pytest.raises(NonFinite, match="tensor 'a.weight' of 'model6' holds NaN or infinite values: 30 of "):
            cuvee.merge_tensors(method, [*GOOD, bad(bad_value)], base, scope=scope)
        let_through = cuvee.merge_tensors(method, [*GOOD, bad(bad_value)], base, scope=scope, allow_nan=True)
        assert {name: one.shape for name, one in let_through.items()} == {n: one.shape for n, one in CENTER.items()}
