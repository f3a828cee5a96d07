"""Every method, streamed in blocks, against its naive whole-tensor form."""

from __future__ import annotations

import numpy as np
import pytest
import reference_methods
import torch

import cuvee
from cuvee.methods.registry import DELTAS, methods

SMALL = {
    "model.embed_tokens.weight": (13, 29),
    "model.layers.0.conv.weight": (6, 3, 3, 3),
    "model.layers.0.mlp.up_proj.weight": (8, 20),
    "model.layers.0.mlp.up_proj.bias": (37,),
    "model.layers.1.one": (1,),
    "model.layers.1.column": (5, 1),
    "scalar": (),
    "empty": (0, 4),
}
LARGE = {"long": (70_001,), "wide": (2, 70_000), "tall": (300, 500), "deep": (2, 300, 250), "kernel": (40, 60, 5, 6)}
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def values(shape, generator, ties):
    if ties:  # few distinct values, exact in bfloat16, so that many magnitudes are equal
        return torch.randint(-64, 65, shape, generator=generator) / 64
    return torch.randn(shape, generator=generator)


def make(count, shapes, *, ties, seed=0, frozen=True):
    """Return a base and fine-tunes of it; the last one has whole tensors and the first half of others unchanged."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: values(shape, generator, ties) for name, shape in shapes.items()}
    models = []
    for k in range(count):
        model = {}
        for name, shape in shapes.items():
            delta = values(shape, generator, ties)
            delta = torch.sign(delta) * (delta.abs() * 8).floor() / 64 if ties else delta * 0.05 * (k + 1)
            if frozen and k == count - 1 and count > 1:
                delta.reshape(-1)[: delta.numel() // 2] = 0
                if name == "model.layers.0.mlp.up_proj.weight":
                    delta.zero_()
            model[name] = base[name] + delta
        models.append(model)
    return base, models


def spread(start, count):
    return [round(start - 0.2 * k, 3) for k in range(count)]


# (method, arguments given the number of models, the numbers of models)
CASES = {
    "linear": ("linear", lambda k: {"weight": spread(1.3, k)}, range(1, 6)),
    "linear-sum": ("linear", lambda k: {"weight": spread(0.3, k), "normalize": False}, (1, 3)),
    "task_arithmetic": ("task_arithmetic", lambda k: {"weight": spread(0.5, k), "scaling": 0.7}, range(1, 6)),
    "task_arithmetic-mean": ("task_arithmetic", lambda k: {"weight": spread(0.9, k), "normalize": True}, (3,)),
    "passthrough": ("passthrough", lambda k: {"scale": 0.3}, (1,)),
    "slerp": ("slerp", lambda k: {"t": 0.3}, (2,)),
    "slerp-arc": ("slerp", lambda k: {"t": 0.8, "dot_threshold": 1.0}, (2,)),
    "nuslerp": ("nuslerp", lambda k: {"weight": [1.0, 0.4]}, (2,)),
    "nuslerp-rows": ("nuslerp", lambda k: {"weight": [1.0, 0.4], "nuslerp_flatten": False}, (2,)),
    "nuslerp-columns": (
        "nuslerp", lambda k: {"weight": [1.0, 3.0], "nuslerp_flatten": False, "nuslerp_row_wise": True}, (2,)
    ),
    "multislerp": ("multislerp", lambda k: {"weight": [1.0, 0.5, 0.3, 0.17, 0.07][:k]}, range(1, 6)),
    "multislerp-unnormalized": ("multislerp", lambda k: {"weight": [0.7] * k, "normalize_weights": False}, (3,)),
    "karcher": ("karcher", lambda k: {"max_iter": 50}, range(1, 6)),
    "ties": ("ties", lambda k: {"density": spread(0.9, k) if k < 5 else 0.5, "weight": spread(1.0, k)}, range(1, 6)),
    "ties-sum": ("ties", lambda k: {"density": 0.3, "merge_func": "sum", "scaling": 0.4}, (3,)),
    "ties-mean": ("ties", lambda k: {"density": 0.3, "merge_func": "mean", "inclusive_threshold": True}, (1, 4)),
    "ties-max": ("ties", lambda k: {"density": 0.55, "merge_func": "max"}, (3,)),
    "ties-rescaled": ("ties", lambda k: {"density": 0.2, "rescale": True, "normalize": False}, (2,)),
    "ties-negative": ("ties", lambda k: {"density": 0.7, "weight": [1.0, -0.5, 0.5], "normalize": False}, (3,)),
    "ties-model": (
        "ties",
        lambda k: {
            "density": 0.37, "trim_scope": "model", "tie_sign": "global_majority", "merge_func": "mean",
            "inclusive_threshold": False,
        },
        (1, 4),
    ),
    "ties-official": (
        "ties",
        lambda k: {"density": 0.2, "trim_scope": "model", "tie_sign": "global_majority", "merge_func": "mean"},
        range(1, 6),
    ),
    "dare_linear": ("dare_linear", lambda k: {"density": spread(0.9, k), "weight": spread(1.0, k)}, range(1, 5)),
    "dare_linear-expected": ("dare_linear", lambda k: {"density": 0.3, "rescale": "expected"}, (2,)),
    "dare_ties": ("dare_ties", lambda k: {"density": 0.5, "weight": spread(1.0, k)}, range(1, 6)),
    "dare_ties-normalized": ("dare_ties", lambda k: {"density": 0.4, "rescale": False, "normalize": True}, (3,)),
    "dare_ties-trimmed": ("dare_ties", lambda k: {"density": 0.7, "ties_density": 0.3, "rescale": "none"}, (3,)),
    "della": ("della", lambda k: {"density": 0.5, "weight": spread(1.0, k)}, range(1, 6)),
    "della-expected": ("della", lambda k: {"density": 0.4, "epsilon": 0.3, "rescale": "expected"}, (2,)),
    "della_linear": ("della_linear", lambda k: {"density": 0.6, "epsilon": spread(0.35, k)}, (1, 2)),
    "breadcrumbs": ("breadcrumbs", lambda k: {"density": 0.7, "gamma": 0.1, "weight": spread(1.0, k)}, range(1, 6)),
    "breadcrumbs-default": ("breadcrumbs", lambda k: {"density": 0.9, "rescale": True}, (3,)),
    "breadcrumbs-full": ("breadcrumbs", lambda k: {"density": 0.8, "gamma": 0.5}, (2,)),
    "breadcrumbs-rows": ("breadcrumbs", lambda k: {"keep_top": 0.6, "remove_top": 0.2}, (1, 3)),
    "breadcrumbs_ties": ("breadcrumbs_ties", lambda k: {"density": 0.6, "gamma": 0.05}, range(1, 6)),
    "sce": ("sce", lambda k: {}, range(1, 6)),
    "sce-top": ("sce", lambda k: {"select_topk": 0.3}, range(2, 6)),
    "sce-fuseai": ("sce", lambda k: {"select_topk": 0.1, "variant": "fuseai"}, (2, 4)),
    "model_stock": ("model_stock", lambda k: {}, range(2, 6)),
    "model_stock-rows": ("model_stock", lambda k: {"filter_wise": True}, (3,)),
    "nearswap": ("nearswap", lambda k: {"t": 0.03}, (1,)),
    "arcee_fusion": ("arcee_fusion", lambda k: {}, (1,)),
    "ram": ("ram", lambda k: {"epsilon": 0.01}, range(1, 6)),
    "ramplus_tl": ("ramplus_tl", lambda k: {"epsilon": 0.01, "r": 0.5, "alpha": 3.0}, range(1, 6)),
}  # fmt: skip
GIVEN = [(label, k) for label, (_, _, counts) in CASES.items() for k in counts]


def check(label, count, shapes, *, ties, block=None, tolerance=2e-6, device="cpu", seed=7, flips=0.0):
    method, arguments, _ = CASES[label]
    base, models = make(count, shapes, ties=ties)
    on_deltas = methods()[method].on is DELTAS
    given_base = base if on_deltas else None
    settings = arguments(count)
    expected = reference_methods.merge(method, models, given_base, on_deltas=on_deltas, seed=seed, **settings)
    moved = [{name: t.to(device) for name, t in tensors.items()} for tensors in (base, *models)]
    got = cuvee.merge_tensors(
        method, moved[1:], moved[0] if on_deltas else None, seed=seed, block_elements=block, **settings
    )
    assert got.keys() == expected.keys()
    for name, right in expected.items():
        assert got[name].shape == right.shape and got[name].dtype == torch.float32
        scale = max(1.0, float(np.abs(right).max(initial=0)))
        far = np.abs(got[name].numpy() - right) > tolerance * scale
        if far.sum() > flips * far.size:
            np.testing.assert_allclose(
                got[name].numpy(), right, rtol=0, atol=tolerance * scale, err_msg=f"{label}, {count} models, {name}"
            )


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "equal magnitudes"])
@pytest.mark.parametrize(("label", "count"), GIVEN, ids=[f"{label}-{k}" for label, k in GIVEN])
def test_a_method_is_its_naive_form(label, count, ties):
    check(label, count, SMALL, ties=ties)


# Whether magnitudes are equal is nothing to a method without a threshold; to others equal ones are the harder case.
SMOOTH = {"linear", "task_arithmetic", "passthrough", "slerp", "nuslerp", "multislerp", "karcher", "model_stock"}


def is_quick(label, ties):
    """One case of each method; of its variants those that measure otherwise."""
    measures_otherwise = label in ("ties-official", "sce-top", "nuslerp-rows")
    return ("-" not in label or measures_otherwise) and ties == (CASES[label][0] not in SMOOTH)


STREAMED = [
    pytest.param(label, ties, marks=[] if is_quick(label, ties) else [pytest.mark.slow])
    for label in CASES
    for ties in (False, True)
]


@pytest.mark.parametrize(("label", "ties"), STREAMED)
def test_a_streamed_method_is_its_naive_form_beyond_a_leaf(label, ties):
    counts = CASES[label][2]
    if label == "nuslerp-columns":
        shapes = {"tall": (300, 500), "deep": (2, 300, 250), "kernel": (40, 60, 5, 6)}  # the naive form is slow
    else:
        shapes = LARGE
    check(label, 3 if 3 in counts else counts[0], shapes, ties=ties, block=1 << 17, tolerance=4e-6)


@pytest.mark.parametrize("label", CASES)
@pytest.mark.skipif(len(DEVICES) == 1, reason="no CUDA device")
def test_a_method_on_a_gpu_is_its_naive_form(label):
    count = CASES[label][2][-1]
    # A GPU rounds a score (softmax, variance) to the other side of the threshold now and then.
    flips = 1e-4 if label in ("arcee_fusion", "sce-top") else 0.0
    shapes = {**SMALL, "tall": (300, 500), "long": (70_001,)}
    for ties in (False, True):
        check(label, count, shapes, ties=ties, device="cuda", tolerance=1e-5, flips=flips)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label", ["linear", "task_arithmetic", "ties", "dare_ties", "della", "sce-top", "model_stock"])
def test_low_precision_models_are_merged_in_float32_and_rounded_once(label, dtype):
    method, arguments, _ = CASES[label]
    base, models = make(3, SMALL, ties=False)
    base, *models = [{name: t.to(dtype) for name, t in tensors.items()} for tensors in (base, *models)]
    on_deltas = methods()[method].on is DELTAS
    settings = arguments(3)
    expected = reference_methods.merge(method, models, base if on_deltas else None, on_deltas=on_deltas, **settings)
    got = cuvee.merge_tensors(method, models, base if on_deltas else None, **settings)
    for name, right in expected.items():
        rounded = torch.from_numpy(np.asarray(right)).to(dtype)
        assert got[name].dtype is dtype
        different = (got[name] != rounded).sum().item()
        # a last bit of float32 may tip a rounding; two roundings would tip many
        assert different <= max(1, 0.002 * rounded.numel()), name
        np.testing.assert_allclose(got[name].float().numpy(), rounded.float().numpy(), rtol=2**-7, atol=1e-6)


def test_the_base_is_one_end_of_slerp_and_one_more_model_to_karcher():
    base, (model,) = make(1, SMALL, ties=False)
    for method, settings in (("slerp", {"t": 0.3}), ("karcher", {})):
        with_base = cuvee.merge_tensors(method, [model], base, **settings)
        order = [base, model] if method == "slerp" else [model, base]
        without = cuvee.merge_tensors(method, order, **settings)
        assert all(torch.equal(with_base[name], without[name]) for name in base)


@pytest.mark.parametrize("label", ["nuslerp", "nuslerp-rows", "multislerp"])
def test_with_a_base_task_vectors_are_merged_on_the_sphere(label):
    method, arguments, _ = CASES[label]
    base, models = make(2, SMALL, ties=False, frozen=False)
    expected = reference_methods.merge(method, models, base, on_deltas=True, **arguments(2), scaling=0.5)
    got = cuvee.merge_tensors(method, models, base, **arguments(2), scaling=0.5)
    for name, right in expected.items():
        np.testing.assert_allclose(got[name].numpy(), right, rtol=0, atol=2e-6 * max(1, np.abs(right).max(initial=0)))


def test_every_method_has_a_naive_form():
    tested = {method for method, _, _ in CASES.values()}
    assert tested == set(reference_methods.ON_ONE_TENSOR)
    assert tested <= set(methods())
