"""What opcm and ortho_merge promise in their papers and references, on matrices written out or drawn."""

from __future__ import annotations

import pytest
import torch

from cuvee import merge_tensors
from cuvee.errors import MethodError

NAME = "model.layers.0.mlp.up_proj.weight"


def drawn(count, rows=24, columns=16, size=0.02):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return base, [
        base + size * torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(count)
    ]


def merged(method, experts, base=None, name=NAME, **parameters):
    given = None if base is None else {name: base}
    return merge_tensors(method, [{name: one} for one in experts], given, **parameters)[name]


def test_a_new_task_that_is_orthogonal_is_added_whole_and_the_norm_is_the_mean():
    base = torch.zeros(4, 4, dtype=torch.float64)
    first, second = base.clone(), base.clone()
    first[0, 0], second[3, 2] = 3.0, 1.0
    got = merged("opcm", [first, second], base)
    torch.testing.assert_close(got, (first + second) * 2.0 / 10**0.5)


def test_what_lies_in_the_leading_directions_of_earlier_models_is_left_out():
    base = torch.zeros(3, 3, dtype=torch.float64)
    first, second = torch.diag(torch.tensor([4.0, 2.0, 1.0])).double(), torch.ones(3, 3, dtype=torch.float64)
    # The leading direction alone holds 4/7: with alpha 0.6 it is protected as a block, the diagonal always.
    total = torch.tensor([[4.0, 1, 1], [1, 2, 1], [1, 1, 1]], dtype=torch.float64)
    want = total * ((first.norm() + second.norm()) / 2 / total.norm())
    torch.testing.assert_close(merged("opcm", [first, second], base, alpha=0.6), want)
    total[:2, :2] = torch.tensor([[4.0, 0], [0, 2]])  # two of them hold 6/7
    want = total * ((first.norm() + second.norm()) / 2 / total.norm())
    torch.testing.assert_close(merged("opcm", [first, second], base, alpha=0.9), want)


def test_alpha_of_one_protects_every_direction_and_one_model_is_itself():
    base, experts = drawn(2, 8, 8)
    first, second = (one - base for one in experts)
    got = merged("opcm", experts, base, alpha=1.0) - base
    torch.testing.assert_close(got, first * ((first.norm() + second.norm()) / 2 / first.norm()))
    torch.testing.assert_close(merged("opcm", experts[:1], base), experts[0])


def test_the_order_of_opcm_is_a_parameter_and_names_no_place_twice():
    base, experts = drawn(3)
    got = merged("opcm", experts, base, order=[2, 0, 1])
    assert torch.equal(got, merged("opcm", [experts[1], experts[2], experts[0]], base))
    with pytest.raises(MethodError, match="names a place twice"):
        merged("opcm", experts, base, order=[0, 0, 1])


@pytest.mark.parametrize("shape", [(24, 16), (16, 16), (8, 20), (2, 50)])
def test_one_expert_with_its_whole_residual_is_itself_and_rotations_keep_singular_values(shape):
    base, experts = drawn(3, *shape)
    torch.testing.assert_close(merged("ortho_merge", experts[:1], base, residual_scale=1.0), experts[0])
    rotated = merged("ortho_merge", experts, base, residual_scale=0.0)
    torch.testing.assert_close(torch.linalg.svdvals(rotated), torch.linalg.svdvals(base))
    assert 0 < (rotated - base).norm() < 2 * sum((one - base).norm() for one in experts)


def test_equal_experts_share_one_rotation_and_their_residuals_add_up():
    base, experts = drawn(1)
    rotated = merged("ortho_merge", experts, base, residual_scale=0.0)
    got = merged("ortho_merge", experts * 3, base, residual_scale=0.5)
    torch.testing.assert_close(got, rotated + 0.5 * 3 * (experts[0] - rotated))


def test_an_expert_that_turns_everything_by_half_a_turn_is_a_residual():
    base, _ = drawn(1)
    torch.testing.assert_close(merged("ortho_merge", [-base], base, residual_scale=1.0), -base)


def test_orthogonal_adapters_keep_their_mean_size():
    name = "base_model.model.layers.0.q_proj.oft_R.weight"
    first, second = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(merged("ortho_merge", [first], name=name), first)
    got = merged("ortho_merge", [first, second], name=name)
    torch.testing.assert_close(got, (first + second) * (4 / 10**0.5) / 2)
    assert got.norm() == pytest.approx(2.0)
