"""DOGE: the gradient of its loss, the lengths that it gives task vectors, and its mask over the whole model."""

from __future__ import annotations

import torch

import cuvee
from cuvee.methods.papers.doge import _projected_gradient

GENERATOR = torch.Generator().manual_seed(0)
DELTAS = 0.1 * torch.randn(3, 8, 6, generator=GENERATOR, dtype=torch.float64)
NAME = "model.layers.0.mlp.up_proj.weight"


def merged(deltas: torch.Tensor, **settings) -> torch.Tensor:
    base = {NAME: torch.zeros_like(deltas[0])}
    models = [{NAME: one} for one in deltas]
    return cuvee.merge_tensors("doge", models, base, compute_dtype="float64", **settings)[NAME]


def test_the_gradient_is_that_of_the_loss_outside_the_shared_subspace():
    e = torch.randn(8, 6, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    lambdas = [0.5, 0.2, 0.3]
    mixed = sum(share * (one + e) for share, one in zip(lambdas, DELTAS, strict=True))
    loss = sum(((one * (one - mixed)).sum(1) ** 2).sum() for one in DELTAS)
    (want,) = torch.autograd.grad(loss, e)
    together = DELTAS.transpose(0, 1).contiguous()
    whole = _projected_gradient(together, lambdas, 7)(e.detach())  # 6 // 7 = 0 directions are shared
    torch.testing.assert_close(whole, want)
    leading = torch.cat([torch.linalg.svd(one)[0][:, :2] for one in DELTAS], 1)
    shared = torch.linalg.svd(leading)[0][:, :3]
    got = _projected_gradient(together, lambdas, 2)(e.detach())
    torch.testing.assert_close(got, want - shared @ (shared.mT @ want))


def test_without_steps_every_task_vector_gets_the_same_length():
    settings = {"steps": 0, "keep_percent": 100, "lambda_": 0.3}
    want = sum(0.3 * one / one.norm() for one in DELTAS)
    torch.testing.assert_close(merged(DELTAS, **settings), want)
    longer = DELTAS * torch.tensor([1.0, 10.0, 0.01], dtype=torch.float64).reshape(3, 1, 1)
    torch.testing.assert_close(merged(longer, **settings), want)


def test_the_correction_lowers_the_loss():
    def loss(x: torch.Tensor) -> float:
        return sum(float(((one * (one - x)).sum(1) ** 2).sum()) for one in DELTAS)

    start, end = (merged(DELTAS, keep_percent=100, lambda_=0.1, lr=1e-2, steps=steps) for steps in (0, 200))
    assert loss(end) < 0.9 * loss(start)


def test_a_model_is_cut_to_its_largest_elements_over_all_matrices():
    large, small = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    delta = {large: torch.tensor([[8.0, 7.0], [6.0, 5.0]]), small: torch.tensor([[4.0, 3.0], [2.0, 1.0]])}
    base = {name: torch.zeros(2, 2) for name in delta}
    got = cuvee.merge_tensors("doge", [delta], base, keep_percent=50, steps=0, lambda_=1.0)
    # int(8 · 50 / 100) = 4 and one more
    assert (got[large] != 0).all() and (got[small] != 0).tolist() == [[True, False], [False, False]]


def test_what_is_no_matrix_stays_at_the_base():
    base = {NAME: torch.zeros(2, 2), "model.norm.weight": torch.ones(2), "lm_head.weight": torch.ones(3, 2)}
    got = cuvee.merge_tensors("doge", [{name: one + 1 for name, one in base.items()}], base, steps=1)
    assert torch.equal(got["model.norm.weight"], torch.ones(2)) and torch.equal(got["lm_head.weight"], torch.ones(3, 2))
