"""CPU kernels in C (`_kernels.c`), compiled when Cuvée is installed.

Each stands behind one piece, whose definition in PyTorch or NumPy it equals bit for bit (tests/differential); it is there
because `make bench-merge` shows that it pays. `CUVEE_KERNELS=0` turns them off. They release the GIL.

What a piece calls takes NumPy arrays or tensors and returns what it was given. Values are float32 and contiguous
(`serve` tells) unless said otherwise; a "leaf" is a run of that many elements.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float32]
    T = TypeVar("T", NDArray[Any], Tensor)

__all__ = [
    "KINDS",
    "available",
    "bernoulli",
    "combine",
    "consensus",
    "count_equal",
    "count_high",
    "count_low",
    "decode",
    "draws",
    "encode",
    "is_off",
    "keep",
    "magnitude_sums",
    "product_sums",
    "rank_drop",
    "select",
    "serve",
    "stored_products",
    "threshold",
    "variance",
    "weighted_sum",
]

KINDS = {"F32": 0, "BF16": 1, "F16": 2}
"""The storage types that `decode` and `encode` know, by safetensors' names."""

_P, _N, _I, _F, _U, _K = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_float,
    ctypes.c_uint32,
    ctypes.c_uint64,
)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "decode": (_N, [_P, _I, _P, _N, _P]),
    "encode": (_N, [_P, _P, _F, _I, _N, _P]),
    "weighted_sum": (None, [_P, _N, _P, _N, _F, _N, _P]),
    "combine": (_N, [_P, _P, _N, _I, _P, _F, _F, _I, _N, _P, _P]),
    "threshold": (None, [_P, _F, _N, _N, _N, _N, _P]),
    "consensus": (None, [_P, _N, _P, _P, _N, _I, _F, _N, _P]),
    "variance": (None, [_P, _N, _N, _N, _P]),
    "magnitude_sums": (None, [_P, _N, _N, _P]),
    "product_sums": (None, [_P, _N, _N, _N, _N, _P]),
    "stored_products": (_I, [_P, _P, _N, _I, _N, _N, _P, _P]),
    "count_high": (_I, [_P, _I, _N, _P]),
    "count_low": (None, [_P, _I, _U, _N, _P]),
    "count_equal": (None, [_P, _I, _U, _N, _N, _P]),
    "draws": (None, [_K, _K, _N, _N, _P]),
    "bernoulli": (None, [_K, _K, _N, _N, _U, _P]),
    "keep": (None, [_P, _P, _N, _P]),
    "select": (_I, [_P, _I, _N, _N, _P, _P]),
    "rank_drop": (_I, [_P, _P, _P, _P, _N, _N, _P]),
}


@functools.cache
def _library() -> Any:
    """Return the compiled library; None where there is none, or one of another version."""
    spec = importlib.util.find_spec("cuvee.tensors._kernels")
    if is_off() or spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, f"cuvee_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library


def is_off() -> bool:
    """True when the user has turned them off."""
    return os.environ.get("CUVEE_KERNELS", "1") == "0"


def available() -> bool:
    """True when the kernels were compiled and are not turned off."""
    return _library() is not None


def serve(values: Any) -> bool:
    """True when kernels can work on an array or a tensor: float32, on the CPU, contiguous."""
    if isinstance(values, np.ndarray):
        return available() and values.dtype == np.float32 and values.flags.c_contiguous
    return (
        available() and values.device.type == "cpu" and str(values.dtype) == "torch.float32" and values.is_contiguous()
    )


def _flat(values: Any, *, models: bool = False) -> Floats:
    """Return an array or a tensor as an array without a copy: (n,), or (K, n) for `models`."""
    found = values if isinstance(values, np.ndarray) else values.numpy()
    return found.reshape(len(found), -1) if models else found.reshape(-1)


def _like(values: Any, out: Floats) -> Any:
    """Return a result as what `values` is, an array or a tensor."""
    if isinstance(values, np.ndarray):
        return out
    import torch

    return torch.from_numpy(out)


def _memory(code: int) -> int:
    if code < 0:
        raise MemoryError
    return code


def _at(values: NDArray[Any] | None) -> int | None:
    return None if values is None else values.__array_interface__["data"][0]


def _empty(values: Any) -> Floats:
    """Return an uninitialised result of K models: (…) for (K, …)."""
    return np.empty(tuple(values.shape[1:]), np.float32)


def _rows(values: Floats) -> tuple[int, int, int]:
    """Return (K, n, elements from row to row) of a (K, n) array."""
    return len(values), values.shape[1], values.strides[0] // 4


def decode(source: NDArray[Any], kind: str, base: Floats | None, out: Floats) -> int:
    """`out = float32(source) − base`; returns how many of `source` are NaN or infinite.

    Args:
        source: (n,) raw elements of `kind`, any dtype of that size.
        kind: one of `KINDS`.
        base: (n,) or None.
        out: (n,).
    """
    return int(_library().cuvee_decode(_at(source), KINDS[kind], _at(base), out.size, _at(out)))


def encode(values: Floats, base: Floats | None, scaling: float, kind: str, out: NDArray[Any]) -> int:
    """`out = round(base + values · scaling)`, or `round(values)`; returns how many of `out` are NaN or infinite.

    Args:
        values: (n,).
        base: (n,) or None.
        kind: one of `KINDS`.
        out: (n,) raw elements of `kind`.
    """
    return int(_library().cuvee_encode(_at(values), _at(base), scaling, KINDS[kind], values.size, _at(out)))


def weighted_sum(values: T, weights: Sequence[float], divisor: float) -> T:
    """`pieces.combine.weighted_sum`: (K, …) into (…)."""
    rows, weight, out = _flat(values, models=True), np.array(weights, np.float32), _empty(values)
    models, size, stride = _rows(rows)
    _library().cuvee_weighted_sum(_at(rows), stride, _at(weight), models, divisor, size, _at(out))
    return _like(values, out)


def combine(
    sources: Sequence[NDArray[Any]],
    kinds: Sequence[str],
    *,
    with_base: bool,
    weights: Sequence[float],
    divisor: float,
    scaling: float,
    out: NDArray[Any],
    kind: str,
) -> tuple[int, list[int]]:
    """`decode`, `weighted_sum` and `encode` in one pass over raw elements, the base first where there is one.

    Returns:
        how many of `out`, and how many of each source, are NaN or infinite.
    """
    models, size = len(weights), out.nbytes // (4 if kind == "F32" else 2)
    places, codes, special = _sources(sources, kinds)
    weight = np.array(weights, np.float32)
    made = _library().cuvee_combine(
        _at(places),
        _at(codes),
        models,
        with_base,
        _at(weight),
        divisor,
        scaling,
        KINDS[kind],
        size,
        _at(out),
        _at(special),
    )
    return int(made), special.tolist()


def stored_products(
    sources: Sequence[NDArray[Any]], kinds: Sequence[str], *, with_base: bool, leaf: int
) -> tuple[NDArray[np.float64], list[int]]:
    """`decode` and `product_sums` in one pass over raw elements, the base first where there is one.

    Returns:
        (leaves, K, K), and how many of each source are NaN or infinite.
    """
    models, size = len(sources) - with_base, sources[0].nbytes // (4 if kinds[0] == "F32" else 2)
    places, codes, special = _sources(sources, kinds)
    out = np.empty((-(-size // leaf), models, models))
    _memory(
        _library().cuvee_stored_products(_at(places), _at(codes), models, with_base, size, leaf, _at(out), _at(special))
    )
    return out, special.tolist()


def _sources(
    sources: Sequence[NDArray[Any]], kinds: Sequence[str]
) -> tuple[NDArray[np.uintp], NDArray[np.int32], NDArray[np.int64]]:
    places = np.array([_at(source) for source in sources], np.uintp)
    return places, np.array([KINDS[kind] for kind in kinds], np.int32), np.zeros(len(sources), np.int64)


def threshold(values: T, limit: float, all_before: int, few_until: int, few: int, out: T | None = None) -> T:
    """`pieces.trim.keep_among`: the values whose magnitude is above the limit, the others zero; (…) into (…).

    Of those equal to the limit, all before `all_before` are kept and the first `few` of those before `few_until`.
    """
    flat, result = _flat(values), _like(values, np.empty(tuple(values.shape), np.float32)) if out is None else out
    _library().cuvee_threshold(_at(flat), limit, all_before, few_until, few, flat.size, _at(_flat(result)))
    return result


def consensus(deltas: T, votes: Sequence[float], weights: Sequence[float], *, normalize: bool, floor: float) -> T:
    """`pieces.vote.weigh_consensus`: (K, …) into (…)."""
    rows, vote, weight = _flat(deltas, models=True), np.array(votes, np.float32), np.array(weights, np.float32)
    models, size, stride = _rows(rows)
    out = _empty(deltas)
    _library().cuvee_consensus(_at(rows), stride, _at(vote), _at(weight), models, normalize, floor, size, _at(out))
    return _like(deltas, out)


def variance(deltas: T) -> T:
    """`papers.sce.variance`: (K, …) into (…)."""
    rows, out = _flat(deltas, models=True), _empty(deltas)
    models, size, stride = _rows(rows)
    _library().cuvee_variance(_at(rows), stride, models, size, _at(out))
    return _like(deltas, out)


def magnitude_sums(values: Floats, leaf: int) -> NDArray[np.float64]:
    """`tensors.sums.magnitude_sum` of each leaf: (n,) into (leaves,); leaf ≥ 1."""
    out = np.empty(-(-values.size // leaf))
    _library().cuvee_magnitude_sums(_at(values), values.size, leaf, _at(out))
    return out


def product_sums(values: Floats, leaf: int) -> NDArray[np.float64]:
    """`tensors.sums.product_sums` of each leaf: (K, n) into (leaves, K, K)."""
    models, size, stride = _rows(values)
    out = np.empty((-(-size // leaf), models, models))
    _library().cuvee_product_sums(_at(values), stride, models, size, leaf, _at(out))
    return out


def count_high(bits: NDArray[np.uint32], magnitude: bool, counts: NDArray[np.int64]) -> None:
    """Add the counts of the keys' high digits to `counts` (65536,)."""
    _memory(_library().cuvee_count_high(_at(bits), magnitude, bits.size, _at(counts)))


def select(bits: NDArray[np.uint32], magnitude: bool, k: int) -> tuple[int, int] | None:
    """Return the k-th largest key, 1 ≤ k ≤ n, and how many keys are above it; None where its sample misled it."""
    key, above = np.empty(1, np.uint32), np.empty(1, np.int64)
    found = _memory(_library().cuvee_select(_at(bits), magnitude, bits.size, k, _at(key), _at(above)))
    return (int(key[0]), int(above[0])) if found else None


def count_low(bits: NDArray[np.uint32], magnitude: bool, high: int, counts: NDArray[np.int64]) -> None:
    """Add the counts of the low digits of the keys whose high digit is `high` to `counts` (65536,)."""
    _library().cuvee_count_low(_at(bits), magnitude, high, bits.size, _at(counts))


def count_equal(bits: NDArray[np.uint32], magnitude: bool, key: int, leaf: int) -> NDArray[np.int64]:
    """Return how many keys of each leaf are `key`."""
    out = np.empty(-(-bits.size // leaf), np.int64)
    _library().cuvee_count_equal(_at(bits), magnitude, key, bits.size, leaf, _at(out))
    return out


def draws(key: tuple[int, int], start: int, stop: int) -> NDArray[np.uint32]:
    """`tensors.draws.drawn_words`."""
    out = np.empty(stop - start, np.uint32)
    _library().cuvee_draws(*key, start, out.size, _at(out))
    return out


def bernoulli(key: tuple[int, int], start: int, stop: int, limit: int) -> NDArray[np.bool_]:
    """Return for the elements `[start, stop)` whether their draw is below `limit`."""
    out = np.empty(stop - start, np.bool_)
    _library().cuvee_bernoulli(*key, start, out.size, limit, _at(out))
    return out


def keep(mask: T, values: T, out: T | None = None) -> T:
    """`tensors.masking.keep_where`: (…) bool and (…) into (…)."""
    flat, result = _flat(values), _like(values, np.empty(tuple(values.shape), np.float32)) if out is None else out
    _library().cuvee_keep(_at(_flat(mask)), _at(flat), flat.size, _at(_flat(result)))
    return result


def rank_drop(keys: NDArray[np.uint32], drawn: NDArray[np.uint32], limits: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """`pieces.drop`: whether `drawn[r, j] < limits[rank of keys[r, j] in its row]`, for keys above zero.

    Args:
        keys: (rows, length) magnitudes' keys; entries that are zero are not kept, which changes nothing.
        drawn: (rows, length).
        limits: (length,) not falling.
    """
    ordered, out = np.sort(keys, axis=-1), np.empty(keys.shape, np.bool_)
    _memory(_library().cuvee_rank_drop(_at(keys), _at(ordered), _at(drawn), _at(limits), *keys.shape, _at(out)))
    return out
