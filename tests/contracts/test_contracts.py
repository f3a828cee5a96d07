"""Every registered method keeps every law of the contract kit, and the kit catches those that do not."""

from __future__ import annotations

import importlib

import pytest

from cuvee import merge_tensors
from cuvee.errors import MethodError
from cuvee.methods import registry
from cuvee.methods.registry import edits, methods
from cuvee.testing import LAWS, BrokenContract, Contract, check_method
from cuvee.testing.specimens import LARGE, specimens

ALL = {"density": 1.0}
NORMALIZED = {"normalize": True}

# What a method promises beyond the laws of all: with which parameters equal models give that model, and the order of
# models does not matter (None: it is no such method), and whether scaled task vectors give the scaled result.
CONTRACTS = [
    Contract("linear", scales=True),
    Contract(
        "linear", {"weight": [1.0, 0.3, -0.2], "normalize": False}, equal_models=None, symmetric=None, scales=True
    ),
    Contract("slerp", {"t": 0.3}, symmetric={"t": 0.5}, scales=True),
    Contract("nuslerp", {"weight": [1.0, 0.5]}, symmetric={"weight": 1.0}, scales=True),
    Contract("nuslerp", {"weight": 1.0, "nuslerp_flatten": False}, scales=True),
    Contract("nuslerp", {"weight": 1.0, "nuslerp_flatten": False, "nuslerp_row_wise": True}, scales=True),
    Contract("multislerp", {"weight": 1.0}, scales=True),
    Contract("karcher", scales=True),
    Contract("task_arithmetic", {"weight": 0.4}, equal_models=NORMALIZED, scales=True),
    Contract("ties", {"density": 0.5}, equal_models=ALL, scales=True),
    Contract("ties", {"density": 0.3, "rescale": True, "merge_func": "mean"}, equal_models=ALL, scales=True),
    Contract("ties", {"density": 0.4, "trim_scope": "layer", "merge_func": "max"}, equal_models=ALL, scales=True),
    Contract(
        "ties",
        {
            "density": 0.2,
            "trim_scope": "model",
            "inclusive_threshold": True,
            "tie_sign": "global_majority",
            "merge_func": "mean",
        },
        equal_models=ALL,
        scales=True,
    ),
    Contract("dare_linear", {"density": 0.5}, equal_models={**ALL, **NORMALIZED}, symmetric=ALL, scales=True),
    Contract("dare_ties", {"density": 0.4}, equal_models={**ALL, **NORMALIZED}, symmetric=ALL, scales=True),
    Contract(
        "dare_ties",
        {"density": 0.6, "ties_density": 0.5, "rescale": "expected"},
        equal_models=None,
        symmetric=None,
        scales=True,
    ),
    Contract("della", {"density": 0.5}, equal_models=ALL, symmetric=ALL, scales=True),
    Contract("della", {"density": 0.5, "rescale": "expected"}, equal_models=ALL, symmetric=ALL, scales=True),
    Contract("della", {"density": 0.5, "ranks": "tensor"}, equal_models=ALL, symmetric=ALL, scales=True),
    Contract("della", {"density": 0.5, "ranks": "magnitude"}, equal_models=ALL, symmetric=ALL, scales=True),
    Contract("della", {"density": 0.5, "adaptive": "row"}, equal_models=ALL, symmetric=ALL, scales=True),
    Contract("della", {"density": 0.5, "adaptive": "tensor"}, equal_models=ALL, symmetric=ALL, scales=True),
    Contract("della_linear", {"density": 0.4}, equal_models={**ALL, **NORMALIZED}, symmetric=ALL, scales=True),
    Contract("breadcrumbs", {"density": 0.7, "gamma": 0.1}, equal_models={**ALL, **NORMALIZED}, scales=True),
    Contract("breadcrumbs", {"keep_top": 0.5, "remove_top": 0.1}, equal_models=None, scales=True),
    Contract("breadcrumbs_ties", {"density": 0.7, "gamma": 0.1}, equal_models={**ALL, **NORMALIZED}, scales=True),
    Contract("sce", scales=True),
    Contract("sce", {"select_topk": 0.3}, scales=True),
    Contract("sce", {"select_topk": 0.3, "variant": "fuseai"}, scales=True),
    Contract("model_stock", scales=True),
    Contract("model_stock", {"filter_wise": True}, scales=True),
    Contract("nearswap", {"t": 0.01}, equal_models={"t": 1e9}),
    Contract("arcee_fusion", equal_models=None),  # takes over the outliers only
    Contract("ram", equal_models={"epsilon": 0.0}),
    Contract("ramplus_tl", equal_models={"epsilon": 0.0}),
    Contract("coordinate_median", scales=True),
    Contract("coordinate_median", {"even": "mean"}, scales=True),
    Contract("trimmed_mean", scales=True),
    Contract("trimmed_mean", {"beta": 0.2}, scales=True),
    Contract("mean_around_median", scales=True),
    Contract("phocas", scales=True),
    Contract("magmax", scales=True),
    Contract("multi_krum", {"f": 0}, scales=True),
    Contract("geometric_median", scales=True),
    Contract("geometric_median", {"scope": "layer", "weight": 0.5}, scales=True),
    Contract("centered_clipping", scales=True),
    Contract("centered_clipping", {"start": "mean", "tau": 0.5, "scope": "tensor"}),
    Contract("copa_merging", equal_models=None, scales=True),
    Contract("copa_merging", {"density": 0.5, "clamp_top": 0.5}, equal_models=None, scales=True),
    Contract("recall", symmetric=None, scales=True),
    Contract("recall", {"temperature": 0.05}, symmetric=None, scales=True),
    Contract("flag_aggregator", scales=True),
    Contract("flag_aggregator", {"r": 2, "regularization": 1.0, "scope": "tensor"}, scales=True),
    Contract("flag_aggregator", {"scale": "median_norm"}, scales=True),
    Contract("flag_aggregator", {"init_seed": 1, "iterations": 1, "r": 2}, equal_models=None),
    Contract("consensus_ta", equal_models=None, scales=True),
    Contract("consensus_ties", {"merge_func": "mean"}, equal_models={"ties_density": 1.0, "k": 0}, scales=True),
    Contract("consensus_ties", {"trim_scope": "tensor", "k": 1}, equal_models=None, scales=True),
    Contract("negmerge", equal_models={"scaling": -1.0}, scales=True),
    Contract("pcb_merging", {"ratio": 0.5}, equal_models=None),
    Contract("pcb_merging", {"inter": "normalized_sum", "weight": 0.7}, equal_models=None),
    Contract("cabs", {"n": 4, "m": 16}, equal_models=None, symmetric=None, scales=True),
    Contract("cabs", {"n": 3, "m": 32, "order": [2, 0, 1]}, equal_models=None, symmetric=None, scales=True),
    Contract("cabs", {"sparsifier": "magnitude"}, equal_models=None, symmetric=None, scales=True),
    Contract(
        "ties_sv", {"density": 0.5, "slack": [1.0, 0.0, 0.0]}, equal_models=None, symmetric={"slack": 0.5}, scales=True
    ),
    Contract("ties_sv", equal_models={"slack": 1.0}, scales=True),
    Contract("hi_merging", equal_models=None, scales=True),
    Contract("hi_merging", {"density": 0.5, "alone": [1.0, 0.0]}, equal_models=None, symmetric=None, scales=True),
    Contract("layer_swapping", {"top": 0}, symmetric=None, scales=True),
    Contract("pma", scales=True),
    Contract("pma", {"scheme": "wma"}, symmetric=None, scales=True),
    Contract("pma", {"scheme": "ema", "alpha": 0.1}, symmetric=None, scales=True),
    Contract("metrics_weighted_averaging", {"metric": 2.0}, scales=True),
    Contract("metrics_weighted_averaging", {"metric": 3.0, "kind": "step", "penalty": 2.0}, scales=True),
    Contract("widen", equal_models={"above_average_ratio": 1e9}),
    Contract("widen", {"above_average_ratio": 1.2, "calibration": 0.8}, equal_models=None),
    Contract("ram_plus", equal_models={"epsilon": 0.0}),
    Contract("lwptv", equal_models={"normalize": True, "prune_ratio": 0.0}, scales=True),
    Contract(
        "lwptv",
        {"inner": "ties", "saliency": "cosine", "prune_ratio": 0.5},
        equal_models={"prune_ratio": 0.0},
        scales=True,
    ),
    Contract("lwptv", {"saliency": "norm"}, equal_models=None, scales=True),
    Contract("lines", equal_models=None, scales=True),
    Contract("lines", {"alpha": 0.2, "head": "deep"}, equal_models=None, scales=True),
    Contract(
        "lines",
        {"inner": "ties", "density": 0.5, "trim_scope": "model", "beta": 0.4},
        equal_models={"density": 1.0, "alpha": 1.0, "beta": 0.0},
        scales=True,
    ),
    Contract(
        "opcm",
        equal_models=None,
        symmetric=None,
        tolerance=1e-5,
        wide=1e-4,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract(
        "opcm",
        {"alpha": 0.8, "order": [2, 0, 1], "rank": "full", "conv": "flatten", "not_matrix": ["*.q_proj.*"]},
        equal_models=None,
        symmetric=None,
        tolerance=1e-5,
        wide=1e-3,
        stable=False,
        scales=True,
    ),
    Contract("ortho_merge", equal_models=None, tolerance=1e-5, wide=1e-4, turns=("left", "right")),
    Contract(
        "ortho_merge",
        {"target": "conflict_rows", "residual": "tsv_m", "direction_weight": "uniform", "theta": "median"},
        equal_models=None,
        tolerance=1e-5,
        wide=1e-3,
    ),
    Contract(
        "ortho_merge", {"residual": "ties", "theta": "max", "not_matrix": None}, equal_models=None, tolerance=1e-5
    ),
    Contract("trim", {"density": 0.5}, equal_models=None, scales=True),
    Contract("dare", {"density": 0.5}, equal_models=None, symmetric=None, scales=True),
    Contract("magprune", {"density": 0.5}, equal_models=None, symmetric=None, scales=True),
    Contract(
        "tsv_m",
        equal_models=None,
        tolerance=1e-5,
        wide=1e-3,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract(
        "tsv_m",
        {"rank": 2, "others": "base", "not_matrix": []},
        equal_models=None,
        tolerance=1e-5,
        wide=1e-3,
        scales=True,
    ),
    Contract(
        "iso_c",
        equal_models=None,
        tolerance=1e-5,
        wide=1e-3,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract(
        "iso_c",
        {"rank": "full", "conv": "flatten", "others": "sum"},
        equal_models=None,
        tolerance=1e-5,
        wide=1e-3,
        stable=False,
        scales=True,
    ),
    Contract(
        "wudi_merging",
        equal_models={"filter": "none", "init": "mean"},
        turns=("left", "right"),
        scales=True,
        tolerance=1e-5,
    ),
    Contract(
        "wudi_merging",
        {"filter": "none", "rank_rule": "participation_sqrt", "init": "mean"},
        turns=("left", "right"),
        scales=True,
        tolerance=1e-5,
    ),
    Contract(
        "wudi_merging",
        {"filter": "landweber", "keep_ratio": 0.65, "conv": "flatten", "not_matrix": []},
        equal_models=None,
        turns=("left", "right"),
        scales=True,
        tolerance=1e-5,
    ),
    # Adam moves elements by the sign of gradients: noise of any size moves those whose gradient is zero.
    Contract("wudi_merging", {"time_exponent": 0.5}, equal_models=None, scales=True),
    Contract("wudi_merging", {"solver": "adam", "steps": 20}, equal_models=None, stable=False, wide=1e-4),
    Contract(
        "wudi_merging",
        {"consensus_power": 1.0, "consensus_floor": 0.1, "gamma": 0.98, "ridge": 0.01, "time": 10.0},
        equal_models=None,
        turns=("left", "right"),
        scales=True,
        tolerance=1e-5,
    ),
    Contract("output_filter", {"time": 10.0}, equal_models=None, turns=("left", "right"), scales=True, tolerance=1e-5),
    Contract("bayesian_model_merging", equal_models=None, turns=("left", "right"), scales=True, tolerance=1e-5),
    Contract(
        "bayesian_model_merging",
        {"anchor": "mean", "importance": 0.5, "gram_norm": "delta_frobenius", "prior_precision": 1e-3},
        tolerance=1e-5,
        scales=True,
    ),
    Contract("reforge", equal_models=None, tolerance=1e-5, scales=True),
    Contract(
        "reforge",
        {"inner": "ties", "density": 0.5},
        equal_models={"density": 1.0},
        tolerance=1e-5,
        stable=False,
        scales=True,
    ),
    Contract("optmerge", turns=("left", "right"), scales=True, tolerance=1e-5),
    Contract("optmerge", {"center": True, "rank_ratio": 0.5}, turns=("left", "right"), scales=True, tolerance=1e-5),
    Contract(
        "optmerge", {"solver": "sgd", "steps": 20, "lr": 0.1}, turns=("left", "right"), scales=True, tolerance=1e-5
    ),
    Contract(
        "optmerge",
        {"solver": "adam", "init": "sum", "center": True, "steps": 20},
        equal_models=None,
        stable=False,
        wide=1e-4,
    ),
    Contract("doge", {"steps": 20, "lambda_": 0.2}, equal_models=None, stable=False, wide=1e-4),
    Contract("doge", {"steps": 0, "keep_percent": 100}, equal_models=None, turns=("left", "right"), tolerance=1e-5),
    Contract(
        "star",
        equal_models={"eta": 100.0},
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract("star", {"inner": "ties", "density": 0.5, "known_rank": 4, "eta": 80.0}, equal_models=None, scales=True),
    Contract(
        "singular_value_calibration",
        equal_models={"normalize": True},
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
    ),
    Contract(
        "singular_value_calibration",
        {"inner": "tsv_m", "inner_scaling": 0.6, "alpha": 0.5},
        equal_models=None,
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
    ),
    Contract("scale", {"factor": 0.5}, equal_models={"factor": 1.0, "normalize": True}, scales=True),
    Contract("iso_cts", equal_models=None, tolerance=1e-5, turns=("left", "right"), scales=True),
    Contract(
        "iso_cts",
        {"common_fraction": 0.5, "rank": "full", "not_matrix": []},
        equal_models=None,
        tolerance=1e-5,
        stable=False,
        scales=True,
    ),
    Contract(
        "dc_merge",
        equal_models=None,
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract(
        "dc_merge",
        {"smoothing": "linear", "rank": 2, "keep": 0.3, "conv": "flatten"},
        equal_models=None,
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract("drm", equal_models=None, tolerance=1e-5, turns=("left",), scales=True),
    Contract(
        "drm",
        {"direction": "vertical", "drop": 0.5, "disjoint": False, "other_drop": 0.5, "not_matrix": []},
        equal_models=None,
        tolerance=1e-5,
        turns=("right",),
        scales=True,
    ),
    Contract("r_tsvm", equal_models=None, tolerance=1e-5, scales=True, transposes=True),
    Contract("stf", equal_models=None, tolerance=1e-5, turns=("left", "right"), scales=True, transposes=True),
    Contract("lore_merging", {"iterations": 4}, tolerance=1e-5, turns=("left", "right"), transposes=True),
    Contract(
        "lore_merging",
        {"mu": 0.3, "mu_unit": "relative", "iterations": 3, "scaling": 0.5},
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract("twin_svd", equal_models=None, tolerance=1e-5, turns=("left", "right"), scales=True, transposes=True),
    Contract(
        "twin_svd",
        {"density": 1.0, "weight": 0.2},
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract(
        "low_rank",
        {"density": 0.5},
        equal_models=None,
        tolerance=1e-5,
        turns=("left", "right"),
        scales=True,
        transposes=True,
    ),
    Contract("low_rank", {"inner": "ties", "shrink": 0.01}, equal_models=None),
    Contract("mats", {"iterations": 5}, turns=("left", "right"), scales=True, tolerance=1e-5),
    # An exact solution is as exact as C is conditioned: of equal weights to 1e-11.
    Contract(
        "mats",
        {"iterations": "converged", "offdiag": 1.0, "not_matrix": []},
        equal_models={"iterations": 5},
        turns=("left", "right"),
        scales=True,
        tolerance=1e-5,
    ),
    Contract("mats", {"offdiag": 0.5, "iterations": 8}, scales=True, tolerance=1e-5, wide=1e-4),
    Contract(
        "mats",
        {"objective": "block_fisher", "iterations": 5, "conv": "flatten"},
        turns=("left", "right"),
        scales=True,
        transposes=True,
        tolerance=1e-5,
        wide=1e-4,  # steps towards an ill-conditioned solution multiply what float32 rounds off
    ),
    Contract("passthrough", scales=True),
    Contract("passthrough", {"scale": 0.5}, equal_models={"scale": 1.0}, scales=True),
]


def _label(contract: Contract) -> str:
    said = ",".join(f"{name}={value}" for name, value in contract.parameters.items())
    return f"{contract.method}({said})"


def _cases():
    """Every law of every contract; slow are a method's further variants, and most laws but for a method of each kind.

    Those of blocks and threads are quick for some of `e2e/test_bytes.py` too.
    """
    dear = {"blocks_and_threads_leave_no_trace", "another_process_gives_the_same_bytes", "devices_agree"}
    alike = {
        *("low_precision_is_merged_in_float32_and_rounded_once", "float64_is_merged_in_float64"),
        *("any_value_of_a_parameter_is_taken_or_refused", "degenerate_models_give_finite_values"),
        *("scaled_task_vectors_give_the_scaled_result", "the_order_of_models_does_not_matter"),
        *("the_order_of_tensors_does_not_matter", "inputs_are_left_alone", "scaling_multiplies_the_merged_task_vector"),
    }
    of_each_kind = {"linear", "slerp", "ties", "dare_ties", "della", "widen", "tsv_m", "opcm", "lines"}
    quick = dict.fromkeys(dear, {"ties", "tsv_m"}) | dict.fromkeys(alike, of_each_kind)
    seen = set()
    for contract in CONTRACTS:
        for law in LAWS:
            if law == "any_value_of_a_parameter_is_taken_or_refused" and contract.method in seen:
                continue  # whatever its others are
            is_slow = contract.method in seen or contract.method not in quick.get(law, {contract.method})
            marks = [pytest.mark.slow] if is_slow else []
            yield pytest.param(contract, law, id=f"{_label(contract)}-{law}", marks=marks)
        seen.add(contract.method)


@pytest.mark.parametrize(("contract", "law"), list(_cases()))
def test_a_method_keeps_the_law(contract, law):
    assert list(LAWS[law](contract)) == []


def test_every_registered_method_and_edit_is_under_contract():
    assert {contract.method for contract in CONTRACTS} == {*methods(), *edits()}


def test_what_is_not_scaled_with_the_task_vectors_has_something_of_absolute_size():
    scaled = {contract.method for contract in CONTRACTS if contract.scales}
    assert {contract.method for contract in CONTRACTS} - scaled == {
        "arcee_fusion",  # a softmax of weights
        "doge",  # λ_i takes the size of a task vector out
        "nearswap",  # a step of absolute size, t
        "ortho_merge",  # rotations of the base's weights
        "pcb_merging",  # a tanh of task vectors
        "ram",  # what changed is above epsilon; as in the two below
        "ram_plus",
        "ramplus_tl",
        "widen",  # a softmax of lengths
    }


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("nearswap", {"t": 0.01}), ("pcb_merging", {"ratio": 0.5}), ("widen", {}), ("doge", {"steps": 0})],
)
def test_the_kit_catches_a_method_that_does_not_scale(method, parameters):
    law = LAWS["scaled_task_vectors_give_the_scaled_result"]
    assert list(law(Contract(method, parameters, scales=True)))


@pytest.mark.slow
def test_one_line_checks_every_law():
    check_method("task_arithmetic", equal_models={"normalize": True})


@pytest.fixture
def wrong_methods():
    """Methods that each break a law, registered for one test."""
    before = dict(registry._METHODS)
    module = importlib.import_module("wrong_methods")
    importlib.reload(module)
    yield module
    registry._METHODS.clear()
    registry._METHODS.update(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "laws"),
    [
        ("measures_by_value", {"blocks_and_threads_leave_no_trace"}),
        ("looks_at_its_block", {"blocks_and_threads_leave_no_trace"}),
        ("starts_at_each_block", {"blocks_and_threads_leave_no_trace"}),
        (
            "draws_from_a_global_generator",
            {"blocks_and_threads_leave_no_trace", "another_process_gives_the_same_bytes"},
        ),
        ("hashes_names", {"another_process_gives_the_same_bytes"}),
        ("divides_by_norms", {"unchanged_models_give_the_base", "degenerate_models_give_finite_values"}),
        ("needs_matrices", {"degenerate_models_give_finite_values"}),
        ("forgets_a_model", {"the_order_of_models_does_not_matter"}),
        ("sums_models", {"equal_models_give_that_model"}),
        ("adds_a_constant", {"unchanged_models_give_the_base"}),
        ("rounds_twice", {"float64_is_merged_in_float64"}),
        ("counts_calls", {"the_order_of_tensors_does_not_matter"}),
        ("works_on_the_cpu_alone", {"devices_agree"}),
        ("divides_by_a_parameter", {"any_value_of_a_parameter_is_taken_or_refused"}),
    ],
)
def test_the_kit_catches_a_method_that_breaks_a_law(wrong_methods, method, laws):
    with pytest.raises(BrokenContract) as caught:
        check_method(method)
    missed = [law for law in laws if law not in str(caught.value)]
    assert not missed, str(caught.value)


def test_the_engine_says_when_blocks_measure_different_things(wrong_methods):
    given = specimens(2, LARGE)
    with pytest.raises(MethodError, match="measured different things on different blocks of one tensor") as caught:
        merge_tensors("measures_by_value", given.models[1:], given.base, block_elements=1 << 16)
    assert "tensor 'model.layers." in caught.value.where


@pytest.mark.slow
def test_the_kit_passes_a_right_method_of_a_user(wrong_methods):
    check_method("right")
