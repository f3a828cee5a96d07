"""The laws of methods on matrices (subspace family): what rotating and transposing the task vectors must do.

A contract promises them one by one (`turns`, `transposes`); that low rank, repetition and storage noise make no
garbage holds for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from cuvee.methods.registry import MATRIX
from cuvee.testing.contract import Contract, law
from cuvee.testing.specimens import Specimens

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "model.layers.0.mlp.up_proj.weight"
_ROWS, _COLUMNS = 24, 30
_TOLERANCE = 1e-6


def _deltas(contract: Contract, rank: int | None = None, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if rank is None:
        return [0.05 * random(_ROWS, _COLUMNS) for _ in range(contract.count)]
    return [0.05 * random(_ROWS, rank) @ random(rank, _COLUMNS) for _ in range(contract.count)]


def _merged(contract: Contract, deltas: list[Tensor]) -> Tensor:
    """Return the merged task vector of a base of zeros, in float64."""
    base = {_NAME: torch.zeros_like(deltas[0])}
    given = Specimens(base, [{_NAME: one} for one in deltas])
    got = contract.merge(given, contract.with_base[-1], compute_dtype="float64")
    return got[_NAME]


def _compared(contract: Contract, change: Callable[[Tensor], Tensor], what: str) -> Iterator[str]:
    deltas = _deltas(contract)
    want, got = change(_merged(contract, deltas)), _merged(contract, [change(one) for one in deltas])
    error = float((got - want).norm() / want.norm().clamp(min=1e-30))
    if not error < max(_TOLERANCE, contract.tolerance):
        yield f"{what} task vectors do not give the {what} result: off by {error:.2g} of its norm"


def _rotation(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64))[0]


@law
def rotated_task_vectors_give_the_rotated_result(contract: Contract) -> Iterator[str]:
    """Q τ_i give Q times the result, and τ_i R the result times R, on the sides that the contract promises."""
    if "left" in contract.turns:
        left = _rotation(_ROWS)
        yield from _compared(contract, lambda one: left @ one, "left-rotated")
    if "right" in contract.turns:
        right = _rotation(_COLUMNS)
        yield from _compared(contract, lambda one: one @ right, "right-rotated")


@law
def transposed_task_vectors_give_the_transposed_result(contract: Contract) -> Iterator[str]:
    """τ_iᵀ give the result transposed."""
    if contract.transposes:
        yield from _compared(contract, lambda one: one.mT.contiguous(), "transposed")


@law
def low_rank_task_vectors_make_no_garbage(contract: Contract) -> Iterator[str]:
    """Ranks 1 and 3, repeated models and noise of storage give finite results that a little noise hardly moves."""
    if contract.found.unit is not MATRIX:
        return
    for rank in (1, 3):
        deltas = _deltas(contract, rank)
        noise = _deltas(contract, seed=1)
        cases = {"": deltas, "equal ": deltas[:1] * contract.count}
        for said, these in cases.items():
            got = _merged(contract, these)
            if not bool(torch.isfinite(got).all()):
                yield f"{said}task vectors of rank {rank} give NaN or Inf"
            moved = _merged(contract, [one + 1e-6 * other for one, other in zip(these, noise, strict=True)])
            error = float((moved - got).norm() / got.norm().clamp(min=1e-30))
            if contract.stable and not error < 1e-2:
                yield f"{said}task vectors of rank {rank}: noise of 1e-6 moves the result by {error:.2g} of its norm"
