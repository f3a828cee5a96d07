"""Element types: their names in safetensors files, their sizes, their torch twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.errors import CheckpointError, RecipeError, nearest

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "DType", "dtype_of_torch", "parse_dtype", "torch_dtype"]


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: as written in a safetensors header.
        rank: place in the order in which safetensors lays tensors out (wide types first).
        bits: of one element.
        torch: the attribute of `torch` with the same bytes, empty where there is none.
        kind: "float", "integer", "complex", or "scaled" (means nothing without its scales).
    """

    name: str
    rank: int
    bits: int
    torch: str
    kind: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element; sub-byte types say 0."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        """True for types whose values are plain numbers that can be merged."""
        return self.kind == "float"


_ROWS = (
    ("U64", 64, "uint64", "integer"),
    ("I64", 64, "int64", "integer"),
    ("F64", 64, "float64", "float"),
    ("C64", 64, "complex64", "complex"),
    ("F32", 32, "float32", "float"),
    ("U32", 32, "uint32", "integer"),
    ("I32", 32, "int32", "integer"),
    ("BF16", 16, "bfloat16", "float"),
    ("F16", 16, "float16", "float"),
    ("U16", 16, "uint16", "integer"),
    ("I16", 16, "int16", "integer"),
    ("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "scaled"),
    ("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "scaled"),
    ("F8_E8M0", 8, "float8_e8m0fnu", "scaled"),
    ("F8_E4M3", 8, "float8_e4m3fn", "scaled"),
    ("F8_E5M2", 8, "float8_e5m2", "scaled"),
    ("I8", 8, "int8", "integer"),
    ("U8", 8, "uint8", "integer"),
    ("F6_E3M2", 6, "", "scaled"),
    ("F6_E2M3", 6, "", "scaled"),
    ("F4", 4, "", "scaled"),
    ("BOOL", 8, "bool", "integer"),
)
DTYPES = {name: DType(name, rank, bits, twin, kind) for rank, (name, bits, twin, kind) in enumerate(_ROWS)}
_SPOKEN = {
    "float32": "F32", "fp32": "F32", "f32": "F32", "float": "F32",
    "float16": "F16", "fp16": "F16", "f16": "F16", "half": "F16",
    "bfloat16": "BF16", "bf16": "BF16",
    "float64": "F64", "fp64": "F64", "f64": "F64", "double": "F64",
}  # fmt: skip


def parse_dtype(text: str, *, where: str = "") -> DType:
    """Return the float type that a recipe or a command line names, such as `bfloat16`.

    Raises:
        RecipeError: it names none.
    """
    spoken = str(text).removeprefix("torch.").lower()
    if spoken not in _SPOKEN:
        raise RecipeError(f"unknown dtype {text!r}", where=where, right=nearest(spoken, _SPOKEN))
    return DTYPES[_SPOKEN[spoken]]


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return the torch twin of `dtype`."""
    import torch

    twin = getattr(torch, dtype.torch)
    assert isinstance(twin, torch.dtype)
    return twin


def dtype_of_torch(dtype: torch.dtype) -> DType:
    """Return the row of a torch dtype.

    Raises:
        CheckpointError: safetensors has no such type.
    """
    twin = str(dtype).removeprefix("torch.")
    for row in DTYPES.values():
        if row.torch == twin:
            return row
    raise CheckpointError(f"tensors of {dtype} cannot be merged", right="float32, bfloat16, float16 or float64 tensors")
