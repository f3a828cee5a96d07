"""What opcm, ortho_merge and robust merging of factors promise in their papers, on small or drawn matrices."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from cuvee import merge_tensors
from cuvee.errors import CuveeError, MethodError
from cuvee.methods.pieces.latent_maps import latent_map, semantic_bases

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


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.wpe.weight", "text_model.class_embedding"])
def test_tables_of_tokens_and_positions_are_added_as_they_are(name):
    base, experts = drawn(2)
    total = sum(experts) - 2 * base
    want = base + total * (sum(float((one - base).norm()) for one in experts) / 2 / total.norm())
    torch.testing.assert_close(merged("opcm", experts, base, name), want)
    other = merged("opcm", experts, base, name, plain=[])
    assert float((other - want).norm()) > 1e-3


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


class Factors(NamedTuple):
    down: torch.Tensor
    up: torch.Tensor


def merge_robustly(adapters, **settings):
    names = ("q_proj.lora_A.weight", "q_proj.lora_B.weight")
    models = [dict(zip(names, one, strict=True)) for one in adapters]
    merged = merge_tensors("copa_merging", models, **settings)
    return Factors(*(merged[name] for name in names))


def factors(count, rank=4, inner=6, outer=5):
    generator = torch.Generator().manual_seed(1)
    return [
        Factors(torch.randn(rank, inner, generator=generator), torch.randn(outer, rank, generator=generator))
        for _ in range(count)
    ]


def test_untrimmed_factors_are_summed_down_and_averaged_up():
    one, other = factors(2)
    got = merge_robustly([one, other], density=1.0)
    torch.testing.assert_close(got.down, 2 * (one.down + other.down))
    torch.testing.assert_close(got.up, one.up + other.up)


def test_a_trimmed_row_counts_by_what_it_lost_and_others_are_lifted():
    down = torch.tensor([[4.0, 1.0], [3.0, 3.0]])
    other = torch.tensor([[5.0, 5.0], [5.0, 5.0]])
    up = torch.ones(1, 2)
    # Half of the first is kept: 4, 3, 3 reach the threshold; its rows count 5/4 and 1. All of the other reach theirs.
    got = merge_robustly([Factors(down, up), Factors(other, 3 * up)], density=0.5, clamp_top=0.0, factor_scale=1.0)
    torch.testing.assert_close(got.down, torch.tensor([[9.0, 5.0], [8.0, 8.0]]))
    torch.testing.assert_close(got.up, torch.full((1, 2), (1.25 + 3) / 2.25))
    got = merge_robustly([Factors(down, up), Factors(other, 3 * up)], density=0.5, clamp_top=1.0, factor_scale=1.0)
    torch.testing.assert_close(got.up, torch.tensor([[(1.25 + 3) / 2.25, 2.0]]))


def test_rows_that_the_trim_leaves_empty_and_adapters_of_zeros_give_no_nan():
    down = torch.tensor([[9.0, 8.0], [0.1, 0.2]])
    for one in (Factors(down, torch.ones(3, 2)), Factors(torch.zeros(2, 2), torch.zeros(3, 2))):
        merged = merge_robustly([one, one], density=0.25)
        assert all(bool(torch.isfinite(factor).all()) for factor in merged)


def test_factors_of_other_ranks_are_refused():
    with pytest.raises(CuveeError, match="lora_A.weight' is"):
        merge_robustly([*factors(1, rank=4), *factors(1, rank=3)])
    with pytest.raises(CuveeError, match="the factors of adapter 0 are"):
        merge_robustly([Factors(torch.ones(3, 6), torch.ones(5, 4))])
    with pytest.raises(CuveeError, match="no factor A beside"):
        merge_tensors("copa_merging", [{"q_proj.lora_B.weight": torch.ones(5, 4)}])


def test_a_turned_hidden_space_is_turned_by_its_map():
    generator = torch.Generator().manual_seed(2)
    head = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    torch.testing.assert_close(latent_map(head, head @ turn), turn.mT @ latent_map(head, head))
    bases = semantic_bases(head)
    torch.testing.assert_close(bases.norm(dim=0), torch.ones(40, dtype=torch.float64))
    pinv = torch.linalg.pinv(head)
    torch.testing.assert_close(bases, pinv / pinv.norm(dim=0))


def test_heads_of_other_vocabularies_are_refused_and_zeros_give_no_nan():
    with pytest.raises(MethodError, match="40 and 41 rows"):
        latent_map(torch.ones(40, 3), torch.ones(41, 3))
    assert bool(torch.isfinite(latent_map(torch.zeros(4, 3), torch.ones(4, 2))).all())


@pytest.mark.parametrize(("method", "instead"), [("fda", "cuvee fda BASE"), ("seme", "latent_map")])
def test_names_that_are_no_methods_are_refused_with_what_there_is_instead(method, instead):
    base, experts = drawn(2)
    with pytest.raises(MethodError, match=method) as raised:
        merged(method, experts, base)
    assert instead in raised.value.right
