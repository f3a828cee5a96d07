"""ANI (arXiv 1610.08935): the energy of a molecule as a sum over its atoms, each a small network of what surrounds it.

The published networks of ANI-1x and of ANI-1ccx, which was fine-tuned from it member by member, come out of an old torchani.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from cuvee.evaluation.packages import Package, members

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ELEMENTS", "MEMBERS", "MOLECULES", "SIZES", "TORCHANI", "Ani", "conformers", "environments", "network"]

TORCHANI = Package(
    "pypi",
    "torchani",
    "1.2",
    "7bc9a0847cce136f7bdc92c2416321a8d6c9c28542d842387c3fa3854f502d88",
    "MIT",
    "the eight networks of ANI-1x and of ANI-1ccx",
)
ELEMENTS = "HCNO"
MEMBERS = 8
SIZES = {
    "H": (384, 160, 128, 96, 1),
    "C": (384, 144, 112, 96, 1),
    "N": (384, 128, 112, 96, 1),
    "O": (384, 128, 112, 96, 1),
}
_FOLDER = "torchani/resources/"
_PAIRS = {pair: place for place, pair in enumerate(combinations_with_replacement(ELEMENTS, 2))}


class Ani(nn.Module):
    """One member: a network an element; layers 0 to 3, with CELU of 0.1 between them."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(
            {
                element: nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
                for element, sizes in SIZES.items()
            }
        )

    def forward(self, elements: str, surroundings: Tensor) -> Tensor:
        """Return (n,) energies in hartree, without those of free atoms, of n conformers with (n, atoms, 384) surroundings."""
        total = surroundings.new_zeros(len(surroundings))
        for place, element in enumerate(elements):
            hidden = surroundings[:, place]
            layers = list(self.networks[element].children())
            for layer in layers[:-1]:
                hidden = nn.functional.celu(layer(hidden), alpha=0.1)
            total = total + layers[-1](hidden)[:, 0]
        return total


def network(family: str, member: int) -> dict[str, Tensor]:
    """Return the tensors of a member of "ani-1x" or "ani-1ccx", under the names of `Ani`."""
    folder = f"{_FOLDER}{family}_8x/train{member}/networks/"
    files = _files(family)
    tensors = {}
    for element, sizes in SIZES.items():
        for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:], strict=False)):
            for kind, ending, shape in (("weight", "wparam", (outputs, inputs)), ("bias", "bparam", (outputs,))):
                data = files[f"{folder}ANN-{element}.nnf-l{layer + 1}.{ending}"]
                values = np.frombuffer(data, "<f4").reshape(shape)
                tensors[f"networks.{element}.{layer}.{kind}"] = torch.from_numpy(values.copy())
    return tensors


@cache
def _files(family: str) -> Mapping[str, bytes]:
    return members(TORCHANI, [f"{_FOLDER}{family}_8x/train{member}/networks/" for member in range(MEMBERS)])


# --- Surroundings of atoms ------------------------------------------------------------------------------------------


@cache
def _parameters() -> Mapping[str, NDArray[np.float64]]:
    path = f"{_FOLDER}ani-1x_8x/rHCNO-5.2R_16-3.5A_a4-8.params"
    found = re.findall(r"^(\w+) = (\[?[\d.,e+-]+\]?)$", members(TORCHANI, [path])[path].decode(), re.MULTILINE)
    return {name: np.atleast_1d(np.array(json.loads(value), np.float64)) for name, value in found}


def environments(elements: str, positions: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return what surrounds each atom: 16 radial terms for each element, then 32 angular ones for each pair of elements.

    Args:
        elements: of the atoms.
        positions: (n, atoms, 3) of n conformers, in ångström.

    Returns:
        (n, atoms, 384). Equations 3 and 4 of the paper, with torchani's factors 1/4 and 2 and its 0.95 inside the arc cosine.
    """
    given = _parameters()
    between = positions[:, None, :, :] - positions[:, :, None, :]  # from i to j
    far = np.linalg.norm(between, axis=-1)
    out = np.zeros((*positions.shape[:2], 16 * len(ELEMENTS) + 32 * len(_PAIRS)))
    angular = out[:, :, 16 * len(ELEMENTS) :]
    for i in range(len(elements)):
        others = [j for j in range(len(elements)) if j != i]
        for j in others:
            start = 16 * ELEMENTS.index(elements[j])
            bumps = np.exp(-given["EtaR"] * (far[:, i, j, None] - given["ShfR"]) ** 2)
            out[:, i, start : start + 16] += 0.25 * bumps * _fading(far[:, i, j], given["Rcr"])
        for j, k in combinations(others, 2):
            one, other = far[:, i, j], far[:, i, k]
            cosine = (between[:, i, j] * between[:, i, k]).sum(-1) / (one * other)
            turned = np.cos(np.arccos(0.95 * cosine)[:, None] - given["ShfZ"])
            narrow = 2 * ((1 + turned) / 2) ** given["Zeta"]
            near = np.exp(-given["EtaA"] * (((one + other) / 2)[:, None] - given["ShfA"]) ** 2)
            faded = _fading(one, given["Rca"]) * _fading(other, given["Rca"])
            pair = _PAIRS[tuple(sorted((elements[j], elements[k]), key=ELEMENTS.index))]  # type: ignore[index]
            terms = (near[:, :, None] * narrow[:, None, :]).reshape(len(positions), -1)
            angular[:, i, 32 * pair : 32 * pair + 32] += terms * faded
    return out.astype(np.float32)


def _fading(distance: NDArray[np.float64], cutoff: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = 0.5 * np.cos(np.pi * distance / cutoff) + 0.5
    return np.where(distance <= cutoff, inside, 0.0)[:, None]


# --- Molecules ------------------------------------------------------------------------------------------------------

_T = 0.629
_E = [(1.019 * np.cos(a), 1.019 * np.sin(a)) for a in np.deg2rad([0, 120, 240, 60, 180, 300])]
MOLECULES: Mapping[str, tuple[str, Sequence[Sequence[float]]]] = {
    "water": ("OHH", [(0, 0, 0.1173), (0, 0.7572, -0.4692), (0, -0.7572, -0.4692)]),
    "methane": ("CHHHH", [(0, 0, 0), (_T, _T, _T), (_T, -_T, -_T), (-_T, _T, -_T), (-_T, -_T, _T)]),
    "ammonia": ("NHHH", [(0, 0, 0.116), (0, 0.939, -0.271), (0.813, -0.47, -0.271), (-0.813, -0.47, -0.271)]),
    "hydrogen cyanide": ("CNH", [(0, 0, 0), (0, 0, 1.156), (0, 0, -1.066)]),
    "carbon dioxide": ("COO", [(0, 0, 0), (0, 0, 1.16), (0, 0, -1.16)]),
    "nitrogen": ("NN", [(0, 0, 0.549), (0, 0, -0.549)]),
    "formaldehyde": ("COHH", [(0, 0, -0.529), (0, 0, 0.676), (0, 0.934, -1.112), (0, -0.934, -1.112)]),
    "acetylene": ("CCHH", [(0, 0, 0.601), (0, 0, -0.601), (0, 0, 1.664), (0, 0, -1.664)]),
    "ethylene": (
        "CCHHHH",
        [(0, 0, 0.667), (0, 0, -0.667), *((0, y, z) for z in (1.238, -1.238) for y in (0.923, -0.923))],
    ),
    "ethane": (
        "CCHHHHHH",
        [(0, 0, 0.766), (0, 0, -0.766), *((x, y, 1.158) for x, y in _E[:3]), *((x, y, -1.158) for x, y in _E[3:])],
    ),
    "methanol": (
        "COHHHH",
        [
            (-0.047, 0.664, 0), (-0.047, -0.758, 0), (-1.093, 0.97, 0), (0.878, -1.046, 0), (0.437, 1.071, 0.889),
            (0.437, 1.071, -0.889),
        ],
    ),
}  # fmt: skip
"""Atoms and their places at rest, in ångström."""


def conformers(molecule: str, count: int, seed: int, spread: float) -> NDArray[np.float64]:
    """Return (count, atoms, 3) positions: those at rest, each moved by normal noise.

    Args:
        molecule: its name.
        count: of conformers.
        seed: of the noise.
        spread: its standard deviation, in ångström.
    """
    _, rest = MOLECULES[molecule]
    generator = np.random.default_rng((seed, sorted(MOLECULES).index(molecule)))
    return np.array(rest) + spread * generator.standard_normal((count, len(rest), 3))
