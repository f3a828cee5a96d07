"""MaTS: what its iterations reach, from where, and by which Gram matrices."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import MethodError
from cuvee.methods.pieces.metrics import of_gram, of_rows, sum_of

NAME = "model.layers.0.mlp.up_proj.weight"
GENERATOR = torch.Generator().manual_seed(0)
BASE = torch.randn(7, 5, generator=GENERATOR, dtype=torch.float64)
DELTAS = 0.1 * torch.randn(3, 7, 5, generator=GENERATOR, dtype=torch.float64)


def grams(kind: str, side: int) -> dict[str, torch.Tensor]:
    rows = torch.randn(3, 2 * side, side, generator=torch.Generator().manual_seed(side), dtype=torch.float64)
    return {f"{kind}/model{k}/{NAME}": one.mT @ one / (2 * side) for k, one in enumerate(rows)}


INPUTS, OUTPUTS = grams("gram", 5), grams("outgram", 7)


def merged(*, with_base: bool = True, models=BASE + DELTAS, base=BASE, **settings) -> torch.Tensor:
    given = {NAME: base} if with_base else None
    arguments = {"compute_dtype": "float64", **settings}
    return cuvee.merge_tensors("mats", [{NAME: one} for one in models], given, **arguments)[NAME]


def by_inputs() -> torch.Tensor:
    """Return RegMean's closed form."""
    right = sum(one @ g for one, g in zip(BASE + DELTAS, INPUTS.values(), strict=True))
    return right @ torch.linalg.inv(sum(INPUTS.values()))


@pytest.mark.parametrize("with_base", [True, False])
def test_regmean_ends_at_its_closed_form(with_base):
    for settings in ({"iterations": "converged"}, {"iterations": 500, "rtol": 1e-14}, {"init": "zero", "rtol": 1e-14}):
        got = merged(with_base=with_base, statistics=INPUTS, **settings)
        torch.testing.assert_close(got, by_inputs(), rtol=0, atol=1e-9)


def test_a_base_changes_nothing_but_where_iterations_start():
    for settings in ({}, {"init": "zero"}, {"objective": "block_fisher", "iterations": 6}):
        given = {"statistics": INPUTS | OUTPUTS, "iterations": 4} | settings
        torch.testing.assert_close(merged(**given), merged(with_base=False, **given), rtol=0, atol=1e-12)


def test_no_iterations_leave_the_start():
    starts = {
        "average": BASE + DELTAS.mean(0),
        "task_arithmetic": BASE + 0.5 * DELTAS.sum(0),
        "pretrained": BASE,
        "zero": torch.zeros_like(BASE),
    }
    for init, want in starts.items():
        got = merged(init=init, init_scale=0.5, iterations=0, statistics=INPUTS)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_block_fisher_answers_inputs_and_outputs():
    got = merged(statistics=INPUTS | OUTPUTS, objective="block_fisher", iterations=2000, rtol=1e-13)
    triples = zip(BASE + DELTAS, INPUTS.values(), OUTPUTS.values(), strict=True)
    left = sum(o @ (got - one) @ g for one, g, o in triples)
    assert float(left.abs().max()) < 1e-9


def test_equal_gram_matrices_give_the_average_and_one_model_itself():
    same = {key: next(iter(INPUTS.values())) for key in INPUTS}
    for settings in ({}, {"iterations": "converged"}):
        got = merged(statistics=same, init="pretrained", **settings)
        torch.testing.assert_close(got, (BASE + DELTAS).mean(0), rtol=0, atol=1e-5)
    one = merged(models=BASE + DELTAS[:1], statistics=INPUTS, init="pretrained", rtol=1e-12)
    torch.testing.assert_close(one, BASE + DELTAS[0], rtol=0, atol=1e-9)


def test_without_data_the_task_vectors_say_what_the_inputs_are():
    got = merged(iterations="converged")
    units = [one / one.norm() for one in DELTAS]
    c = sum(one.mT @ one for one in units)
    right = sum(delta @ one.mT @ one for delta, one in zip(DELTAS, units, strict=True))
    torch.testing.assert_close(got - BASE, right @ torch.linalg.inv(c), rtol=0, atol=1e-9)
    settings = {"filter": "none", "compute_dtype": "float64"}
    wudi = cuvee.merge_tensors("wudi_merging", [{NAME: one} for one in BASE + DELTAS], {NAME: BASE}, **settings)[NAME]
    torch.testing.assert_close(got, wudi, rtol=0, atol=1e-9)


def test_metrics_are_the_same_held_as_rows_or_as_a_matrix():
    rows = [torch.randn(3, 10, generator=GENERATOR, dtype=torch.float64) for _ in range(4)]
    x = torch.randn(6, 10, generator=GENERATOR, dtype=torch.float64)
    for offdiag in (1.0, 0.7, 0.0):
        few, all_of_them = (
            sum_of([of_rows(one, offdiag) for one in rows[:2]]),
            sum_of([of_rows(r, offdiag) for r in rows]),
        )
        assert few.is_rows and not all_of_them.is_rows  # 6 rows and 12, of 10 columns
        for metric, used in ((few, rows[:2]), (all_of_them, rows)):
            want = sum_of([of_gram(one.mT @ one, offdiag) for one in used])
            torch.testing.assert_close(metric.times(x), want.times(x))
            if metric.is_rows and offdiag < 1:
                continue
            values, vectors = metric.spectrum
            torch.testing.assert_close((vectors * values) @ vectors.mT, want.held, rtol=0, atol=1e-10)


def test_what_cannot_be_done_is_said():
    with pytest.raises(MethodError, match="init: pretrained without a base"):
        merged(with_base=False, init="pretrained")
    with pytest.raises(MethodError, match="no exact solution"):
        merged(objective="block_fisher", iterations="converged")
    with pytest.raises(MethodError, match="offdiag of task vectors has no exact solution"):
        merged(offdiag=0.5, iterations="converged")
    with pytest.raises(MethodError, match="init: zero leaves nothing"):
        merged(init="zero")
    with pytest.raises(MethodError, match="no outgram"):
        merged(objective="block_fisher", statistics=INPUTS)


def test_what_has_no_gram_matrix_is_averaged():
    got = merged(statistics={"gram/model0/another.weight": torch.eye(5)}, init="pretrained")
    torch.testing.assert_close(got, (BASE + DELTAS).mean(0))


@pytest.mark.parametrize("with_base", [False, True])
def test_the_diagonal_objective_is_the_average_weighted_by_fishers(with_base):
    generator = torch.Generator().manual_seed(3)
    fishers = {
        f"fisher/model{k}/{NAME}": torch.rand(BASE.shape, generator=generator).double() for k in range(len(DELTAS))
    }
    for fisher in fishers.values():
        fisher[0] = 0  # nobody says anything of the first row
    total = sum(fishers.values())
    models = [BASE + delta for delta in DELTAS]
    want = sum(f * one for f, one in zip(fishers.values(), models, strict=True)) / total
    settings = {"statistics": fishers, "objective": "diag_fisher", "with_base": with_base}
    got = merged(iterations="converged", **settings)
    torch.testing.assert_close(got[1:], want[1:], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        got[0], sum(models)[0] / len(models), rtol=0, atol=1e-9
    )  # stays at the start, the average
    near = merged(iterations=2000, rtol=1e-14, **settings)
    torch.testing.assert_close(near, got, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged(iterations=0, **settings), sum(models) / len(models), rtol=0, atol=1e-9)


def test_what_is_wrong_with_fishers_is_said():
    with pytest.raises(MethodError, match="no model has any"):
        merged(objective="diag_fisher")
    for said, bad in {"below zero": -torch.ones(BASE.shape), "diagonal Fisher of shape": torch.ones(1, 1)}.items():
        told = {f"fisher/model{k}/{NAME}": bad for k in range(len(DELTAS))}
        with pytest.raises(MethodError, match=said):
            merged(objective="diag_fisher", statistics=told)
