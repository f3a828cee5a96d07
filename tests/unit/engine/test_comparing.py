"""Comparing: norms, cosines, agreement and interference, against what can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cuvee.checkpoints.sources import MemoryTensor, Model
from cuvee.engine import comparing
from cuvee.engine.comparing import Comparison, compare
from cuvee.errors import IncompatibleModels, Problems

NAME = "model.layers.0.mlp.up_proj.weight"


def model(label: str, *values: float, name: str = NAME, shape: tuple[int, ...] | None = None) -> Model:
    tensor = torch.tensor(values)
    return Model(label, {name: MemoryTensor(tensor.reshape(shape) if shape else tensor)})


def of_tensors(label: str, tensors: dict[str, torch.Tensor]) -> Model:
    return Model(label, {name: MemoryTensor(tensor, rank) for rank, (name, tensor) in enumerate(tensors.items())})


def two(base: list[float], one: list[float], other: list[float]) -> Comparison:
    return compare(model("base", *base), [model("one", *one), model("other", *other)], threads=1)


def test_numbers_worked_out_by_hand():
    # task vectors: (3, 0, 4, 0) and (3, 1, -4, 0)
    total = two([0.0, 2.0, 0.0, 1.0], [3.0, 2.0, 4.0, 1.0], [3.0, 3.0, -4.0, 1.0]).total()
    assert total.parameters == 4
    assert total.base_norm == pytest.approx(math.sqrt(5))
    assert total.norms == pytest.approx([5, math.sqrt(26)])
    assert total.ratios == pytest.approx([5 / math.sqrt(5), math.sqrt(26 / 5)])
    assert total.cosines[0, 1] == pytest.approx((9 - 16) / (5 * math.sqrt(26)))
    assert total.changed_shares == [0.5, 0.75]
    assert total.agreement[0, 1] == 0.5
    assert (total.contested, total.opposed) == (2, 1)
    assert total.interference == 0.25
    assert total.mean_cosine == total.cosines[0, 1]


def test_equal_experts_have_cosine_one_and_no_interference():
    total = two([1.0, 2.0], [2.0, 1.0], [2.0, 1.0]).total()
    assert total.cosines[0, 1] == pytest.approx(1)
    assert total.agreement[0, 1] == 1
    assert total.interference == 0


def test_opposite_experts_interfere_everywhere():
    total = two([1.0, 2.0], [2.0, 1.0], [0.0, 3.0]).total()
    assert total.cosines[0, 1] == pytest.approx(-1)
    assert total.agreement[0, 1] == 0
    assert total.interference == 1


def test_an_expert_that_is_the_base_has_no_direction():
    total = two([1.0, 2.0], [1.0, 2.0], [2.0, 1.0]).total()
    assert total.norms[0] == 0
    assert np.isnan(total.cosines[0]).all()
    assert math.isnan(total.agreement[0, 1])
    assert total.interference == 0
    assert total.changed_shares == [0, 1]


def test_a_base_of_zeros_has_no_ratio():
    assert all(map(math.isnan, two([0.0], [1.0], [2.0]).total().ratios))


def test_one_expert_alone_has_no_pairs():
    total = compare(model("base", 1.0), [model("one", 2.0)], threads=1).total()
    assert math.isnan(total.mean_cosine)
    assert total.interference == 0


def random_models(shape: tuple[int, ...]) -> list[Model]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    moved = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(3)]
    return [of_tensors(str(i), {NAME: values}) for i, values in enumerate([base, *moved])]


@pytest.mark.parametrize("shape", [(5, 70_000), (300, 500), (200_000,), (1,)])
def test_streamed_is_the_whole(shape, monkeypatch):
    base, *experts = random_models(shape)
    monkeypatch.setattr(comparing, "CPU_BLOCK", 1)
    total = compare(base, experts, threads=2).total()
    values = [m.tensors[NAME].values.reshape(-1) for m in (base, *experts)]
    deltas = torch.stack([v - values[0] for v in values[1:]]).double().numpy()
    vectors = np.concatenate([values[0].double().numpy()[None], deltas])
    assert total.gram == pytest.approx(vectors @ vectors.T, rel=1e-12)
    signs = np.sign(deltas)
    assert total.both.tolist() == (np.abs(signs) @ np.abs(signs).T).astype(int).tolist()
    equal = [[int(((a == b) & (a != 0)).sum()) for b in signs] for a in signs]
    assert total.agree.tolist() == equal
    assert total.opposed == int(((signs > 0).any(0) & (signs < 0).any(0)).sum())
    assert total.parameters == values[0].numel()


def test_threads_and_blocks_leave_no_trace(monkeypatch):
    base, *experts = random_models((700, 500))
    found = []
    for threads, block in ((1, 1 << 19), (2, 1 << 16), (4, 1)):
        monkeypatch.setattr(comparing, "CPU_BLOCK", block)
        found.append(compare(base, experts, threads=threads).total().gram.tobytes())
    assert len(set(found)) == 1


def test_groups_add_up_to_the_whole():
    names = ["model.embed_tokens.weight", NAME, "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"]
    generator = torch.Generator().manual_seed(0)
    models = [of_tensors(str(i), {n: torch.randn(4, 4, generator=generator) for n in names}) for i in range(3)]
    found = compare(models[0], models[1:], threads=1)
    total = found.total()
    for groups in (found.by(lambda place: place.role), found.by(lambda place: (place.stack, place.layer))):
        assert sum(group.parameters for group in groups.values()) == total.parameters
        assert sum(group.gram for group in groups.values()) == pytest.approx(total.gram)
    assert found.roles == ["attention_q", "mlp_up", "norm", "embedding"]
    assert found.stacks == {"model.layers": 2}


def test_models_without_kinship_and_values_that_are_not_finite_are_warned_of():
    base, _ = random_models((100, 100))[:2]
    other = of_tensors("stranger", {NAME: torch.randn(100, 100, generator=torch.Generator().manual_seed(9))})
    (warning,) = compare(base, [other], threads=1).warnings
    assert warning.startswith("stranger does not look like a fine-tune of 0")
    broken = two([1.0, 2.0], [math.nan, 2.0], [1.0, 2.5])
    assert "1 tensors hold NaN or infinite values" in broken.warnings[0]
    assert NAME in broken.warnings[0]


def test_vocabularies_of_different_sizes_are_compared_where_they_overlap():
    name = "model.embed_tokens.weight"
    base, expert = (
        model("base", 1.0, 2.0, 3.0, 4.0, name=name, shape=(2, 2)),
        model("expert", 1.0, 3.0, 9.0, 9.0, 9.0, 9.0, name=name, shape=(3, 2)),
    )
    found = compare(base, [expert], threads=1)
    assert found.total().parameters == 4
    assert "vocabularies differ" in found.warnings[0]


def test_models_without_a_common_tensor_are_refused():
    with pytest.raises(Problems) as several:
        compare(model("base", 1.0), [model("one", 1.0, name="another.weight")], threads=1)
    assert [type(error) for error in several.value.errors] == [IncompatibleModels, IncompatibleModels]
    with pytest.raises(IncompatibleModels, match="no tensor to compare"):
        compare(model("base", 1.0), [model("one", 2.0)], exclude=["*"], threads=1)


def test_progress_reaches_the_end():
    base, *experts = random_models((300, 500))
    seen: list[tuple[int, int]] = []
    compare(base, experts, threads=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4 * 300 * 500 * 4, 4 * 300 * 500 * 4)
