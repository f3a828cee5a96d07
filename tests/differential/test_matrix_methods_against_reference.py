"""Methods on matrices against their papers' formulas in NumPy, which share nothing with ours but the cut-offs."""

from __future__ import annotations

import numpy as np
import pytest
import reference_matrix_methods as reference
import torch

import cuvee

NAME = "model.layers.0.mlp.up_proj.weight"
SHAPES = {"tall": (26, 14), "wide": (14, 26), "square": (18, 18)}
VARIANTS = [
    ("tsv_m", {}),
    ("tsv_m", {"rank": "share"}),
    ("tsv_m", {"rank": 3}),
    ("iso_c", {}),
    ("iso_c", {"rank": "full"}),
    ("iso_cts", {}),
    ("iso_cts", {"common_fraction": 0.4}),
    ("star", {}),
    ("star", {"eta": 85.0}),
    ("drm", {}),
    ("drm", {"direction": "vertical", "drop": 0.5, "disjoint": False}),
    ("dc_merge", {}),
    ("dc_merge", {"keep": 0.3}),
    ("dc_merge", {"keep": 0.5, "rank": 2, "smoothing": "linear"}),
    ("dc_merge", {"keep": 1.0, "rank": 4, "smoothing": "avg"}),
    ("wudi_merging", {}),
    ("wudi_merging", {"keep_ratio": 0.65}),
    ("wudi_merging", {"filter": "none", "rank_rule": "participation_sqrt"}),
    ("wudi_merging", {"filter": "tikhonov"}),
    ("wudi_merging", {"filter": "landweber", "steps": 20}),
    ("wudi_merging", {"solver": "adam", "steps": 30}),
    ("optmerge", {}),
    ("optmerge", {"center": True}),
    ("optmerge", {"solver": "sgd", "steps": 30}),
    ("bayesian_model_merging", {}),
    ("bayesian_model_merging", {"prior_precision": 0.01}),
    ("mats", {"iterations": 12}),
    ("mats", {"init": "task_arithmetic", "iterations": 7}),
    ("stf", {}),
    ("stf", {"rank": 2}),
    ("doge", {"steps": 25}),
    ("doge", {"steps": 5, "keep_percent": 70, "subspace": 3}),
    ("opcm", {}),
    ("opcm", {"alpha": 0.8}),
    ("ortho_merge", {}),
    ("ortho_merge", {"target": "conflict_rows", "theta": "max"}),
    ("lore_merging", {"mu": 0.1}),
    ("lore_merging", {"mu": 0.3, "iterations": 3, "scaling": 0.5}),
    ("singular_value_calibration", {}),
    ("singular_value_calibration", {"alpha": 0.4}),
]
LOW_RANK = (
    "tsv_m",
    "iso_c",
    "iso_cts",
    "star",
    "wudi_merging",
    "optmerge",
    "bayesian_model_merging",
    "stf",
    "lore_merging",
)


def models_of(shape, count, rank=None):
    """A base and task vectors, (m, n), of full rank or of another; the second is twice as large."""
    draws = np.random.default_rng(sum(shape) + count)
    deltas = [draws.normal(size=shape) for _ in range(count)]
    if rank:
        deltas = [draws.normal(size=(shape[0], rank)) @ draws.normal(size=(rank, shape[1])) for _ in range(count)]
    return draws.normal(size=shape), [0.05 * (1 + k % 2) * delta for k, delta in enumerate(deltas)]


def merged(method, base, deltas, settings):
    """The merged task vector of ours, in float64."""
    models = [{NAME: torch.from_numpy(base + delta)} for delta in deltas]
    given = None if method == "lore_merging" else {NAME: torch.from_numpy(base)}
    return cuvee.merge_tensors(method, models, given, compute_dtype="float64", **settings)[NAME].numpy() - base


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("method", "settings"), VARIANTS, ids=lambda one: one if isinstance(one, str) else str(one))
def test_a_method_on_matrices_is_its_papers_formula(method, settings, shape):
    for count, rank in ((2, None), (3, None), *([(3, 2)] if method in LOW_RANK else [])):
        base, deltas = models_of(SHAPES[shape], count, rank)
        want = getattr(reference, method)(base, deltas, **settings)
        got = merged(method, base, deltas, settings)
        assert np.linalg.norm(got - want) <= 2e-6 * max(np.linalg.norm(want), np.linalg.norm(deltas[0])), (count, rank)


@pytest.mark.parametrize("method", ["tsv_m", "stf", "r_tsvm", "dc_merge"])
def test_what_is_said_of_special_cases_of_leading_directions(method):
    settings = {"keep": 1.0} if method == "dc_merge" else {}
    base, (delta, *_) = models_of((24, 30), 1)
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    np.testing.assert_allclose(merged(method, base, [delta], settings), delta, atol=1e-6)
    equal = merged(method, base, [delta] * 3, settings)
    once = (u[:, :8] * s[:8]) @ vh[:8]
    # the core of dc_merge keeps of three equal models only what lies in the blocks of each
    np.testing.assert_allclose(equal, once / 3 if method == "dc_merge" else once, atol=1e-6)
    apart = [(u[:, k : k + 4] * s[k : k + 4]) @ vh[k : k + 4] for k in (0, 4, 8)]
    if method != "r_tsvm":
        np.testing.assert_allclose(merged(method, base, apart, settings), sum(apart), atol=1e-6)


def test_iso_c_gives_all_directions_the_mean_of_the_sum():
    base, deltas = models_of((24, 30), 3)
    s = np.linalg.svd(sum(deltas), compute_uv=False)
    found = np.linalg.svd(merged("iso_c", base, deltas, {}), compute_uv=False)
    np.testing.assert_allclose(found, s.mean(), rtol=1e-9)
    np.testing.assert_allclose(merged("iso_c", base, [deltas[0], -deltas[0]], {}), 0, atol=1e-9)
