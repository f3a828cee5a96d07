"""Pursuit and interpolation: coefficients equal least squares on their support."""

from __future__ import annotations

import pytest
import torch

from cuvee.testing.stand_in_device import stand_in_device
from cuvee.tokenizers.pursuit import orthogonal_pursuit
from cuvee.tokenizers.transplant import Approximation, nearest_weights

GENERATOR = torch.Generator().manual_seed(3)
ATOMS, TARGETS = torch.randn(40, 12, generator=GENERATOR), torch.randn(7, 12, generator=GENERATOR)


def fitted(target, atoms):
    return torch.linalg.lstsq(atoms.T.double(), target[:, None].double(), driver="gelsd").solution[:, 0].float()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_coefficients_are_least_squares_on_the_chosen_atoms(k):
    indices, coefficients = orthogonal_pursuit(TARGETS, ATOMS, k)
    for target, chosen, found in zip(TARGETS, indices, coefficients, strict=True):
        assert len(set(chosen.tolist())) == k
        assert torch.allclose(found, fitted(target, ATOMS[chosen]), atol=1e-5)


def test_each_atom_is_the_one_most_along_the_residual():
    indices, _ = orthogonal_pursuit(TARGETS, ATOMS, 4)
    for target, chosen in zip(TARGETS, indices, strict=True):
        residual = target.clone()
        for step, number in enumerate(chosen):
            scores = (ATOMS @ residual).abs()
            scores[chosen[:step]] = -1
            assert int(scores.argmax()) == int(number)
            support = ATOMS[chosen[: step + 1]]
            residual = target - fitted(target, support) @ support


def test_equal_and_zero_atoms_do_no_harm():
    atoms = torch.cat((ATOMS[:3], ATOMS[:3], torch.zeros(2, 12)))
    indices, coefficients = orthogonal_pursuit(TARGETS, atoms, 8)
    assert torch.isfinite(coefficients).all()
    made = torch.einsum("bk,bkd->bd", coefficients, atoms[indices])
    best = torch.stack([fitted(target, ATOMS[:3]) @ ATOMS[:3] for target in TARGETS])
    assert torch.allclose(made, best, atol=1e-5)
    assert not orthogonal_pursuit(torch.zeros(2, 12), ATOMS, 3)[1].any()


def test_more_atoms_than_there_are_take_all():
    assert orthogonal_pursuit(TARGETS, ATOMS[:5], 64)[0].shape == (7, 5)


def test_the_nearest_are_weighted_by_distance_or_cosine():
    indices, weights = nearest_weights(TARGETS, ATOMS, Approximation(k=3))
    distances = torch.cdist(TARGETS, ATOMS)
    assert torch.equal(indices, distances.topk(3, largest=False).indices)
    inverse = 1 / distances.gather(1, indices)
    assert torch.allclose(weights, inverse / inverse.sum(1, keepdim=True))
    assert torch.allclose(
        nearest_weights(ATOMS[:1], ATOMS, Approximation(k=2))[1], torch.tensor([[1.0, 0.0]]), atol=1e-5
    )
    indices, weights = nearest_weights(TARGETS, ATOMS, Approximation(k=2, cosine_similarity=True))
    cosines = torch.nn.functional.cosine_similarity(TARGETS[:, None], ATOMS[indices], dim=2)
    assert torch.allclose(weights, cosines / cosines.sum(1, keepdim=True), atol=1e-5)


def test_barycentric_weights_sum_to_one_and_fit_best():
    how = Approximation(k=4, weight_scheme="barycentric")
    indices, weights = nearest_weights(TARGETS, ATOMS, how)
    assert torch.allclose(weights.sum(1), torch.ones(7), atol=1e-5)
    error = (torch.einsum("bk,bkd->bd", weights, ATOMS[indices]) - TARGETS).norm(dim=1)
    shift = weights + 1e-2 * torch.tensor([1.0, -1.0, 0.0, 0.0])
    assert ((torch.einsum("bk,bkd->bd", shift, ATOMS[indices]) - TARGETS).norm(dim=1) > error).all()


def test_least_squares_weights_are_free():
    indices, weights = nearest_weights(TARGETS, ATOMS, Approximation(k=4, weight_scheme="least_squares"))
    for target, chosen, found in zip(TARGETS, indices, weights, strict=True):
        assert torch.allclose(found, fitted(target, ATOMS[chosen]), atol=1e-5)


@pytest.mark.parametrize("scheme", ["omp", "distance_proportional", "barycentric", "least_squares"])
def test_coefficients_are_chosen_on_another_device_too(scheme):
    targets, atoms = torch.randn(20, 16), torch.randn(60, 16)

    def chosen(targets, atoms):
        if scheme == "omp":
            return orthogonal_pursuit(targets, atoms, 4)
        return nearest_weights(targets, atoms, Approximation("common_interpolation", k=4, weight_scheme=scheme))

    with stand_in_device() as device:
        there = [found.cpu() for found in chosen(targets.to(device), atoms.to(device))]
    for found, expected in zip(there, chosen(targets, atoms), strict=True):
        assert torch.allclose(found, expected)
