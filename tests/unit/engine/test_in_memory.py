"""Merging in memory: what it refuses of values."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import IncompatibleModels, NonFinite

BASE = {"model.w": torch.zeros(6, 4), "model.n": torch.zeros(5), "steps": torch.tensor(3)}
GOOD = {"model.w": torch.ones(6, 4), "model.n": torch.ones(5), "steps": torch.tensor(3)}


def with_value(value: float, name: str = "model.w", dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    model = {key: one.clone() for key, one in GOOD.items()}
    model[name] = model[name].to(dtype)
    model[name].view(-1)[3] = value
    return model


@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic", "tsv_m", "geometric_median", "model_stock"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_that_are_not_finite_are_refused_by_name_unless_they_are_let_through(method, value, dtype):
    bad, base = with_value(value, dtype=dtype), BASE if method != "linear" else None
    for block in (None, 1):
        with pytest.raises(
            NonFinite, match="tensor 'model.w' of 'model1' holds NaN or infinite values: 1 of 24"
        ) as refused:
            cuvee.merge_tensors(method, [GOOD, bad, GOOD | {}], base, block_elements=block)
        assert "allow_nan=True" in str(refused.value.right)
    merged = cuvee.merge_tensors(method, [GOOD, bad, GOOD | {}], base, allow_nan=True)
    assert set(merged) == set(GOOD)


def test_a_base_that_is_not_finite_is_refused_too():
    with pytest.raises(NonFinite, match="tensor 'model.n' of 'base' holds NaN or infinite values: 1 of 5"):
        cuvee.merge_tensors("ties", [GOOD, GOOD | {}], with_value(float("inf"), "model.n"))


def test_what_a_merge_itself_makes_infinite_is_refused():
    large = {"w": torch.full((4,), 6e4, dtype=torch.float16)}
    with pytest.raises(NonFinite, match="the merge makes values of tensor 'w' NaN or infinite: 4 of 4, in F16"):
        cuvee.merge_tensors("linear", [large, large | {}], weight=1.0, normalize=False)
    kept = cuvee.merge_tensors("linear", [large, large | {}], weight=1.0, normalize=False, allow_nan=True)
    assert kept["w"].isinf().all()


def test_numbers_that_are_no_floats_are_left_alone():
    ones = {"w": torch.ones(3), "n": torch.tensor([-1, 2**62]), "b": torch.tensor([True, False])}
    merged = cuvee.merge_tensors("linear", [ones, {key: one.clone() for key, one in ones.items()}])
    assert merged["n"].tolist() == ones["n"].tolist() and merged["b"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"w": [1.0, 2.0]}, "'w' in model1 is a list"),
        ({"w": torch.ones(2).numpy()}, "'w' in model1 is a ndarray"),
        ({1: torch.ones(2)}, "1 in model1 is a name of type int"),
        ({"w": torch.ones(2, device="meta")}, "'w' in model1 is on the meta device, without data"),
        ({"w": torch.ones(2).to_sparse()}, "'w' in model1 is stored as torch.sparse_coo"),
        ("a/path", "model1 is a str"),
    ],
)
def test_what_is_no_dense_tensor_is_named(model, said):
    with pytest.raises(IncompatibleModels) as refused:
        cuvee.merge_tensors("linear", [{"w": torch.ones(2)}, model])
    assert refused.value.found == said
