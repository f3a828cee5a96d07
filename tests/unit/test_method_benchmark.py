"""What `make bench-methods` runs: the recipes come from the registry, so a new method is in the table at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cuvee.methods.registry import MATRIX, edits, methods
from cuvee.recipes import Recipe, RecipeModel, prepare

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """Import the scripts of the benchmark, which stand beside each other."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import decompositions
        import method_recipes
        import synthetic
    finally:
        sys.path.remove(str(BENCHMARKS))
    folders = [Path(name) for name in ("base", "one", "two", "three", "four")]
    return decompositions, method_recipes, synthetic.Models(folders[0], tuple(folders[1:]))


def test_every_method_and_edit_has_a_row_whose_recipe_is_sound(bench):
    _, recipes, models = bench
    rows = recipes.cases()
    assert {*methods(), *edits()} == {one.method for one in rows.values()}
    for case in rows.values():
        made = recipes.recipe_of(case, models)
        given = [RecipeModel(one["model"], one.get("parameters", {})) for one in made.pop("models")]
        prepared = prepare(Recipe(**made, models=given))
        steps = [step.name for step, _ in (*prepared.before, *prepared.after)]
        merged_by = case.settings.get("inner", "task_arithmetic") if case.method in edits() else case.method
        assert prepared.method.name == merged_by and not prepared.warnings, case.name
        assert steps == [case.method] * (case.method in edits()), case.name


def test_every_method_and_edit_on_matrices_has_its_unavoidable_work(bench):
    decompositions, method_recipes, _ = bench
    rows = {case.name: case.step or case.merged_by for case in method_recipes.cases().values()}
    on_matrices = {name for name, one in rows.items() if one.unit is MATRIX}
    assert on_matrices == decompositions.WORK.keys(), "add its decompositions to benchmarks/decompositions.py"


def test_the_work_of_known_methods_is_counted_by_hand(bench):
    decompositions, _, _ = bench
    gram, eigh = ("gram", 4, 6, 4), ("eigh", 4, 0, 0)
    assert decompositions.WORK["iso_c"](4, 6, 2) == {gram: 1, eigh: 1, ("gemm", 6, 4, 4): 1, ("gemm", 4, 4, 4): 1}
    found = decompositions.WORK["tsv_m"](4, 6, 2)
    # Two models with two triplets each, a polar factor of (4, 4) and one of (6, 4), and the product of both.
    assert found["gram", 4, 6, 4] == 3 and found["gram", 4, 4, 4] == 1 and found["eigh", 4, 0, 0] == 4
    assert found["gemm", 6, 4, 2] == 2 and found["gemm", 4, 4, 6] == 1
    # The filter of outputs after WUDI: two Gram matrices on either side, and an eigh of each.
    found = decompositions.WORK["output_filter"](4, 6, 2)
    assert (
        found["gram", 6, 4, 6] == found["gram", 4, 6, 4] == 2 and found["eigh", 6, 0, 0] == found["eigh", 4, 0, 0] == 1
    )
    assert found["gemm", 4, 6, 6] == 5 and found["gemm", 4, 4, 6] == 2


def test_embeddings_are_counted_where_a_method_takes_them_for_matrices(bench):
    decompositions, _, _ = bench
    layers = {(4, 4): 8, (6, 4): 4, (4, 6): 2}
    assert +decompositions.matrices("iso_c", 4, 6, 2, 9) == layers
    assert decompositions.matrices("singular_value_calibration", 4, 6, 2, 9) == {**layers, (9, 4): 2}
