"""Methods on task vectors: small tensors with the answer written out."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import MethodError


def merge(method: str, *rows: list[float], **settings) -> list[float]:
    """Merge vectors over a base of zeros."""
    models = [{"w": torch.tensor(row)} for row in rows]
    found = cuvee.merge_tensors(method, models, {"w": torch.zeros(len(rows[0]))}, **settings)["w"]
    return [round(x, 5) + 0.0 for x in found.tolist()]


def by_layer(method: str, *models: list[float], base: bool = True, **settings) -> list[float]:
    """Merge models with one number a layer and one outside."""
    names = [f"model.layers.{layer}.w.weight" for layer in range(len(models[0]) - 1)] + ["model.embed_tokens.weight"]
    given = [{n: torch.full((2, 2), x) for n, x in zip(names, model, strict=True)} for model in models]
    found = cuvee.merge_tensors(method, given, {n: torch.zeros(2, 2) for n in names} if base else None, **settings)
    return [round(found[n][0, 0].item(), 5) + 0.0 for n in names]


def test_magmax_takes_the_largest_change_and_of_equal_ones_the_later():
    assert merge("magmax", [1.0, -3.0, 2.0, 0.0], [-2.0, 1.0, -2.0, 0.0]) == [-2, -3, -2, 0]


def test_consensus_keeps_what_enough_tasks_use():
    one, two = [1.0, 1.0, 0.1, 1.0], [1.0, 0.0, -2.0, -1.0]
    # Σ = 2, 1, −1.9, 0. Task 1 uses 1 > 0.4·1, 1 > 0, not 0.1 > 0.8, 1 > 0.4; task 2: 1 > 0.4, not 0 > 0.4, 2 > 0.04, 1 > 0.4.
    assert merge("consensus_ta", one, two) == [2, 0, 0, 0]
    assert merge("consensus_ta", one, two, k=1) == [2, 1, -1.9, 0]
    assert merge("consensus_ta", one, two, k=0) == [2, 1, -1.9, 0]
    assert merge("consensus_ta", one, two, k=3) == [0, 0, 0, 0]
    assert merge("consensus_ta", one, two, k=1, mask_lambda=[2.0, 19.0]) == [0, 1, -1.9, 0]
    # ties keeps the half with the largest magnitudes (and one more, as the official code) and adds those that agree
    assert merge("consensus_ties", one, two, k=1, ties_density=0.5) == [2, 1, -2, 1]


def test_negmerge_forgets_what_all_models_changed_alike():
    assert merge("negmerge", [1.0, 1.0, 2.0], [3.0, -1.0, 0.0]) == [-2, 0, 0]
    assert merge("negmerge", [1.0, -2.0], scaling=0.5) == [-0.5, 1]


def test_pcb_merging_keeps_the_best_scores():
    one, two = [4.0, 0.5, 0.1, 0.2], [3.0, -0.5, 0.1, 0.3]
    # The first entry is the largest of both and agrees: both shares are 1. That of the second best, the floor, is 0.
    assert merge("pcb_merging", one, two, ratio=0.5, clamp_ratio=0.0) == [3.5, 0, 0, 0]
    assert merge("pcb_merging", one, two, ratio=0.5, clamp_ratio=0.0, weight=[1.0, -1.0]) == [0.5, 0, 0, 0]
    # With ratio 1 the lowest is the floor. Model 1's second entry disagrees with nobody's sum: its score is 0, the floor of
    # both; the third of model 0 is tanh(0.02), and the clamp to sorted[1] = 0.2 makes it 0.2.
    merged = merge("pcb_merging", one, two, ratio=1.0, clamp_ratio=0.25)
    assert merged[1] == 0 and merged[2] == pytest.approx((0.2 + 0.3) / 2, abs=0.05)


def test_pcb_merging_cannot_clamp_half_of_all_from_either_side():
    with pytest.raises(MethodError, match=r"clamp_ratio is 0.5"):
        merge("pcb_merging", [1.0, 2.0], [2.0, 1.0], clamp_ratio=0.5)


def test_cabs_keeps_n_of_m_of_each_model_without_overlap():
    one, two = [4.0, 3.0, 2.0, 1.0, 1.0, 2.0], [9.0, 8.0, 1.0, 2.0, 3.0, 3.0]
    kept = {"n": 2, "m": 4}
    assert merge("cabs", one, two, **kept, weight=[1.0, 0.0]) == [4, 3, 0, 0, 0, 2]  # of the last two: ⌈2·2/4⌉ = 1
    assert merge("cabs", one, two, **kept, weight=[0.0, 1.0]) == [0, 0, 1, 2, 3, 0]
    assert merge("cabs", one, two, **kept, weight=[0.0, 1.0], order=[1, 0]) == [9, 8, 0, 0, 3, 0]
    # strictly above sorted[int(0.5·6)]: 2 of 1 1 2 2 3 4; then 2 of 0 0 1 2 3 3 as what is left
    assert merge("cabs", one, two, sparsifier="magnitude", sparsity=0.5) == [4, 3, 0, 0, 3, 3]
    assert merge("cabs", [2.0, 1.0, 1.0, 1.0], **kept) == [2, 1, 0, 0]  # the lower index first among equals
    with pytest.raises(MethodError, match="n is 5 and m is 4"):
        merge("cabs", one, two, n=5, m=4)
    with pytest.raises(MethodError, match=r"the order \[0, 0\] names a place twice") as refused:
        merge("cabs", one, two, n=1, m=4, order=[0, 0])
    assert "under the first model" in refused.value.right


def test_slack_gives_a_model_more_votes_and_no_more_weight():
    assert merge("ties_sv", [1.0, 1.0], [-2.0, 2.0]) == [-2, 1.5]
    assert merge("ties_sv", [1.0, 1.0], [-2.0, 2.0], slack=[1.5, 0.0]) == [1, 1.5]


def test_ram_plus_counts_over_the_whole_model():
    base = {"a": torch.zeros(3), "b": torch.zeros(1)}
    one = {"a": torch.tensor([1.0, 1.0, 0.0]), "b": torch.tensor([1.0])}
    two = {"a": torch.tensor([0.0, 3.0, 0.0]), "b": torch.tensor([3.0])}
    found = cuvee.merge_tensors("ram_plus", [one, two], base, r=0.5, alpha=4.0)
    # Model 0: two shared entries, one unique: 1 + 0.5 · 2; model 1 has no unique ones.
    assert found["a"].tolist() == [2, 2, 0] and found["b"].tolist() == [2]
    by_tensor = cuvee.merge_tensors("ramplus_tl", [one, two], base, r=0.5, alpha=4.0)
    assert by_tensor["a"].tolist() == [1.5, 2, 0]


def test_layers_are_swapped_and_seams_averaged():
    task, language = [1.0] * 9, [3.0] * 9
    settings = {"bottom": 2, "top": 1, "base": False}
    assert by_layer("layer_swapping", task, language, **settings) == [3, 3, 2, 1, 1, 1, 2, 3, 2]
    plain = by_layer("layer_swapping", task, language, **settings, transition_bottom=0, transition_top=0)
    assert plain == [3, 3, 1, 1, 1, 1, 1, 3, 2]
    assert by_layer("layer_swapping", task, language, base=False) == [3, 2, 1, 1, 1, 1, 2, 3, 2]
    # three layers, two and one: the task expert keeps one of them
    assert by_layer("layer_swapping", task[:4], language[:4], base=False) == [3, 1, 3, 2]
    assert by_layer("layer_swapping", task[:3], language[:3], base=False) == [3, 1, 2]
    assert by_layer("layer_swapping", task[:2], language[:2], base=False) == [1, 2]
    with pytest.raises(MethodError, match="9 layers are swapped or averaged, and the model has 8"):
        by_layer("layer_swapping", task, language, base=False, bottom=8)


def test_checkpoints_are_averaged_by_place_or_by_metric():
    def average(method, **settings):
        models = [{"w": torch.tensor([x])} for x in (1.0, 2.0, 6.0)]
        return round(cuvee.merge_tensors(method, models, **settings)["w"].item(), 5)

    assert average("pma") == 3
    assert average("pma", scheme="wma") == round((1 + 4 + 18) / 6, 5)
    assert average("pma", scheme="ema", alpha=0.5) == round(0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 6, 5)
    assert average("metrics_weighted_averaging", metric=[1.0, 1.0, 2.0]) == round((1 + 2 + 3) / 2.5, 5)
    assert average("metrics_weighted_averaging", metric=[1.0, 1.0, 2.0], kind="score") == round((1 + 2 + 12) / 4, 5)
    assert average("metrics_weighted_averaging", metric=[1.0, 1.0, 2.0], penalty=0.0) == 3
    assert average("metrics_weighted_averaging", metric=[2.0, 3.0, 4.0], penalty=5000.0) == 1


def test_lwptv_takes_out_the_layers_that_say_least():
    one, two = [1.0, 2.0, 3.0, 10.0], [-1.0, 2.0, 3.3, 10.0]
    # Distances to the mean over the norm: 1, 0, 0.05 and 0 outside; of equal ones the first goes. −1 (outside) comes first.
    assert by_layer("lwptv", one, two, prune_ratio=0.25) == [0, 4, 6.3, 0]
    assert by_layer("lwptv", one, two, prune_ratio=0.5) == [0, 0, 6.3, 0]
    assert by_layer("lwptv", one, two, prune_ratio=0.25, saliency="norm") == [0, 4, 6.3, 20]
    assert by_layer("lwptv", one, two, prune_ratio=1.0) == [0, 0, 0, 0]
    assert by_layer("lwptv", one, two, prune_ratio=0.0) == [0, 4, 6.3, 20]


def test_widen_gives_important_columns_the_calibration_and_others_a_softmax():
    base = {"w.weight": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    one = {"w.weight": torch.tensor([[1.0, 3.0], [0.0, 0.0]])}  # its second column has grown, and nothing has turned
    two = {"w.weight": torch.tensor([[4.0, 1.0], [0.0, 0.0]])}
    found = cuvee.merge_tensors("widen", [one, two], base)["w.weight"]
    # Ranks of change of length: (0, ½) and (½, 0); those above the mean ¼ get 1. Nothing has turned: ranks are (0, ½) for both.
    # Column 0: only model 1 moved: weight ½(1 + softmax(0, 0) = ½) · 3; column 1: only model 0: ½(1 + 1) · 2.
    assert found.tolist() == [[1 + 0.75 * 3, 1 + 2], [0, 0]]


def test_widen_takes_the_rows_of_an_embedding_for_its_columns():
    generator = torch.Generator().manual_seed(0)
    shape = (3, 70_000)
    base, *models = ({"x.weight": torch.randn(shape, generator=generator)} for _ in range(3))
    tall = [{"model.embed_tokens.weight": one["x.weight"].T.contiguous()} for one in (base, *models)]
    right = cuvee.merge_tensors("widen", models, base)["x.weight"].T
    for block in (None, 1 << 16):
        found = cuvee.merge_tensors("widen", tall[1:], tall[0], block_elements=block)["model.embed_tokens.weight"]
        assert torch.equal(found, right)


def test_hi_merging_settles_conflicts_by_the_scores_of_layers():
    one, two = [1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0]
    settings = {"density": 1.0, "scale": 1.0}
    assert by_layer("hi_merging", one, two, **settings) == [11, 22, 33, 44, 55]
    # Layer 0: none in conflict; 1: model 0; 2: both, and model 0 contributes more; 3: both, model 1. The embedding stays.
    alone = [[0.0, 3.0, 3.0, 1.0], [0.0, 0.0, 1.0, 3.0]]
    merged = [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    found = by_layer("hi_merging", one, two, **settings, alone=alone, merged=merged)
    # Pruned again by half: two of four elements, the first ones; and scaled by half.
    assert found == [11, 21, 3, 40, 55]
    base = {"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}
    model = {"a.weight": torch.tensor([1.0, 4.0]), "b.weight": torch.tensor([-3.0, 2.0])}
    other = {"a.weight": torch.tensor([0.0, 1.0]), "b.weight": torch.tensor([2.0, 0.0])}
    found = cuvee.merge_tensors("hi_merging", [model, other], base, density=[0.25, 1.0], scale=[0.5, 1.0])
    # Of model 0 what reaches the official threshold: int(0.25 · 4) + 1 entries, 4 and −3; the signs: plus, and plus of 2 − 1.5.
    assert found["a.weight"].tolist() == [0, 3] and found["b.weight"].tolist() == [2, 0]


@pytest.mark.parametrize("size", [1e-3, 0.5, 1.0, 3.0, 100.0])
def test_the_karcher_mean_of_opposite_numbers_has_their_mean_size(size):
    models = [{"w": torch.tensor([size * value], dtype=torch.float64)} for value in (0.0256, 0.0028, -0.0689)]
    found = cuvee.merge_tensors("karcher", models)["w"].item()
    assert found == pytest.approx(size * (0.0256 + 0.0028 + 0.0689) / 3)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("cabs", {"m": 2**63}),  # a kernel had counted in 64 bits
        ("cabs", {"n": 2**52}),
        ("consensus_ta", {"k": 10**30}),
        ("magmax", {"scaling": 10**400}),
        ("lines", {"num_blocks": float("inf")}),
        ("lines", {"alpha": float("nan")}),
        ("centered_clipping", {"max_iter": 10**9}),
        ("flag_aggregator", {"init_seed": 10**30}),
        ("flag_aggregator", {"regularization": 1e308}),
    ],
)
def test_numbers_that_nobody_means_are_refused(method, settings):
    with pytest.raises(MethodError, match=rf"{next(iter(settings))} is "):
        merge(method, [1.0, 2.0], [2.0, 1.0], [3.0, 3.0], **settings)


def test_the_karcher_mean_needs_no_tolerance():
    for other, expected in ([1.0, 2.0], [1.0, 2.0]), ([-1.0, -2.0], [1.0, 2.0]), ([0.0, 0.0], [0.5, 1.0]):
        models = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor(other)}]
        assert cuvee.merge_tensors("karcher", models, tol=0.0)["w"].tolist() == pytest.approx(expected)
