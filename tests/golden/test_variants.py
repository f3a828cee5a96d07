"""Variants of methods on tensors small enough to follow by hand, with the answer written out."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import IncompatibleModels

EMBED = "model.embed_tokens.weight"


def merge(method, *deltas, base=None, **settings):
    """Merge models given by their task vectors, on a base of zeros; returns the merged task vector as lists."""
    models = [{name: torch.tensor(values) for name, values in delta.items()} for delta in deltas]
    zeros = {name: torch.zeros_like(value) for name, value in models[0].items()}
    merged = cuvee.merge_tensors(method, models, base or zeros, **settings)
    return {name: [pytest.approx(x, rel=1e-6) for x in flat(values)] for name, values in merged.items()}


def flat(values: torch.Tensor) -> list[float]:
    return values.reshape(-1).tolist()


# TIES as the authors wrote it: one trim over the whole model, no weights, a balanced vote follows the majority.
# Of 5 entries the 3 that reach the third largest are kept (int(0.4·5) + 1); e1: 4, 3, −5; e2: −3, −6, −7.
E1 = {"a": [4.0, 3.0, 0.5], "b": [-2.0, -5.0]}
E2 = {"a": [1.0, -3.0, 0.25], "b": [-6.0, -7.0]}
OFFICIAL = {"density": 0.4, "trim_scope": "model", "inclusive_threshold": True, "tie_sign": "global_majority"}


@pytest.mark.parametrize(
    ("merge_func", "a", "b"),
    [
        ("mean", [4, -3, 0], [-6, -6]),
        ("sum", [4, -3, 0], [-6, -12]),
        ("max", [4, -3, 0], [-6, -7]),
    ],
)
def test_official_ties_trims_the_model_and_follows_its_majority(merge_func, a, b):
    assert merge("ties", E1, E2, merge_func=merge_func, **OFFICIAL) == {"a": a, "b": b}


def test_ties_gives_a_balanced_vote_plus_unless_asked_otherwise():
    assert merge("ties", E1, E2, merge_func="mean", **{**OFFICIAL, "tie_sign": "plus"}) == {
        "a": [4, 3, 0],
        "b": [-6, -6],
    }


def test_a_whole_model_trim_can_empty_a_tensor_and_fill_another():
    delta = {"small": [0.1, 0.2, 0.3], "large": [3.0, 2.0, 1.0]}
    exact = {"density": 0.5, "trim_scope": "model", "inclusive_threshold": False}
    assert merge("ties", delta, **exact) == {"small": [0, 0, 0], "large": [3, 2, 1]}
    # The official code, which is followed where nothing is said, keeps one more.
    assert merge("ties", delta, density=0.5, trim_scope="model") == {"small": [0, 0, 0.3], "large": [3, 2, 1]}
    assert merge("ties", delta, density=0.5, trim_scope="tensor") == {"small": [0, 0, 0.3], "large": [3, 0, 0]}


def test_a_layer_trim_takes_its_share_of_each_layer():
    delta = {
        "model.layers.0.mlp.up_proj.weight": [[1.0, 2.0]],
        "model.layers.0.mlp.down_proj.weight": [[3.0], [4.0]],
        "model.layers.1.mlp.up_proj.weight": [[0.1, 0.2]],
        "model.layers.1.mlp.down_proj.weight": [[0.4], [0.3]],
    }
    assert merge("ties", delta, density=0.5, trim_scope="layer") == {
        "model.layers.0.mlp.up_proj.weight": [0, 0],
        "model.layers.0.mlp.down_proj.weight": [3, 4],
        "model.layers.1.mlp.up_proj.weight": [0, 0],
        "model.layers.1.mlp.down_proj.weight": [0.4, 0.3],
    }


def test_an_exact_trim_keeps_the_first_of_equals_and_an_inclusive_one_all():
    delta = {"w": [1.0, -2.0, 2.0, 2.0]}
    assert merge("ties", delta, density=0.25) == {"w": [0, -2, 0, 0]}
    # official: the (4 − 1)rd smallest of 1 2 2 2 is 2
    assert merge("ties", delta, density=0.25, trim_scope="model", inclusive_threshold=True) == {"w": [0, -2, 2, 2]}


def test_long_to_short_ties_rounds_the_share_removed():
    # n = 5: int(5·0.4) = 2 are below, the 2nd smallest is the threshold: 4 survive
    # n = 3: int(3·0.4) = 1: the smallest is the threshold, all survive
    # n = 2: int(2·0.4) = 0: no trim
    settings = {"density": 0.6, "inclusive_threshold": True, "merge_func": "mean"}
    one = {"five": [5.0, 1.0, -2.0, 3.0, 4.0], "three": [1.0, 2.0, 3.0], "two": [1.0, 2.0]}
    two = {"five": [1.0, 2.0, -3.0, -4.0, -5.0], "three": [-4.0, 2.0, 1.0], "two": [3.0, -2.0]}
    assert merge("ties", one, two, **settings) == {
        "five": [5, 2, -2.5, -4, -5],
        "three": [-4, 2, 2],
        "two": [2, 2],
    }


def test_ties_divides_by_the_weights_that_agree():
    one, two, three = {"w": [1.0, 1.0]}, {"w": [3.0, -1.0]}, {"w": [-1.0, -4.0]}
    settings = {"weight": [1.0, 2.0, 1.0]}
    # votes: 1 + 6 − 1 > 0 and 1 − 2 − 4 < 0
    assert merge("ties", one, two, three, **settings) == {"w": [7 / 3, -2]}
    assert merge("ties", one, two, three, normalize=False, **settings) == {"w": [7, -6]}


def test_trimming_all_of_a_small_tensor_leaves_the_base():
    assert merge("ties", {"w": [1.0, 2.0]}, {"w": [3.0, 4.0]}, density=0.3) == {"w": [0, 0]}


def masks(*rows):
    return {f"mask/model{k}/w": torch.tensor(row) for k, row in enumerate(rows)}


def test_dare_divides_by_density_when_asked_and_else_restores_the_sum():
    given = {"statistics": masks([1.0, 0.0, 1.0, 1.0]), "density": 0.4}
    delta = {"w": [1.0, -4.0, 2.0, 1.0]}
    assert merge("dare_linear", delta, rescale="expected", **given) == {"w": [2.5, 0, 5, 2.5]}
    assert merge("dare_linear", delta, **given) == {"w": [2, 0, 4, 2]}  # Σ|τ| is 8, of which 4 are left
    assert merge("dare_linear", delta, rescale=False, **given) == {"w": [1, 0, 2, 1]}


def test_density_one_draws_nothing_and_density_zero_keeps_nothing():
    delta = {"w": [1.0, -4.0, 2.0, 1.0]}
    for method in ("dare_linear", "dare_ties", "della", "della_linear"):
        assert merge(method, delta, density=1.0) == {"w": [1, -4, 2, 1]}
        assert merge(method, delta, density=0.0) == {"w": [0, 0, 0, 0]}


def test_dare_ties_of_the_paper_trims_what_dropping_left():
    given = {"statistics": masks([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]), "density": 0.5, "rescale": "expected"}
    paper = {"ties_density": 0.25, "trim_scope": "model", "inclusive_threshold": True, "merge_func": "mean"}
    one, two = {"w": [1.0, 2.0, 9.0, -3.0]}, {"w": [9.0, 1.0, -2.0, -4.0]}
    # dropped and doubled: 2 4 0 −6 and 0 2 −4 −8; two of four are kept: 0 4 0 −6 and 0 0 −4 −8
    assert merge("dare_ties", one, two, **given, **paper) == {"w": [0, 4, -4, -7]}


def test_della_divides_by_each_entrys_own_probability_when_asked():
    # |τ| ranks 3 0 1 2 of 4; p = 0.3 + 0.4·rank/3
    given = {"statistics": masks([1.0, 1.0, 0.0, 1.0]), "density": 0.5, "epsilon": 0.2}
    delta = {"w": [4.0, -1.0, 2.0, 3.0]}
    assert merge("della", delta, rescale="expected", **given) == {"w": [4 / 0.7, -1 / 0.3, 0, 3 / (0.3 + 0.4 * 2 / 3)]}
    assert merge("della_linear", delta, **given) == {"w": [5, -1.25, 0, 3.75]}  # Σ|τ| is 10, of which 8 are left


def test_della_keeps_large_entries_more_often():
    # density ± epsilon from 1e-9 to 1 − 1e-9: the smallest of each row goes, the largest stays
    delta = {"w": [[1.0, 9.0], [-8.0, 0.5]]}
    kept = merge("della_linear", delta, density=0.5, epsilon=0.5 - 1e-9, rescale=False)
    assert kept == {"w": [0, 9, -8, 0]}


def test_della_ranks_over_the_whole_tensor_when_asked():
    delta = {"w": [[1.0, 9.0], [-8.0, 0.5]]}  # ranks 1 3 2 0; p = 0.2 + 0.6·rank/3
    given = {"statistics": {"mask/model0/w": torch.ones(2, 2)}, "density": 0.5, "epsilon": 0.3, "ranks": "tensor"}
    for method in ("della", "della_linear"):
        assert merge(method, delta, rescale="expected", **given) == {"w": [1 / 0.4, 9 / 0.8, -8 / 0.6, 0.5 / 0.2]}
    # rows of one entry: the smallest of the tensor goes, the largest stays
    kept = merge("della_linear", {"w": [[5.0], [1.0]]}, density=0.5, epsilon=0.5 - 1e-9, rescale=False, ranks="tensor")
    assert kept == {"w": [5, 0]}


def test_della_keeps_by_magnitude_itself_when_asked():
    # between 1 and 5 of their row 2 is a quarter of the way, and p from 0.2 to 0.8; a row of one magnitude has p = density
    delta = {"w": [[1.0, -5.0, 2.0], [3.0, 3.0, -3.0]]}
    given = {"statistics": {"mask/model0/w": torch.ones(2, 3)}, "density": 0.5, "epsilon": 0.3, "ranks": "magnitude"}
    for method in ("della", "della_linear"):
        merged = merge(method, delta, rescale="expected", **given)
        assert merged == {"w": [1 / 0.2, -5 / 0.8, 2 / 0.35, 6, 6, -6]}


def test_della_gives_back_what_the_vote_took_when_asked():
    one, two = (
        {"w": [[3.0, -1.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]]},
        {"w": [[-1.0, -2.0, -1.0, 2.0], [1.0, 1.0, 1.0, 1.0]]},
    )
    plain = {"normalize": False}
    assert merge("della", one, two, **plain) == {"w": [3, -3, -1, 4, 2, 2, 2, 2]}
    # of the second model's four entries in the first row three agree: they count 4/3 of what they are
    third = 4 / 3
    assert merge("della", one, two, adaptive="row", **plain) == {
        "w": [3, -1 - 2 * third, -third, 2 + 2 * third, 2, 2, 2, 2]
    }
    seventh = 8 / 7  # in the tensor seven of eight
    rest = [1 + seventh] * 4
    assert merge("della", one, two, adaptive="tensor", **plain) == {
        "w": [3, -1 - 2 * seventh, -seventh, 2 + 2 * seventh, *rest]
    }


def test_dellas_row_is_one_output_channel_of_a_convolution():
    delta = {"w": [[[[1.0, 3.0]], [[2.0, 4.0]]]]}  # (1, 2, 1, 2): one channel, ranks 0 2 1 3
    given = {"statistics": {"mask/model0/w": torch.ones(1, 2, 1, 2)}, "density": 0.5, "epsilon": 0.3}
    expected = [1 / 0.2, 3 / 0.6, 2 / 0.4, 4 / 0.8]
    assert merge("della_linear", delta, rescale="expected", **given) == {"w": expected}


def test_official_breadcrumbs_works_by_rows_and_leaves_scalars_alone():
    delta = {
        "matrix": [
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, -9.0, 10.0],
            [10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 3.0, 2.0],
        ],
        "vector": [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "scalar": 7.0,
    }
    assert merge("breadcrumbs", delta, keep_top=0.2, remove_top=0.1) == {
        "matrix": [0, 0, 0, 0, 0, 0, 0, 8, -9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 2],
        "vector": [0, 4, 3, 0, 0, 0, 0, 0, 0, 0],
        "scalar": [7],
    }


def test_official_breadcrumbs_drops_of_what_it_kept_when_asked():
    delta = {"w": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, -9.0, 10.0]}
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        rows = {"keep_top": 0.5, "remove_top": 0.2}
        assert merge(method, delta, **rows) == {"w": [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]}
        assert merge(method, delta, **rows, remove_first=False) == {"w": [0, 0, 0, 0, 0, 6, 7, 8, 0, 0]}
        assert merge(method, delta, keep_top=0.1, remove_top=0.2, remove_first=False) == {"w": [0] * 10}
        assert merge(method, delta, remove_top=0.2) == {"w": [1, 2, 3, 4, 5, 6, 7, 8, 0, 0]}


def test_breadcrumbs_keeps_the_density_below_the_outliers():
    delta = {"w": [5.0, -4.0, 3.0, 2.0, 1.0]}
    assert merge("breadcrumbs", delta, density=0.4, gamma=0.2) == {"w": [0, -4, 3, 0, 0]}
    assert merge("breadcrumbs", delta, density=0.8, gamma=0.6) == {"w": [0, -4, 3, 2, 1]}  # gamma yields to density
    assert merge("breadcrumbs_ties", delta, {"w": [-1.0, -2.0, 5.0, 3.0, 1.0]}, density=0.4, gamma=0.2) == {
        "w": [0, -6, 3, 3, 0]
    }


def test_breadcrumbs_leaves_a_small_norm_its_task_vector_unless_compat_says_otherwise():
    delta = {"norm": [float(x) for x in range(1, 17)]}  # int(0.01·16) = 0 outliers
    assert merge("breadcrumbs", delta, density=0.5) == {"norm": [0] * 8 + list(range(9, 17))}
    assert merge("breadcrumbs", delta, density=0.5, weight=1.0, compat="mergekit") == {"norm": [0] * 16}
    assert merge("breadcrumbs", delta, density=1.0, weight=1.0, compat="mergekit") == {"norm": list(range(1, 17))}


# Variances 0, 1, 2.25, 0: of the two that differ, half is one: position 2, where only the second model moved.
S1, S2 = {"w": [1.0, 2.0, 0.0, 0.0]}, {"w": [1.0, 0.0, 3.0, 0.0]}


def test_sce_merges_the_selected_positions_and_fuseai_all_of_them():
    assert merge("sce", S1, S2, select_topk=0.5) == {"w": [0, 0, 3, 0]}
    assert merge("sce", S1, S2, select_topk=0.5, variant="fuseai") == {"w": [1, 0, 3, 0]}
    # all selected: energies 5 and 10, so weights 1/3 and 2/3, of those that have the elected sign
    assert merge("sce", S1, S2, variant="fuseai") == {"w": [1, 2, 3, 0]}
    assert merge("sce", {"w": [3.0, 1.0]}, {"w": [1.0, -3.0]}) == {"w": [2, -3]}


@pytest.mark.parametrize("variant", ["mergekit", "fuseai"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_sce_of_models_that_differ_nowhere_is_that_model_unless_compat_says_otherwise(count, variant):
    one = {"w": [1.0, 1.1640625, 1.3359375, 1.6484375, 0.1, 0.3, -0.7]}  # thirds and fifths of sums that are others
    equal = [one] * count
    assert merge("sce", *equal, select_topk=0.4, variant=variant) == one
    assert merge("sce", *equal, select_topk=0.4, compat="mergekit") == {"w": [0] * 7}


def test_sce_of_models_that_differ_somewhere_selects_only_there():
    models = [{"w": [0.1, 0.7, -0.3, 1.3, x]} for x in (1.0, 2.0, 3.0)]
    assert merge("sce", *models, select_topk=0.99) == {"w": [0] * 5}  # int(0.99 · 1) positions
    found = merge("sce", *models, {"w": [0.1, 0.7, -0.3, 2.0, 4.0]}, select_topk=0.5)["w"]
    assert [x != 0 for x in found] == [False] * 4 + [True]


def test_sce_weighs_small_deltas_by_their_energy_unless_compat_says_otherwise():
    one, two = {"w": [1e-4]}, {"w": [3e-4]}
    assert merge("sce", one, two) == {"w": [2.8e-4]}  # 0.1 and 0.9
    assert merge("sce", one, two, variant="fuseai") == {"w": [2.8e-4]}
    assert merge("sce", one, two, compat="mergekit") == {"w": [2e-4]}


def test_model_stock_stays_between_base_and_average_unless_compat_says_otherwise():
    near = {"w": [1.0, 0.0]}, {"w": [0.6, 0.8]}  # cosine 0.6: t = 1.2 / 1.6
    apart = {"w": [1.0, 0.0]}, {"w": [-0.6, 0.8]}  # cosine −0.6: t = −1.2 / 0.4
    assert merge("model_stock", *near) == {"w": [0.6, 0.3]}
    assert merge("model_stock", *apart) == {"w": [0, 0]}
    assert merge("model_stock", *apart, compat="mergekit") == {"w": [-0.6, -1.2]}


def test_model_stock_takes_exact_cosines_of_short_vectors_unless_compat_says_otherwise():
    short = {"w": [1e-4, 0.0]}, {"w": [0.6e-4, 0.8e-4]}
    assert merge("model_stock", *short) == {"w": [0.6e-4, 0.3e-4]}
    t = 2 * 0.006 / 1.006  # the product of norms 1e-8 counts as 1e-6
    assert merge("model_stock", *short, compat="mergekit") == {"w": [t * 0.8e-4, t * 0.4e-4]}


def test_model_stock_filter_wise_has_one_angle_a_row():
    one, two = {"w": [[1.0, 0.0], [2.0, 0.0]]}, {"w": [[0.6, 0.8], [2.0, 0.0]]}
    assert merge("model_stock", one, two, filter_wise=True) == {"w": [0.6, 0.3, 2, 0]}


def test_a_larger_vocabulary_is_cropped_to_the_common_rows():
    base = {EMBED: torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])}
    larger = {EMBED: torch.tensor([[2.0, 1.0], [2.0, 3.0], [3.0, 3.0], [9.0, 9.0]])}
    smaller = {EMBED: torch.tensor([[1.0, 2.0], [2.0, 2.0]])}
    with pytest.raises(IncompatibleModels, match=r"\(3, 2\) in 'base' and \(4, 2\) in 'model0'"):
        cuvee.merge_tensors("task_arithmetic", [larger], base)
    for settings in ({"embed_mismatch": "common_submatrix"}, {"compat": "mergekit", "weight": 1.0}):
        merged = cuvee.merge_tensors("task_arithmetic", [larger], base, **settings)
        assert merged[EMBED].tolist() == [[2, 1], [2, 3], [3, 3]]
    merged = cuvee.merge_tensors("task_arithmetic", [larger, smaller], base, embed_mismatch="common_submatrix")
    assert merged[EMBED].tolist() == [[2, 2], [2, 3]]


def test_only_embeddings_and_heads_are_cropped():
    base = {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 2)}
    other = {"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 2)}
    with pytest.raises(IncompatibleModels, match=r"up_proj"):
        cuvee.merge_tensors("task_arithmetic", [other], base, embed_mismatch="common_submatrix")


def test_slerp_keeps_to_the_arc_and_takes_the_line_where_it_is_straight():
    def slerp(a, b, t):
        return cuvee.merge_tensors("slerp", [{"w": torch.tensor(a)}, {"w": torch.tensor(b)}], t=t)["w"].tolist()

    half = 0.5**0.5
    assert slerp([1.0, 0.0], [0.0, 1.0], 0.5) == pytest.approx([half, half])
    assert slerp([1.0, 0.0], [2.0, 0.0], 0.5) == [1.5, 0]
    assert slerp([1.0, 0.0], [-1.0, 0.0], 0.25) == [0.5, 0]  # antipodes: mergekit's line, through zero
    assert slerp([0.0, 0.0], [0.0, 4.0], 0.5) == pytest.approx([0, 4 * half])  # zero counts as orthogonal
    assert slerp([1.0, 0.0], [0.0, 1.0], 0.0) == [1, 0]


def test_nuslerp_takes_rows_columns_or_the_whole():
    one = {"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}
    two = {"w": torch.tensor([[0.0, 1.0], [0.0, 4.0]])}
    half = 0.5**0.5

    def nuslerp(**settings):
        return flat(cuvee.merge_tensors("nuslerp", [one, two], weight=[1.0, 1.0], **settings)["w"])

    # rows (1, 0), (0, 1): the arc; rows (0, 2), (0, 4): the line
    assert nuslerp(nuslerp_flatten=False) == pytest.approx([half, half, 0, 3])
    # columns (1, 0), (0, 0): orthogonal; columns (0, 2), (1, 4): cos = 8 / (2 √17)
    cosine = 4 / 17**0.5
    arc = 1 / (2 * (0.5 * (1 + cosine)) ** 0.5)  # sin(θ/2) / sin θ
    assert nuslerp(nuslerp_flatten=False, nuslerp_row_wise=True) == pytest.approx([half, arc, 0, 6 * arc])
    cosine = 8 / (5**0.5 * 17**0.5)
    arc = 1 / (2 * (0.5 * (1 + cosine)) ** 0.5)
    assert nuslerp() == pytest.approx([arc, arc, 0, 6 * arc])


@pytest.mark.parametrize("flatten", [True, False])
def test_nuslerp_of_opposite_task_vectors_takes_the_line_though_their_sums_with_the_base_are_rounded(flatten):
    generator = torch.Generator().manual_seed(0)
    base, delta = (torch.randn(24, 16, generator=generator) * size for size in (0.05, 0.01))
    one, two = base + delta, base - 1.5 * delta
    merged = cuvee.merge_tensors(
        "nuslerp", [{"w": one}, {"w": two}], {"w": base}, weight=[0.7, 0.3], nuslerp_flatten=flatten
    )["w"]
    assert merged.numpy() == pytest.approx((0.7 * one + 0.3 * two).numpy(), abs=1e-7)


def test_nearswap_moves_by_at_most_t():
    assert merge("nearswap", {"w": [0.5, -0.5, 0.01, 0.0]}, t=0.1) == {"w": [0.1, -0.1, 0.01, 0]}


def test_ram_averages_shared_changes_and_takes_unique_ones_in_full():
    one, two = {"w": [1.0, 2.0, 0.0, 1e-6]}, {"w": [3.0, 0.0, 0.0, 5.0]}
    assert merge("ram", one, two) == {"w": [2, 2, 0, 5]}
    # model 0: 1 shared, 1 unique: ρ = 1, clipped at 0.2; the same for model 1
    assert merge("ramplus_tl", one, two, r=1.0, alpha=0.2) == {"w": [2, 2.4, 0, 6]}


def test_karcher_has_the_mean_direction_and_the_mean_norm():
    one, two = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])}
    merged = cuvee.merge_tensors("karcher", [one, two])["w"].tolist()
    assert merged == pytest.approx([3 * 0.5**0.5] * 2)
    assert cuvee.merge_tensors("karcher", [one], two)["w"].tolist() == pytest.approx(merged)  # the base is a member


def test_multislerp_has_the_mean_norm():
    one, two = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])}
    merged = cuvee.merge_tensors("multislerp", [one, two], weight=[3.0, 1.0])["w"].tolist()
    # directions (0.75, 0.25) of length √0.625, norms 0.75·2 + 0.25·4
    assert merged == pytest.approx([2.5 * 0.75 / 0.625**0.5, 2.5 * 0.25 / 0.625**0.5])


def test_passthrough_copies_bits_and_scales_by_filter():
    values = {"a": torch.tensor([1.0, -0.0, 3.0]), "b": torch.tensor([2.0])}
    assert flat(cuvee.merge_tensors("passthrough", [values])["a"].view(torch.int32)) == flat(
        values["a"].view(torch.int32)
    )
    scaled = cuvee.merge_tensors("passthrough", [values], scale=[[{"filter": "b", "value": 0.5}, {"value": 1.0}]])
    assert scaled["b"].tolist() == [1] and scaled["a"].tolist() == [1, 0, 3]


def test_scaling_multiplies_the_merged_delta_of_every_task_vector_method():
    base = {"w": torch.tensor([1.0, 1.0])}
    model = {"w": torch.tensor([3.0, 0.0])}
    assert cuvee.merge_tensors("task_arithmetic", [model], base, scaling=0.5)["w"].tolist() == [2, 0.5]
    assert cuvee.merge_tensors("ties", [model], base, scaling=-1.0)["w"].tolist() == [-1, 2]


def test_weights_that_sum_to_zero_are_refused_where_they_are_normalised():
    model = {"w": torch.ones(2)}
    for method in ("linear", "multislerp"):
        with pytest.raises(cuvee.CuveeError, match=r"sum to (zero|0)"):
            cuvee.merge_tensors(method, [model, model], weight=[1.0, -1.0])
        # also where they do in some tensors only
        weight = [1.0, [{"filter": "w", "value": -1.0}, {"value": 1.0}]]
        with pytest.raises(cuvee.CuveeError, match=r"\[1.0, -1.0\] sum to (zero|0)\n.*tensor 'w'"):
            cuvee.merge_tensors(method, [{**model, "v": model["w"]}] * 2, weight=weight)
