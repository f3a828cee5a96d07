"""Order-preserving bits of floats: exact ranks come from counting 16-bit digits, a block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from cuvee.tensors import kernels
from cuvee.tensors.either import as_tensor, number_of
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DIGIT",
    "Keys",
    "count_equal",
    "device_keys",
    "digit_counts",
    "digits_of",
    "equal_in_windows",
    "high_counts",
    "kth_largest",
    "ordered_keys",
    "value_of_key",
]

Keys = Union[NDArray[Any], "Tensor"]
DIGIT = 16
_SIZE = 1 << DIGIT


def digits_of(dtype: Any) -> int:
    """Return the number of 16-bit digits in a float's key: 2 for float32, 4 for float64."""
    return 4 if dtype.itemsize == 8 else 2


def ordered_keys(values: Tensor, magnitude: bool) -> Keys:
    """Return whole numbers whose unsigned order is that of `values` (of |values| when `magnitude`).

    Args:
        values: float32 or float64, any shape.

    Returns:
        uint32 or uint64 of the same shape as a NumPy array; on a GPU int64 on the same device, where float64 keys of
        signed values are bit patterns.
    """
    if isinstance(values, np.ndarray):
        values = as_tensor(values)
    if not magnitude:
        values = values + 0.0  # -0.0 is equal to 0.0
    if values.device.type != "cpu":
        return device_keys(values, magnitude)
    wide = values.dtype == torch.float64
    unsigned: Any = np.uint64 if wide else np.uint32
    bits: NDArray[Any] = values.contiguous().view(torch.int64 if wide else torch.int32).numpy().view(unsigned)
    top = unsigned(1 << (63 if wide else 31))
    if magnitude:
        return bits & ~top
    return np.where(bits & top, ~bits, bits | top)


def device_keys(values: Tensor, magnitude: bool) -> Tensor:
    """As `ordered_keys`, in int64 on the values' device."""
    wide = values.dtype == torch.float64
    bits = values.contiguous().view(torch.int64) if wide else values.contiguous().view(torch.int32).to(torch.int64)
    low = (1 << 63) - 1 if wide else (1 << 31) - 1
    if magnitude:
        return bits & low
    everything = -1 if wide else (1 << 32) - 1
    top = -(1 << 63) if wide else 1 << 31
    return torch.where(bits < 0, ~bits & everything, bits | top)


def count_equal(values: Tensor, magnitude: bool, keys: Sequence[int]) -> NDArray[np.int64]:
    """Return for each key how many values along the last axis have it: (…, n) into (len(keys), …)."""
    if not number_of(values):
        return np.zeros((len(keys), *values.shape[:-1]), np.int64)
    if kernels.serve(values):
        row, leaf = kernels.row_of(values), values.shape[-1]
        return np.array([kernels.count_equal(row, magnitude, key, leaf).reshape(values.shape[:-1]) for key in keys])
    found = ordered_keys(values, magnitude)
    if isinstance(found, np.ndarray):
        return np.array([np.count_nonzero(found == key, axis=-1) for key in keys], np.int64)
    return np.array([(found == _as_int64(key)).sum(-1).cpu().numpy() for key in keys], np.int64)


def kth_largest(values: Any, magnitude: bool, k: int, leaf: int) -> tuple[int, int, NDArray[np.int64]] | None:
    """Find the k-th largest of values that are all here, 1 ≤ k ≤ n: an array, a tensor or a row.

    Returns:
        its key, how many keys are above it, and how many of each leaf of so many elements are equal to it; None where the
        kernel that does it in one pass is not there or was misled by its sample: count digits instead.
    """
    return kernels.select(kernels.row_of(values), magnitude, k, leaf) if kernels.serve(values) else None


def _as_int64(key: int) -> int:
    return key - (1 << 64) if key >> 63 else key


def value_of_key(key: int, digits: int, magnitude: bool) -> float:
    """Return the float whose ordered key is `key`."""
    unsigned, real, top = (np.uint64, np.float64, 1 << 63) if digits == 4 else (np.uint32, np.float32, 1 << 31)
    if not magnitude:
        key = key ^ top if key & top else ~key & (2 * top - 1)
    return float(np.array([key], unsigned).view(real)[0])


def high_counts(values: Any, magnitude: bool, digits: int) -> NDArray[np.int64]:
    """Count the values by the highest digit of their ordered keys, all of them and those whose other digits are 0.

    The latter are the least with that digit, and the most: differences of bf16 numbers have few bits.

    Args:
        values: float32 or float64, or a row.
        magnitude: order |x| instead of x; the keys have one bit less.
        digits: of the keys.

    Returns:
        (2, 65536), or (2, 32768) of magnitudes.
    """
    if kernels.serve(values):
        return kernels.count_high(kernels.row_of(values), magnitude, max(1, number_of(values)), ())[0]
    keys, shift = ordered_keys(values, magnitude), DIGIT * (digits - 1)
    chosen = (keys, keys[keys & ((1 << shift) - 1) == 0])
    return np.stack([_count(some, None, digits - 1)[: _SIZE >> magnitude] for some in chosen])


def equal_in_windows(windows: NDArray[np.int32], key: int) -> NDArray[np.int64] | None:
    """Return how many keys of each leaf are `key`, of float32 values; None where `kernels.count_high` has not looked."""
    if key & (_SIZE - 1):
        return None
    offsets = (key >> DIGIT) - windows[0, :, 0]
    looked = np.flatnonzero((offsets >= 0) & (offsets < kernels.WINDOW))
    return windows[:, looked[0], 1 + offsets[looked[0]]].astype(np.int64) if looked.size else None


def digit_counts(values: Tensor, magnitude: bool, prefixes: Sequence[int], digit: int) -> NDArray[np.int64]:
    """Count the values of one digit of the ordered keys, not the highest, among those that begin with each prefix.

    Args:
        values: float32 or float64, or a row.
        magnitude: order |x| instead of x.
        prefixes: the higher digits to match.
        digit: which digit, 0 the lowest.

    Returns:
        (len(prefixes), 65536) counts.
    """
    counts = np.zeros((len(prefixes), _SIZE), np.int64)
    if kernels.serve(values):
        kernels.count_low(kernels.row_of(values), magnitude, prefixes, counts)
        return counts
    keys = ordered_keys(values, magnitude)
    for row, prefix in enumerate(prefixes):
        counts[row] = _count(keys, prefix, digit)
    return counts


def _count(keys: Keys, prefix: int | None, digit: int) -> NDArray[np.int64]:
    """Count one digit of the keys that begin with a prefix; None: of all."""
    if not isinstance(keys, np.ndarray):
        return _count_on_device(keys, prefix, digit)
    shift = keys.dtype.type(DIGIT * digit)
    chosen = keys if prefix is None else keys[(keys >> (shift + DIGIT)) == prefix]
    return np.bincount(((chosen >> shift) & (_SIZE - 1)).ravel().astype(np.int64), minlength=_SIZE)


def _count_on_device(keys: Tensor, prefix: int | None, digit: int) -> NDArray[np.int64]:
    shift = DIGIT * digit
    flat = keys.reshape(-1)
    if prefix is not None:
        # An arithmetic shift repeats the top bit: compare the digits that are there.
        higher = (flat >> (shift + DIGIT)) & ((1 << (64 - shift - DIGIT)) - 1)
        flat = flat[higher == prefix]
    return torch.bincount((flat >> shift) & (_SIZE - 1), minlength=_SIZE).cpu().numpy()
