"""What the methods on task vectors and the robust aggregators are to one another, and where their parameters end."""

from __future__ import annotations

import math

import pytest
import torch

import cuvee

SHAPES = {
    "model.embed_tokens.weight": (20, 12),
    "model.layers.0.mlp.up_proj.weight": (16, 12),
    "model.norm.weight": (12,),
}
GENERATOR = torch.Generator().manual_seed(5)


def drawn(size: float) -> dict[str, torch.Tensor]:
    return {name: size * torch.randn(shape, generator=GENERATOR) for name, shape in SHAPES.items()}


BASE = drawn(0.05)
DELTAS = [drawn(0.01) for _ in range(7)]
MODELS = [{name: BASE[name] + delta[name] for name in SHAPES} for delta in DELTAS]
A, B, C = MODELS[:3]
FAR = [{name: sign * torch.full_like(values, 1e30) for name, values in BASE.items()} for sign in (1, -1)]


def merge(method: str, models, base=None, **settings) -> torch.Tensor:
    found = cuvee.merge_tensors(method, models, base, **settings)
    return torch.cat([found[name].reshape(-1) for name in SHAPES])


def flat(model) -> torch.Tensor:
    return torch.cat([model[name].reshape(-1) for name in SHAPES])


def equal(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-7) -> bool:
    return bool((one - other).abs().max() <= tolerance)


WEIGHT = [0.5, 0.3, 0.2]
OFFICIAL = {"density": 0.2, "trim_scope": "model", "merge_func": "sum"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("linear", [A, B, C], None, {"weight": WEIGHT}), ("task_arithmetic", [A, B, C], BASE, {"weight": WEIGHT})),
        (("slerp", [A, B], None, {"t": 0.3}), ("slerp", [B, A], None, {"t": 0.7})),
        (("nuslerp", [A, B], None, {"weight": [0.7, 0.3]}), ("slerp", [A, B], None, {"t": 0.3, "dot_threshold": 1.0})),
        (
            ("della_linear", [A, B], BASE, {"density": 0.5, "epsilon": 0.0}),
            ("dare_linear", [A, B], BASE, {"density": 0.5}),
        ),
        (("dare_ties", [A, B], BASE, {"normalize": True}), ("ties", [A, B], BASE, {})),
        (("breadcrumbs", [A, B], BASE, {}), ("task_arithmetic", [A, B], BASE, {})),
        (("breadcrumbs", [A], BASE, {"keep_top": 1.0}), ("linear", [A], None, {})),
        (("consensus_ta", [A, B], BASE, {"k": 0}), ("task_arithmetic", [A, B], BASE, {})),
        (
            ("consensus_ties", [A, B], BASE, {"k": 0}),
            ("ties", [A, B], BASE, OFFICIAL),
        ),
        (("ties_sv", [A, B], BASE, {"density": 0.4}), ("ties", [A, B], BASE, {"density": 0.4})),
        (("lwptv", [A, B], BASE, {"inner": "ties", "prune_ratio": 0.0}), ("ties", [A, B], BASE, {})),
        (("lines", [A], BASE, {"alpha": 0.3, "beta": 0.0}), ("task_arithmetic", [A], BASE, {"scaling": 0.3})),
        (("flag_aggregator", [A, B, C], BASE, {"r": 3, "scale": "preserve"}), ("linear", [A, B, C], None, {})),
        (("trimmed_mean", [A, B, C], None, {"f": 0}), ("linear", [A, B, C], None, {})),
        (("trimmed_mean", [A, B, C], None, {"f": 1}), ("coordinate_median", [A, B, C], None, {})),
        (("geometric_median", [A, B], None, {}), ("linear", [A, B], None, {})),
        (("pma", [A, B, C], None, {"scheme": "ema", "alpha": 0.0}), ("linear", [A], None, {})),
        (("nearswap", [A], BASE, {"t": 1e6}), ("linear", [A], None, {})),
        (("sce", [A, dict(BASE)], BASE, {}), ("linear", [A], None, {})),
        (("ram_plus", [A, B], BASE, {"r": 0.0}), ("ram", [A, B], BASE, {})),
    ],
    ids=lambda side: f"{side[0]}-{'-'.join(map(str, side[3]))}",
)
def test_one_method_is_another_where_their_parameters_meet(one, other):
    assert equal(merge(*one[:3], **one[3]), merge(*other[:3], **other[3]), 2e-7)


@pytest.mark.parametrize(
    ("method", "models", "settings"),
    [
        ("consensus_ta", [A, B], {"k": 3}),
        ("lwptv", [A, B], {"inner": "ties", "prune_ratio": 1.0}),
        ("nearswap", [A], {"t": 0.0}),
        ("arcee_fusion", [dict(BASE)], {}),
        ("negmerge", [A, {name: BASE[name] - delta for name, delta in DELTAS[0].items()}], {}),
        ("model_stock", [A, {name: BASE[name] - delta for name, delta in DELTAS[0].items()}], {}),
        ("sce", [A, B], {"select_topk": 0.0}),
        ("ties", [A, B], {"density": 0.0}),
        ("breadcrumbs", [A, B], {"density": 0.0}),
        ("cabs", [A], {"sparsifier": "magnitude", "sparsity": 1.0}),
        ("pcb_merging", [A, B], {"ratio": 0.0}),
    ],
)
def test_the_base_is_left_where_nothing_is_kept(method, models, settings):
    assert equal(merge(method, models, BASE, **settings), flat(BASE))


def test_spherical_means_keep_the_mean_norm_tensor_by_tensor():
    norms = {name: [float(delta[name].norm()) for delta in DELTAS[:3]] for name in SHAPES}
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    found = cuvee.merge_tensors("multislerp", DELTAS[:3], zeros, weight=WEIGHT)
    mean = cuvee.merge_tensors("karcher", DELTAS[:3])
    for name, lengths in norms.items():
        expected = sum(w * length for w, length in zip(WEIGHT, lengths, strict=True))
        assert float(found[name].norm()) == pytest.approx(expected, rel=1e-6)
        assert float(mean[name].norm()) == pytest.approx(sum(lengths) / 3, rel=1e-6)


def test_a_larger_threshold_and_more_tasks_keep_fewer_elements():
    def kept(**settings) -> int:
        return int((merge("consensus_ta", [A, B, C], BASE, **settings) != flat(BASE)).sum())

    by_lambda = [kept(mask_lambda=value) for value in (0.0, 0.2, 0.4, 1.0, 4.0)]
    by_tasks = [kept(k=k) for k in range(5)]
    assert by_lambda == sorted(by_lambda, reverse=True) and by_tasks == sorted(by_tasks, reverse=True)
    assert by_lambda[0] == math.prod(flat(BASE).shape) and by_tasks[-1] == 0


@pytest.mark.parametrize("base", [None, BASE], ids=["weights", "task vectors"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("coordinate_median", {}),
        ("trimmed_mean", {"f": 2}),
        ("mean_around_median", {"f": 2}),
        ("phocas", {"f": 2}),
        ("multi_krum", {"f": 2}),
        ("geometric_median", {}),
        ("geometric_median", {"scope": "tensor"}),
        ("centered_clipping", {}),
    ],
    ids=str,
)
def test_two_models_of_seven_at_1e30_stay_without_a_say(method, settings, base):
    good = torch.stack([flat(model) for model in MODELS[:5]])
    found = merge(method, MODELS[:5] + FAR, base, **settings)
    slack = 1e-6 + (0.01 if method == "centered_clipping" else 0.0)  # it goes towards all, by tau at most
    assert bool((found >= good.amin(0) - slack).all() and (found <= good.amax(0) + slack).all())


@pytest.mark.parametrize("far", [1.0, 1e3, 1e9])
def test_copies_of_a_far_model_are_never_chosen(far):
    away = {name: values + far for name, values in BASE.items()}
    good = torch.stack([flat(model) for model in MODELS[:5]])
    found = merge("multi_krum", MODELS[:5] + [away, dict(away)], BASE, f=2, m=3)
    assert bool((found >= good.amin(0) - 1e-6).all() and (found <= good.amax(0) + 1e-6).all())


def test_the_geometric_median_of_three_on_a_line_is_the_middle_one():
    middle = {name: 0.7 * A[name] + 0.3 * B[name] for name in SHAPES}
    assert equal(merge("geometric_median", [A, middle, B]), flat(middle), 1e-5)


def test_negated_models_have_the_negated_median():
    negated = [{name: -values for name, values in model.items()} for model in MODELS]
    assert torch.equal(merge("coordinate_median", negated), -merge("coordinate_median", MODELS))
