"""Hand-written CPU kernels, compiled by numba where it is installed (`pip install cuvee[kernels]`).

Each stands behind one piece, whose definition in PyTorch or NumPy it equals bit for bit (tests/differential); it is there
because `make bench-merge` shows that it pays. `CUVEE_KERNELS=0` turns them off. Compiled code is cached on disk.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["available", "consensus_kernel", "count_digit", "count_digit_below"]

_CHUNK = 512


@functools.cache
def available() -> bool:
    """True when kernels can be compiled."""
    return os.environ.get("CUVEE_KERNELS", "1") != "0" and importlib.util.find_spec("numba") is not None


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call: importing numba takes 0.2 s."""

    @functools.cache
    def compile_once() -> Callable[..., Any]:
        import numba

        return numba.njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return compile_once()(*args)

    return call


@_compiled
def count_digit(keys: NDArray[np.uint32], shift: int, counts: NDArray[np.int64]) -> None:
    """Add the counts of `(key >> shift) & 0xffff` to `counts` (65536,)."""
    for i in range(keys.size):
        counts[(keys[i] >> shift) & 0xFFFF] += 1


@_compiled
def count_digit_below(keys: NDArray[np.uint32], prefix: int, counts: NDArray[np.int64]) -> None:
    """Add the counts of the low digit of the keys whose high digit is `prefix`."""
    for i in range(keys.size):
        key = keys[i]
        if key >> 16 == prefix:
            counts[key & 0xFFFF] += 1


@_compiled
def consensus_kernel(
    deltas: NDArray[np.float32], weights: NDArray[np.float32], normalize: bool, out: NDArray[np.float32]
) -> None:
    """`pieces.vote.sign_consensus` with a balanced vote counting as plus: (K, n) float32 into (n,)."""
    models, size = deltas.shape
    signs = np.empty(_CHUNK, np.float32)
    merged = np.empty(_CHUNK, np.float32)
    divisor = np.empty(_CHUNK, np.float32)
    zero, one = np.float32(0.0), np.float32(1.0)
    for begin in range(0, size, _CHUNK):
        end = min(begin + _CHUNK, size)
        signs[:] = zero
        for k in range(models):
            delta, w = deltas[k, begin:end], weights[k]
            for i in range(delta.size):
                signs[i] += delta[i] * w
        for i in range(_CHUNK):
            signs[i] = one if signs[i] >= zero else -one
        merged[:] = zero
        divisor[:] = zero
        for k in range(models):
            delta, w = deltas[k, begin:end], weights[k]
            for i in range(delta.size):
                value = delta[i] * w
                agrees = value * signs[i] > zero
                merged[i] += value if agrees else zero
                divisor[i] += w if agrees else zero
        target = out[begin:end]
        if normalize:
            for i in range(target.size):
                target[i] = merged[i] / (one if divisor[i] == zero else divisor[i])
        else:
            for i in range(target.size):
                target[i] = merged[i]
