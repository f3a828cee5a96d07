"""Methods on singular directions: what their papers promise of special cases (subspace family)."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.errors import CuveeError
from cuvee.methods.spectral import svd

NAME = "model.layers.0.mlp.up_proj.weight"
BIAS = "model.layers.0.mlp.up_proj.bias"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merged(method: str, deltas: list[torch.Tensor], **settings) -> torch.Tensor:
    """Return the merged task vector of a matrix, in float64."""
    settings.setdefault("compute_dtype", "float64")
    base = {NAME: torch.zeros_like(deltas[0])}
    return cuvee.merge_tensors(method, [{NAME: one} for one in deltas], base, **settings)[NAME]


def weights_merged(deltas: list[torch.Tensor], **settings) -> torch.Tensor:
    found = cuvee.merge_tensors("lore_merging", [{NAME: one} for one in deltas], compute_dtype="float64", **settings)
    return found[NAME]


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return float((got - want).norm()) <= tolerance * float(want.norm())


def spectrum(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrix)


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def orthogonal_tasks(count: int, rank: int, m: int = 24, n: int = 30) -> list[torch.Tensor]:
    """Return task vectors that share neither inputs nor outputs."""
    left, right = torch.linalg.qr(random(m, m, seed=7))[0], torch.linalg.qr(random(n, n, seed=8))[0]
    parts = [slice(k * rank, (k + 1) * rank) for k in range(count)]
    return [left[:, one] @ torch.diag(random(rank, seed=k).abs() + 1) @ right[:, one].mT for k, one in enumerate(parts)]


TASKS = [random(24, 30, seed=k) for k in range(3)]


# --- star ---


def test_star_keeps_the_fewest_directions_and_the_nuclear_norm():
    got = merged("star", TASKS[:1], eta=40.0)
    before, after = spectrum(TASKS[0]), spectrum(got)
    kept = int((after > 1e-9).sum())
    assert before[:kept].sum() >= 0.4 * before.sum() > before[: kept - 1].sum()
    assert after.sum() == pytest.approx(float(before.sum()), rel=1e-9)
    assert close(got, truncated(TASKS[0], kept) * float(before.sum() / before[:kept].sum()))


def test_star_keeps_one_direction_at_least_and_everything_at_100():
    assert int((spectrum(merged("star", TASKS[:1], eta=0.0)) > 1e-9).sum()) == 1
    assert close(merged("star", TASKS, eta=100.0), sum(TASKS) / 3, 1e-12)


def test_star_counts_a_known_rank_only():
    lora = random(24, 3) @ random(3, 30, seed=1)
    noisy = lora + 1e-2 * random(24, 30, seed=2)
    assert close(merged("star", [noisy], known_rank=3, eta=100.0), truncated(noisy, 3))


def test_star_weighs_models_and_averages_what_is_no_matrix():
    models = [{NAME: one, BIAS: torch.full((24,), float(k))} for k, one in enumerate(TASKS)]
    base = {NAME: torch.zeros(24, 30, dtype=torch.float64), BIAS: torch.zeros(24)}
    got = cuvee.merge_tensors("star", models, base, weight=[1.0, 0.0, 3.0], eta=100.0)
    assert close(got[NAME], (TASKS[0] + 3 * TASKS[2]) / 4)
    assert torch.allclose(got[BIAS], torch.full((24,), 1.5))


def test_star_goes_before_other_methods():
    before = [{"star": {"eta": 60.0}}]
    by_hand = [merged("star", [one], eta=60.0) for one in TASKS]
    assert close(merged("tsv_m", TASKS, before=before), merged("tsv_m", by_hand))
    assert close(merged("ties", TASKS, before=before, density=0.5), merged("ties", by_hand, density=0.5))


# --- singular value calibration ---


def test_calibration_takes_back_what_was_added_over_and_over():
    same = TASKS[:1] * 3
    assert close(merged("singular_value_calibration", same), TASKS[0])
    assert close(merged("singular_value_calibration", TASKS[:1]), TASKS[0], 1e-12)


@pytest.mark.parametrize("shape", [(24, 30), (30, 24)])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_calibration_is_the_papers_formula(shape, alpha):
    tasks = [random(*shape, seed=k) for k in range(3)]
    total = 0.7 * sum(tasks)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    new = []
    for j in range(len(s)):
        own = s[j] * vh[j]
        counts = [max(alpha, float(own @ (u[:, j] @ one) / (u[:, j] @ one).square().sum())) for one in tasks]
        new.append(float(s[j]) * len(tasks) / sum(counts))
    want = (u * torch.tensor(new, dtype=torch.float64)) @ vh
    assert close(merged("singular_value_calibration", tasks, alpha=alpha, inner_scaling=0.7), want, 1e-9)


def test_a_model_that_has_not_changed_only_counts_as_alpha():
    zero = torch.zeros_like(TASKS[0])
    got = merged("singular_value_calibration", [2 * TASKS[0], zero], weight=[1.0, 1.0], alpha=0.5)
    assert close(got, 2 * TASKS[0] * (2 / 1.5))


def test_inner_scaling_is_a_scale_before_the_edit_and_scaling_comes_after_it():
    scaled = [{"scale": {"factor": 0.3}}, {"singular_value_calibration": {}}]
    got = merged("singular_value_calibration", TASKS, inner_scaling=0.3, scaling=2.0)
    assert torch.equal(got, merged("task_arithmetic", TASKS, after=scaled, scaling=2.0))
    with pytest.raises(CuveeError, match="factor is 'much'"):
        merged("singular_value_calibration", TASKS, inner_scaling="much")


# --- iso_cts ---


def test_iso_cts_with_all_in_common_is_iso_c():
    assert close(merged("iso_cts", TASKS, common_fraction=1.0), merged("iso_c", TASKS))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
def test_all_directions_of_iso_cts_are_equally_strong(fraction):
    s = spectrum(merged("iso_cts", TASKS, common_fraction=fraction))
    assert torch.allclose(s, s[0].expand_as(s), rtol=1e-9)


def test_iso_cts_shares_out_the_rank_that_there_is():
    lora = [random(24, 2, seed=k) @ random(2, 30, seed=9 + k) for k in range(3)]
    s = spectrum(merged("iso_cts", lora))
    assert int((s > 1e-9).sum()) == 6
    assert torch.allclose(s[:6], s[0].expand(6), rtol=1e-9)


# --- dc_merge ---


def test_dc_merge_of_one_model_is_that_model():
    assert close(merged("dc_merge", TASKS[:1], keep=1.0), TASKS[0])
    assert close(merged("dc_merge", TASKS[:1], keep=1.0, rank=5), truncated(TASKS[0], 5))


def test_smoothing_keeps_the_sum_of_singular_values():
    for smoothing, ratio in (("avg", 1.0), ("linear", 1.5)):
        s = spectrum(merged("dc_merge", TASKS[:1], keep=1.0, rank=5, smoothing=smoothing, rho=1.5))[:5]
        assert s.sum() == pytest.approx(float(spectrum(TASKS[0])[:5].sum()))
        top = min(ratio, float(spectrum(TASKS[0])[0] / spectrum(TASKS[0])[4]))
        assert float(s[0] / s[4]) == pytest.approx(top)


def test_dc_merge_adds_up_tasks_that_share_nothing():
    tasks = orthogonal_tasks(3, 4)
    assert close(merged("dc_merge", tasks, keep=1.0), sum(tasks))
    assert close(merged("dc_merge", tasks, keep=1.0, rank=4), sum(tasks))


def test_dc_merge_of_equal_models_does_not_hang_on_rounding():
    one = merged("dc_merge", TASKS[:1] * 3, keep=0.05, rank=4)
    moved = [task + 1e-9 * random(24, 30, seed=50 + k) for k, task in enumerate(TASKS[:1] * 3)]
    assert close(merged("dc_merge", moved, keep=0.05, rank=4), one, 1e-6)


# --- drm ---


def test_drm_across_and_down_are_one_another_transposed():
    down = merged("drm", TASKS, direction="vertical", drop=0.6)
    across = merged("drm", [one.mT.contiguous() for one in TASKS], direction="horizontal", drop=0.6)
    assert close(down.mT, across, 1e-12)


def test_drm_of_equal_models_without_much_dropping_is_that_model():
    weak = truncated(TASKS[0], 3) + 1e-3 * random(24, 30, seed=5)
    assert close(merged("drm", [weak] * 3, drop=1e-9), truncated(weak, 3), 1e-3)
    assert close(merged("drm", TASKS, drop=0.0), sum(TASKS) / 3, 1e-12)


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_a_model_that_has_not_changed_takes_no_part_in_drm(direction):
    with_zero = merged("drm", [*TASKS[:2], torch.zeros_like(TASKS[0])], direction=direction, drop=0.4)
    assert close(with_zero, merged("drm", TASKS[:2], direction=direction, drop=0.4), 1e-12)


def test_what_is_no_matrix_is_trimmed_over_the_model_and_voted_on():
    names = ["a.bias", "b.bias"]
    base = {name: torch.zeros(4) for name in names}
    one = {"a.bias": torch.tensor([1.0, -2.0, 3.0, 0.5]), "b.bias": torch.tensor([0.1, 0.2, 0.3, 4.0])}
    two = {"a.bias": torch.tensor([3.0, 1.0, -1.0, 0.5]), "b.bias": torch.tensor([0.1, 0.2, 5.0, -6.0])}
    got = cuvee.merge_tensors("drm", [one, two], base)
    assert got["a.bias"].tolist() == [2.0, -2.0, 3.0, 0.5]
    assert got["b.bias"].tolist() == pytest.approx([0.1, 0.2, 2.65, -6.0])
    got = cuvee.merge_tensors("drm", [one, two], base, other_drop=0.75)  # three of eight: one more than the share
    assert got["a.bias"].tolist() == [3.0, -2.0, 3.0, 0.0]
    assert got["b.bias"].tolist() == [0.0, 0.0, 5.0, -6.0]
    got = cuvee.merge_tensors("drm", [one, two], base, sign_election=False, disjoint=False, weight=[1.0, 2.0])
    assert got["a.bias"].tolist() == [3.5, 0.0, 0.5, 0.75]


# --- r_tsvm ---


def test_r_tsvm_of_models_that_are_alike_in_size_is_tsv_m():
    signs = [torch.sign(one) * TASKS[0].abs() for one in TASKS]
    assert close(merged("r_tsvm", signs), merged("tsv_m", signs), 1e-9)


def test_r_tsvm_gives_rank_to_dense_models_and_weight_to_heavy_tails():
    sparse = TASKS[1] * (random(24, 30, seed=4).abs() > 1.6)  # about a tenth of the entries
    tasks = [part.to(torch.float64) for part in (TASKS[0], sparse)]
    got = merged("r_tsvm", tasks, outlier=0.0)
    u, _, vh = torch.linalg.svd(TASKS[0], full_matrices=False)
    density = float((sparse != 0).sum()) / sparse.numel()
    first = round(24 / (1 + density))
    scores = [float((one.abs() * (one.abs() > one.abs().mean())).sum()) for one in tasks]
    share = 2 * scores[0] / sum(scores)
    assert first > 18
    # Along its own directions the dense model comes back nearly as strong as its share, whatever the other adds.
    strengths = torch.einsum("mj,mn,jn->j", u, got, vh)[:4] / spectrum(TASKS[0])[:4]
    assert torch.allclose(strengths, torch.full((4,), share, dtype=torch.float64), atol=0.25)


# --- stf ---


def test_stf_answers_the_directions_of_every_model():
    got = merged("stf", TASKS, rank=5)
    for task in TASKS:
        found = svd(task, 5)
        answers = torch.einsum("mj,mn,jn->j", found.u, got, found.vh)
        assert torch.allclose(answers, found.s, rtol=1e-3)


def test_stf_adds_up_tasks_that_share_nothing_and_keeps_equal_ones():
    tasks = orthogonal_tasks(3, 4)
    assert close(merged("stf", tasks), sum(tasks), 1e-5)
    assert close(merged("stf", tasks[:1] * 3), tasks[0], 1e-5)
    assert close(merged("stf", TASKS[:1]), TASKS[0], 1e-12)
    assert close(merged("stf", TASKS[:1], rank=24), TASKS[0], 1e-5)


def test_stf_of_task_vectors_that_contradict_each_other_is_nothing():
    task, base = TASKS[0].float(), random(24, 30, seed=9).float()
    got = cuvee.merge_tensors("stf", [{NAME: base + task}, {NAME: base - task}], {NAME: base})[NAME] - base
    assert float(got.norm()) < 1e-4 * float(task.norm())


# --- lore_merging ---


def test_lore_keeps_equal_models_and_averages_when_told_so_for_long():
    for mu in (0.0, 0.5, 1e3):
        assert close(weights_merged(TASKS[:1] * 3, mu=mu), TASKS[0], 1e-9)
    average = sum(TASKS) / 3
    far, near = (weights_merged(TASKS, mu=2.0, weight=1 / 3, iterations=n) for n in (1, 40))
    assert close(near, average, 1e-3) and not close(far, average, 1e-2)


def test_lore_finds_the_base_under_low_rank_changes():
    base = random(24, 30, seed=11)
    tasks = [0.5 * random(24, 1, seed=k) @ random(1, 30, seed=20 + k) for k in range(6)]
    shared = weights_merged([base + task for task in tasks], mu=0.1, scaling=0.0, iterations=60)
    mean = base + sum(tasks) / 6
    assert float((shared - base).norm()) < 0.3 * float((mean - base).norm())


def test_lore_lowers_its_objective_with_every_turn():
    mu, values = 1.0, []
    for turns in (1, 2, 4, 8):
        shared = weights_merged(TASKS, mu=mu, scaling=0.0, iterations=turns)
        parts = [
            weights_merged(TASKS, mu=mu, weight=[float(k == i) for k in range(3)], iterations=turns) - shared
            for i in range(3)
        ]
        misfit = sum(float((shared + part - task).square().sum()) for part, task in zip(parts, TASKS, strict=True))
        values.append(misfit + 2 * mu * sum(float(spectrum(part).sum()) for part in parts))
    assert values == sorted(values, reverse=True)


def test_lore_stands_in_front_of_other_methods_as_their_base():
    low = [{"low_rank": {"shrink": 0.4}}]
    models = [{NAME: one} for one in TASKS]
    shared = {NAME: weights_merged(TASKS, mu=0.4, scaling=0.0)}
    summed = cuvee.merge_tensors("task_arithmetic", models, shared, before=low, compute_dtype="float64")[NAME]
    assert close(summed, weights_merged(TASKS, mu=0.4), 1e-12)
    parts = [
        cuvee.merge_tensors("task_arithmetic", [one], shared, before=low, compute_dtype="float64")[NAME] - shared[NAME]
        for one in models
    ]
    got = cuvee.merge_tensors("tsv_m", models, shared, before=low, compute_dtype="float64")[NAME]
    assert close(got - shared[NAME], merged("tsv_m", parts), 1e-6)


def test_lore_relative_to_the_changes_does_not_depend_on_their_size():
    one = weights_merged(TASKS, mu=0.2, mu_unit="relative", iterations=3)
    assert close(weights_merged([1e-3 * task for task in TASKS], mu=0.2, mu_unit="relative", iterations=3), 1e-3 * one)


# --- all of them ---

WITH_BASE = ["star", "singular_value_calibration", "iso_cts", "dc_merge", "drm", "r_tsvm", "stf"]


@pytest.mark.parametrize("method", WITH_BASE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_come_out_as_wide_ones_do(method, dtype):
    base = {NAME: random(24, 30, seed=30).to(dtype), BIAS: random(24, seed=31).to(dtype)}
    models = [
        {NAME: (base[NAME].double() + 0.1 * task).to(dtype), BIAS: base[BIAS] + 0.25} for task in [*TASKS, 0 * TASKS[0]]
    ]
    got = cuvee.merge_tensors(method, models, base)
    wide = cuvee.merge_tensors(
        method, [{n: t.float() for n, t in m.items()} for m in models], {n: t.float() for n, t in base.items()}
    )
    assert all(got[name].dtype == dtype and torch.equal(got[name], wide[name].to(dtype)) for name in base)


@pytest.mark.parametrize("method", [*WITH_BASE, "lore_merging"])
def test_more_models_than_directions_give_finite_values(method):
    names = [{NAME: random(3, 8, seed=k).float()} for k in range(5)]
    base = None if method == "lore_merging" else {NAME: torch.zeros(3, 8)}
    got = cuvee.merge_tensors(method, names, base)[NAME]
    assert bool(torch.isfinite(got).all()) and float(got.abs().max()) < 1e3


HEADS = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
GPT2 = {
    "wte.weight": (20, 8),
    "wpe.weight": (16, 8),
    "h.0.ln_1.weight": (8,),
    "h.0.ln_2.weight": (8,),
    "h.0.attn.c_attn.bias": (24,),
    "h.0.attn.c_proj.weight": (8, 8),
    "h.0.mlp.c_fc.weight": (8, 32),
    "h.0.mlp.c_proj.weight": (32, 8),
}
FUSED = {
    "stacked": ({"model_type": "phi3", "num_key_value_heads": 1}, "transformer.h.0.self_attn.qkv_proj.weight", {}),
    "by heads": ({"model_type": "gpt_neox"}, "transformer.h.0.attention.query_key_value.weight", {}),
    "in columns": ({"model_type": "gpt2", "n_head": 2, "n_embd": 8, "n_layer": 1}, "h.0.attn.c_attn.weight", GPT2),
}
PARTS = {
    "stacked": (range(8), range(8, 12), range(12, 16)),  # two heads of queries and one of keys and values, 4 wide
    "by heads": ([*range(4), *range(12, 16)], [*range(4, 8), *range(16, 20)], [*range(8, 12), *range(20, 24)]),
    "in columns": (range(8), range(8, 16), range(16, 24)),
}


@pytest.mark.parametrize("kind", FUSED)
def test_drm_merges_the_parts_of_a_fused_matrix_each_by_itself(kind):
    config, name, others = FUSED[kind]
    across = kind != "in columns"
    outputs = sum(map(len, PARTS[kind]))
    deltas = [random(outputs, 8, seed=seed) for seed in range(3)]

    def model(delta):
        zeros = {other: torch.zeros(shape, dtype=torch.float64) for other, shape in others.items()}
        return {**zeros, name: delta if across else delta.mT.contiguous()}

    def whole(split):
        settings = {"drop": 0.5, "compute_dtype": "float64", "context": {**HEADS, **config}, "split_fused": split}
        found = cuvee.merge_tensors("drm", [model(one) for one in deltas], model(0 * deltas[0]), **settings)[name]
        return found if across else found.mT

    got = whole(True)
    for rows in map(list, PARTS[kind]):
        assert close(got[rows], merged("drm", [one[rows] for one in deltas], drop=0.5), 1e-10)
    assert not close(whole(False), got, 1e-3)


def test_drm_merges_a_matrix_that_is_not_fused_whole():
    assert torch.equal(merged("drm", TASKS, split_fused=True), merged("drm", TASKS))
