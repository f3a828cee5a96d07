"""The compiled library of CPU kernels: its functions and structures as C declares them, and whether it may be used.

What is declared here and what `_kernels.c` declares must be the same to the byte: the library carries a checksum of both.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import zlib
from pathlib import Path
from typing import Any, cast

__all__ = ["SOURCES", "File", "Rivals", "Row", "Step", "Sum", "is_off", "library"]

SOURCES = ("_kernels.c", "_digests.c", "c_library.py")
"""What a library is built of, in the order of the checksum that setup.py builds in."""

_P, _N, _I, _F, _U, _K = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_float,
    ctypes.c_uint32,
    ctypes.c_uint64,
)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "load": (None, [_P, _N, _P]),
    "count_special": (_N, [_P, _I, _N]),
    "combine": (_N, [_P, _N, _P]),
    "stream": (_N, [_P, _P, _N, _N, _N, _P, _N, _P]),
    "threshold": (None, [_P, _F, _N, _N, _N, _N, _P]),
    "variance": (_I, [_P, _N, _N, _P]),
    "lane_sums": (None, [_P, _N, _I, _N, _N, _P]),
    "count_shared": (_I, [_P, _N, _N, _P]),
    "product_sums": (_I, [_P, _N, _N, _N, _P]),
    "column_products": (_I, [_P, _N, _N, _N, _N, _N, _P]),
    "largest_of_stretches": (_I, [_P, _P, _N, _N, _N, _N, _P]),
    "pcb_count": (_I, [_P, _N, _P, _P, _P]),
    "pcb_balance": (_I, [_P, _N, _P, _P, _P, _P]),
    "count_high": (_I, [_P, _I, _N, _N, _P, _N, _P, _P]),
    "count_low": (None, [_P, _I, _P, _N, _N, _P]),
    "count_equal": (None, [_P, _I, _U, _N, _N, _P]),
    "digest_leaves": (None, [_P, _N, _N, _P]),
    "digests_pay": (_I, []),
    "draws": (None, [_K, _K, _N, _N, _P]),
    "bernoulli": (None, [_K, _K, _N, _N, _U, _P]),
    "keep": (None, [_P, _P, _N, _P]),
    "select": (_I, [_P, _I, _N, _N, _N, _P, _P, _P]),
    "rank_drop": (_I, [_P, _K, _K, _N, _P, _N, _N, _P]),
}


class Step(ctypes.Structure):
    _fields_ = (
        ("what", ctypes.c_int32),
        ("number", _F),
        ("all_before", _N),
        ("few_until", _N),
        ("few", _N),
        ("mask", _P),
        ("factors", _P),
        ("factor_count", _N),
        ("run", _N),
        ("first", _N),
    )


class Row(ctypes.Structure):
    _fields_ = (
        ("source", _P),
        ("base", _P),
        ("steps", ctypes.POINTER(Step)),
        ("kind", ctypes.c_int32),
        ("base_kind", ctypes.c_int32),
        ("count", _N),
    )


class Sum(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.POINTER(Row)),
        ("tasks", ctypes.POINTER(Row)),
        ("weights", _P),
        ("votes", _P),
        ("lambdas", _P),
        ("base", _P),
        ("comparators", _P),
        ("factors", _P),
        ("models", _N),
        ("task_count", _N),
        ("least", _N),
        ("comparator_count", _N),
        ("factor_count", _N),
        ("first", _N),
        ("last", _N),
        ("nearest", _N),
        ("divisor", _F),
        ("floor", _F),
        ("scaling", _F),
        ("normalize", ctypes.c_int32),
        ("rule", ctypes.c_int32),
        ("base_kind", ctypes.c_int32),
        ("kind", ctypes.c_int32),
    )


class Rivals(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.POINTER(Row)),
        ("low", _P),
        ("high", _P),
        ("span", _P),
        ("models", _N),
        ("raw", ctypes.c_int32),
    )


class File(ctypes.Structure):
    _fields_ = (
        ("offset", _N),
        ("digests", _P),
        ("special", _N),
        ("nanoseconds", _N),
        ("fd", ctypes.c_int32),
        ("kind", ctypes.c_int32),
    )


@functools.cache
def library() -> Any:
    """Return the compiled library; None where there is none, or one of other sources than those beside this file."""
    spec = importlib.util.find_spec("cuvee.tensors._kernels")
    if is_off() or spec is None or spec.origin is None:
        return None
    try:
        found = ctypes.CDLL(spec.origin)
        if found.cuvee_sources() % 2**32 != _checksum_of_sources():
            return None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, f"cuvee_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return found


def _checksum_of_sources() -> int:
    checksum = 0
    for name in SOURCES:
        checksum = zlib.crc32(cast(Any, __spec__).loader.get_data(Path(__file__).with_name(name)), checksum)
    return checksum


def is_off() -> bool:
    """True when the user has turned them off."""
    return os.environ.get("CUVEE_KERNELS", "1") == "0"
