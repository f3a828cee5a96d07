"""Order-preserving bits of floats: exact ranks come from counting 16-bit digits, a block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cuvee.tensors import kernels
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["DIGIT", "digit_counts", "digits_of", "ordered_keys", "value_of_key"]

DIGIT = 16
_SIZE = 1 << DIGIT


def digits_of(dtype: Any) -> int:
    """Return the number of 16-bit digits in a float's key: 2 for float32, 4 for float64."""
    return 4 if dtype == torch.float64 else 2


def ordered_keys(values: Tensor, magnitude: bool) -> NDArray[Any]:
    """Return unsigned whole numbers in the order of `values` (of |values| when `magnitude`).

    Args:
        values: float32 or float64, any shape.

    Returns:
        uint32 or uint64 of the same shape. On any device but the CPU, only the keys travel.
    """
    wide = values.dtype == torch.float64
    if not magnitude:
        values = values + 0.0  # -0.0 is equal to 0.0
    unsigned: Any = np.uint64 if wide else np.uint32
    bits: NDArray[Any] = values.contiguous().view(torch.int64 if wide else torch.int32).cpu().numpy().view(unsigned)
    top = unsigned(1 << (63 if wide else 31))
    if magnitude:
        return bits & ~top
    return np.where(bits & top, ~bits, bits | top)


def value_of_key(key: int, digits: int, magnitude: bool) -> float:
    """Return the float whose ordered key is `key`."""
    unsigned, real, top = (np.uint64, np.float64, 1 << 63) if digits == 4 else (np.uint32, np.float32, 1 << 31)
    if not magnitude:
        key = key ^ top if key & top else ~key & (2 * top - 1)
    return float(np.array([key], unsigned).view(real)[0])


def digit_counts(keys: NDArray[Any], prefixes: Sequence[int | None], digit: int) -> NDArray[np.int64]:
    """Count the values of one digit, among the keys that begin with each prefix.

    Args:
        keys: unsigned, flat.
        prefixes: the higher digits to match; None matches all.
        digit: which digit, 0 the lowest.

    Returns:
        (len(prefixes), 65536) counts.
    """
    if kernels.available() and keys.dtype == np.uint32:
        return _digit_counts_compiled(keys, prefixes, digit)
    counts = np.empty((len(prefixes), _SIZE), np.int64)
    shift = keys.dtype.type(DIGIT * digit)
    for row, prefix in enumerate(prefixes):
        chosen = keys if prefix is None else keys[(keys >> (shift + DIGIT)) == prefix]
        counts[row] = np.bincount(((chosen >> shift) & (_SIZE - 1)).ravel(), minlength=_SIZE)
    return counts


def _digit_counts_compiled(keys: NDArray[np.uint32], prefixes: Sequence[int | None], digit: int) -> NDArray[np.int64]:
    """As `digit_counts`: 1 ns a key instead of 4, see benchmarks/merge_speed.py."""
    counts = np.zeros((len(prefixes), _SIZE), np.int64)
    for row, prefix in enumerate(prefixes):
        if prefix is None:
            kernels.count_digit(keys.ravel(), DIGIT * digit, counts[row])
        else:
            kernels.count_digit_below(keys.ravel(), prefix, counts[row])
    return counts
