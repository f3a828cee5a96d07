"""Methods on matrices: one model's matrix at a time, whatever a method reads of it, and what is no matrix."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from models import LLAMA, family, llama_shapes, read_folder, write_model

import cuvee
from cuvee import KeptDecompositions, merge_tensors
from cuvee.engine import matrices
from cuvee.errors import MethodError, NonFinite, ResourceError
from cuvee.methods import registry
from cuvee.methods.combination import Matrices
from cuvee.methods.measuring import kept, measured
from cuvee.methods.reductions import Sums
from cuvee.methods.registry import MATRIX, Paper, merge_method

SHAPES = llama_shapes(LLAMA)
MATRIX_NAMES = [
    name for name, shape in SHAPES.items() if len(shape) == 2 and "embed" not in name and "head" not in name
]


def write(folder, base, experts):
    """Write a base and its experts; returns their folders, the base's first."""
    return [str(write_model(folder / f"model{n}", one, LLAMA)) for n, one in enumerate([base, *experts])]


@pytest.fixture
def register():
    """Return a function that registers a method for one test."""
    registry.methods()
    before = dict(registry._METHODS)

    def register(function, **options):
        merge_method(paper=Paper("A test"), unit=MATRIX, workspace=lambda m, n, k, _: 16 * m * n, **options)(function)

    yield register
    registry._METHODS.clear()
    registry._METHODS.update(before)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
def test_eight_models_are_never_in_memory_together(method, monkeypatch):
    base, experts = family(8, SHAPES)
    alive, most, load = weakref.WeakSet(), [], matrices._load

    def watched(*given):
        values, non_finite = load(*given)
        gc.collect()
        most.append(len(alive))
        alive.add(values)
        return values, non_finite

    monkeypatch.setattr(matrices, "_load", watched)
    gc.freeze()  # only what the merge makes is looked through, each time
    try:
        merge_tensors(method, experts, base)
    finally:
        gc.unfreeze()
    assert max(most) <= 3  # the base, the sum so far, and the model before


def test_what_a_method_does_not_load_is_digested_all_the_same(register, tmp_path):
    def takes_the_first(deltas: Matrices):
        """Take the first."""
        return deltas[0]

    register(takes_the_first)
    folders = write(tmp_path, *family(3, SHAPES))
    recipe = cuvee.Recipe("takes_the_first", models=folders[1:], base_model=folders[0])
    report = cuvee.merge(recipe, tmp_path / "out")
    want = cuvee.merge(cuvee.Recipe("task_arithmetic", models=folders[1:], base_model=folders[0]), tmp_path / "other")
    digests = [json.loads((one.out / "cuvee.json").read_text())["inputs"] for one in (report, want)]
    assert digests[0] == digests[1]


def test_nan_is_named_in_a_model_that_a_method_does_not_load(register, tmp_path):
    def takes_the_base(deltas: Matrices):
        """Take nothing."""
        return torch.zeros(deltas.shape[1:])

    register(takes_the_base)
    base, experts = family(2, SHAPES)
    experts[1][MATRIX_NAMES[3]][1, 2] = float("nan")
    folders = write(tmp_path, base, experts)
    with pytest.raises(NonFinite, match=MATRIX_NAMES[3]):
        cuvee.merge(cuvee.Recipe("takes_the_base", models=folders[1:], base_model=folders[0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("expert", "bad"), [(0, float("nan")), (1, float("inf"))])
@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "wudi_merging", "drm", "opcm", "star", "doge"])
def test_nan_is_named_before_anything_is_decomposed(method, expert, bad, tmp_path):
    base, experts = family(2, SHAPES)
    experts[expert][MATRIX_NAMES[3]][1, 2] = bad
    folders = write(tmp_path, base, experts)
    with pytest.raises(NonFinite, match=MATRIX_NAMES[3]):
        cuvee.merge(cuvee.Recipe(method, models=folders[1:], base_model=folders[0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nan_that_is_let_through_fills_its_matrix_and_no_other(tmp_path):
    base, experts = family(2, SHAPES)
    experts[1][MATRIX_NAMES[3]][1, 2] = float("nan")
    folders = write(tmp_path, base, experts)
    recipe = cuvee.Recipe("tsv_m", models=folders[1:], base_model=folders[0])
    report = cuvee.merge(recipe, tmp_path / "out", allow_nan=True)
    assert report.non_finite == {MATRIX_NAMES[3]: base[MATRIX_NAMES[3]].numel()}


def test_a_decomposition_that_fails_is_said_in_words(monkeypatch):
    base, experts = family(2, SHAPES)

    def fails(matrix):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(MethodError, match="does not converge") as caught:
        merge_tensors("tsv_m", experts, base)
    assert "not_matrix" in caught.value.right
    assert caught.value.where.startswith("tensor 'model.layers.")


def test_embeddings_and_heads_are_no_matrices_unless_a_recipe_says_so():
    base, experts = family(3, SHAPES)
    plain = merge_tensors("iso_c", experts, base)
    everything = merge_tensors("iso_c", experts, base, not_matrix=[])
    nothing = merge_tensors("iso_c", experts, base, not_matrix=["*"], others="sum")
    head = "lm_head.weight"
    mean = sum(expert[head] for expert in experts) / 3
    torch.testing.assert_close(plain[head], mean)
    assert not torch.allclose(everything[head], mean, atol=1e-3)
    for name in base:
        torch.testing.assert_close(nothing[name], base[name] + sum(expert[name] - base[name] for expert in experts))


def test_yaml_names_what_is_no_matrix(tmp_path):
    folders = write(tmp_path, *family(2, SHAPES))
    recipe = tmp_path / "recipe.yml"
    text = "merge_method: iso_c\nbase_model: {}\nmodels: [{{model: {}}}, {{model: {}}}]\n".format(*folders)
    recipe.write_text(text + "parameters: {not_matrix: ['*.mlp.*', lm_head.weight], others: base}\n")
    cuvee.merge(recipe, tmp_path / "out")
    got, base = read_folder(tmp_path / "out"), read_folder(tmp_path / "model0")
    unchanged = {name for name in base if torch.equal(got[name], base[name])}
    assert unchanged == {n for n, s in SHAPES.items() if ".mlp." in n or n == "lm_head.weight" or len(s) == 1}


def test_a_filter_before_a_matrix_method_is_applied_as_each_model_is_loaded():
    base, experts = family(3, SHAPES)
    before = [{"dare": {"density": 0.5}}, {"trim": {"density": 0.8}}]
    got = merge_tensors("tsv_m", experts, base, before=before, seed=7, not_matrix=[], others="base")
    # each expert by itself: dare draws by the place of a model, which is 0 for all of them here but the first
    first = merge_tensors("task_arithmetic", experts[:1], base, before=before, seed=7)
    again = merge_tensors("tsv_m", [first, *experts[1:]], base, seed=7, not_matrix=[], others="base")
    alone = merge_tensors("tsv_m", experts[:1], base, before=before, seed=7, not_matrix=[], others="base")
    for name in MATRIX_NAMES:
        torch.testing.assert_close(alone[name], first[name])
        assert not torch.equal(got[name], again[name])


def test_a_matrix_that_is_loaded_twice_is_filtered_to_the_same(register):
    def loads_twice(deltas: Matrices):
        """Compare two loads of each."""
        first = [deltas[k] for k in range(len(deltas))]
        assert all(torch.equal(first[k], deltas[k]) for k in reversed(range(len(deltas))))
        return sum(first)

    register(loads_twice)
    base, experts = family(3, SHAPES)
    before = [{"dare": {"density": 0.4}}, {"magprune": {"density": 0.7}}]
    got = merge_tensors("loads_twice", experts, base, before=before, not_matrix=[])
    want = merge_tensors("task_arithmetic", experts, base, before=before)
    for name in MATRIX_NAMES:
        torch.testing.assert_close(got[name], want[name])


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_kept_is_computed_once_and_read_back_in_the_next_round(register, tmp_path, on_disk):
    computed: list[str] = []

    def half_of_the_model(deltas: Matrices):
        """Divide the sum by the norm of all sums."""

        def compute():
            computed.append("")
            return deltas[0] + deltas[1]

        total = kept("sum", compute) if isinstance(deltas, Matrices) else deltas[0] + deltas[1]
        return total / float(measured(Sums("square"), total, scope="model")) ** 0.5

    register(half_of_the_model, others=None)
    base, experts = family(2, SHAPES)
    if on_disk:
        folders = write(tmp_path, base, experts)
        planned = cuvee.plan(cuvee.Recipe("half_of_the_model", models=folders[1:], base_model=folders[0]))
        computed.clear()
        cuvee.run(planned, tmp_path / "out")
        got = read_folder(tmp_path / "out")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out.cuvee-")]
    else:
        got = merge_tensors("half_of_the_model", experts, base)
    assert len(computed) == len(MATRIX_NAMES)
    norm = sum(float((got[name] - base[name]).square().sum()) for name in base)
    assert norm == pytest.approx(1.0, rel=1e-4)


def test_a_sweep_over_coefficients_decomposes_once(monkeypatch):
    base, experts = family(3, SHAPES)
    known, counted, eigh = KeptDecompositions(), [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda *given: (counted.append(1), eigh(*given))[1])
    first = merge_tensors("tsv_m", experts, base, decompositions=known)
    once = len(counted)
    other = merge_tensors("tsv_m", experts, base, decompositions=known, scaling=0.5)
    assert once and len(counted) == once
    plain = merge_tensors("tsv_m", experts, base, scaling=0.5)
    assert all(torch.equal(other[name], plain[name]) for name in plain)
    assert not torch.equal(first[MATRIX_NAMES[0]], other[MATRIX_NAMES[0]])


def test_a_promise_that_a_matrix_breaks_is_refused_with_its_name(tmp_path):
    folders = write(tmp_path, *family(2, {"model.layers.0.mlp.up_proj.weight": (2000, 1500)}))
    recipe = cuvee.Recipe("tsv_m", models=folders[1:], base_model=folders[0])
    with pytest.raises(ResourceError, match="too little") as caught:
        cuvee.plan(recipe, memory=350_000_000)
    assert "up_proj" in caught.value.where
    needed = int(caught.value.right.split()[1].removesuffix("MB")) * 1_000_000
    assert cuvee.plan(recipe, memory=needed).budget.bytes <= needed


def test_patterns_that_match_no_tensor_are_said(tmp_path):
    folders = write(tmp_path, *family(2, SHAPES))
    parameters = {"not_matrix": ["*.mpl.*", MATRIX_NAMES[0]]}
    recipe = cuvee.Recipe(
        "tsv_m",
        models=folders[1:],
        base_model=folders[0],
        parameters=parameters,
        before=[{"star": {"not_matrix": ["nothing"]}}],
    )
    said = [warning for warning in cuvee.plan(recipe).warnings if "matches no tensor" in warning]
    assert said == ["not_matrix: '*.mpl.*' matches no tensor", "star.not_matrix: 'nothing' matches no tensor"]


def test_a_file_where_decompositions_belong_is_refused_before_anything_is_written(tmp_path):
    folders = write(tmp_path, *family(2, SHAPES))
    (tmp_path / "kept").write_text("")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ResourceError, match="decompositions are kept in a folder"):
        recipe = cuvee.Recipe("tsv_m", models=folders[1:], base_model=folders[0])
        cuvee.run(cuvee.plan(recipe, decompositions=tmp_path / "kept"), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("method", ["tsv_m", "dc_merge", "stf"])
def test_more_directions_than_the_share_of_a_model_are_counted(tmp_path, method):
    folders = write(tmp_path, *family(3, {"model.layers.0.mlp.up_proj.weight": (900, 900)}))
    needed = [
        cuvee.plan(
            cuvee.Recipe(method, models=folders[1:], base_model=folders[0], parameters={"rank": rank}), threads=1
        ).budget.bytes
        for rank in ("auto", 300, 900)
    ]
    assert needed[0] == needed[1] < needed[2] - 3 * 4 * 2 * 2 * 900**2
