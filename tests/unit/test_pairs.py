"""Published networks: read as they were written, with surroundings that depend on no frame, and energies that are right."""

import numpy as np
import pytest
import torch

import cuvee
from cuvee.errors import ResourceError
from cuvee.evaluation.ani import MOLECULES, Ani, conformers, environments, network
from cuvee.evaluation.suites import Corruption, suite


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices are small, and the threads of two test processes would wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def _data():
    try:
        network("ani-1x", 0)
    except ResourceError as error:
        pytest.skip(error.found)


@pytest.fixture(scope="module")
def built(_data, tmp_path_factory):
    return suite("pairs-seeds").build(tmp_path_factory.mktemp("home"), quick=True)


def scored(built, tensors):
    return {task: built.score(tensors, task).value for task in built.tasks}


def test_surroundings_do_not_depend_on_where_a_molecule_is_or_how_it_is_turned(_data):
    elements, _ = MOLECULES["methanol"]
    places = conformers("methanol", 2, 0, 0.05)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    there = environments(elements, places @ turn.T + 3.0)
    np.testing.assert_allclose(environments(elements, places), there, atol=1e-5)


def test_surroundings_do_not_depend_on_the_order_of_equal_atoms(_data):
    places = conformers("water", 1, 0, 0.05)
    own, swapped = environments("OHH", places), environments("OHH", places[:, [0, 2, 1]])
    np.testing.assert_allclose(own[:, [0, 2, 1]], swapped, atol=1e-6)


@pytest.mark.parametrize(("molecule", "energy"), [("water", -76.39), ("methane", -40.50), ("carbon dioxide", -188.53)])
def test_energies_are_those_of_quantum_chemistry(_data, molecule, energy):
    free = {"H": -0.60095298, "C": -38.08316124, "N": -54.7077577, "O": -75.19446356}  # hartree, of ANI-1x
    elements, _ = MOLECULES[molecule]
    model = Ani()
    model.load_state_dict(network("ani-1x", 0))
    with torch.inference_mode():
        found = model(elements, torch.from_numpy(environments(elements, conformers(molecule, 1, 0, 0.0)))).item()
    assert found + sum(free[element] for element in elements) == pytest.approx(energy, abs=0.02)


def test_the_fine_tune_is_nearer_to_its_family_and_the_base_to_its_own(built):
    base, expert = scored(built, built.tensors(built.base)), scored(built, built.tensors(built.experts["ccx"]))
    assert expert["ccx"] < base["ccx"] / 4
    assert base["1x"] < expert["1x"] / 4


def test_an_average_with_another_seed_is_no_model(built):
    base = built.tensors(built.base)
    near = cuvee.merge_tensors("linear", [base, built.tensors(built.experts["ccx"])], weight=0.5)
    far = cuvee.merge_tensors("linear", [base, built.tensors(built.experts["ccx-seed1"])], weight=0.5)
    assert scored(built, near)["ccx"] < scored(built, base)["ccx"] < scored(built, far)["ccx"]


def test_heat_makes_members_disagree_more(built):
    tensors = built.tensors(built.experts["ccx"])
    calm, hot = (built.score(tensors, "ccx", corruption=Corruption("heat", severity)).value for severity in (1, 5))
    assert built.score(tensors, "ccx").value < calm < hot
