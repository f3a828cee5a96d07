"""low_rank and twin_svd against their formulas, by a decomposition that is not ours."""

import pytest
import torch

import cuvee

NAME, BIAS = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias"


@pytest.fixture
def models():
    generator = torch.Generator().manual_seed(0)
    base = {NAME: torch.randn(24, 20, generator=generator), BIAS: torch.randn(24, generator=generator)}
    return base, [{k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in base.items()} for _ in range(3)]


def cut(matrix, rank, shrink=0.0):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * (s[:rank] - shrink).clamp(min=0)) @ vh[:rank]


@pytest.mark.parametrize(("density", "shrink", "rank"), [(0.2, 0.0, 4), (0.19, 0.1, 3), (1.0, 0.3, 20), (0.0, 0.0, 0)])
def test_leading_directions_are_kept_and_shrunk(models, density, shrink, rank):
    base, experts = models
    edit = {"low_rank": {"density": density, "shrink": shrink}}
    merged = cuvee.merge_tensors("task_arithmetic", experts, base, weight=0.3, before=[edit])
    expected = base[NAME] + 0.3 * sum(cut(one[NAME] - base[NAME], rank, shrink) for one in experts)
    torch.testing.assert_close(merged[NAME], expected)
    torch.testing.assert_close(merged[BIAS], base[BIAS] + 0.3 * sum(one[BIAS] - base[BIAS] for one in experts))


@pytest.mark.parametrize(("density", "rank"), [(0.1, 2), (1.0, 20), (0.0, 0)])
def test_what_each_model_has_beyond_the_shared_merge_is_cut_and_shared_out(models, density, rank):
    base, experts = models
    shares = [0.5, 1.0, 2.0]
    merged = cuvee.merge_tensors("twin_svd", experts, base, weight=0.2, density=density, share=shares)
    deltas = [one[NAME] - base[NAME] for one in experts]
    shared = 0.2 * sum(deltas)
    parts = [share / 3 * cut(delta - shared, rank) for share, delta in zip(shares, deltas, strict=True)]
    torch.testing.assert_close(merged[NAME], base[NAME] + shared + sum(parts))
    # what is no matrix is not cut
    deltas = [one[BIAS] - base[BIAS] for one in experts]
    shared = 0.2 * sum(deltas)
    parts = [share / 3 * (delta - shared) for share, delta in zip(shares, deltas, strict=True)]
    torch.testing.assert_close(merged[BIAS], base[BIAS] + shared + sum(parts))
