"""Quantized formats that are not read: recognised by their tensors, and refused by their name.

The tensors decide, not config.json: merges are published with the `quantization_config` of a parent that was quantized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cuvee.checkpoints.sources import TensorSource
from cuvee.errors import CheckpointError, printable

__all__ = ["quantization_of", "refuse_quantized", "without_quantization"]

_KEYS = ("quantization_config", "compression_config")
_METHODS = {
    "aqlm": "AQLM", "auto-round": "AutoRound", "awq": "AWQ", "bitnet": "BitNet", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "eetq": "EETQ", "fbgemm_fp8": "FBGEMM fp8", "fp8": "fp8",
    "gguf": "GGUF", "gptq": "GPTQ", "higgs": "HIGGS", "hqq": "HQQ", "modelopt": "ModelOpt", "mxfp4": "MXFP4",
    "nvfp4": "NVFP4", "quanto": "Quanto", "quark": "Quark", "spqr": "SpQR", "torchao": "torchao", "vptq": "VPTQ",
}  # fmt: skip
# the first whose pattern and dtypes match; names end so, and the tensor is of one of the dtypes (none: any)
_SIGNATURES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"\.quant_state\.bitsandbytes__\w+", "bitsandbytes 4-bit", ()),
    (r"\.weight\.absmax|\.weight\.quant_map", "bitsandbytes 4-bit", ()),
    (r"\.SCB", "bitsandbytes 8-bit (LLM.int8)", ()),
    (r"\.qweight", "GPTQ or AWQ", ("I32", "I16", "U8")),
    (r"\.weight_packed", "compressed-tensors (packed integers or NVFP4)", ()),
    (r"\.weight_scale_2", "NVFP4 (ModelOpt)", ()),
    (r"_blocks", "MXFP4", ("U8",)),
    (r"\.codebooks|\.codes", "AQLM", ("I8", "I16", "U8")),
    (r"\.W_q", "HQQ", ()),
    (r"\.weight\._data", "Quanto", ()),
    (r"\.weight(:_data|_qdata|\.tensor_impl\.\w+)", "torchao", ()),
)  # fmt: skip
_WEIGHT = re.compile(r"(.*\.)?weight")
_CODES = frozenset({"I8", "U8", "I32", "F4", "F6_E2M3", "F6_E3M2"})


def refuse_quantized(tensors: Mapping[str, TensorSource], config: Mapping[str, Any] | None) -> None:
    """Raise when tensors hold codes of a quantized format.

    Args:
        tensors: those of a model, fp8 decoded.
        config: config.json, which may say more of the format.

    Raises:
        CheckpointError: they do; it names the format and the way out.
    """
    for name, tensor in tensors.items():
        found = _signature(name, tensor, tensors)
        if found:
            raise _refusal(found, name, tensor, config)


def _signature(name: str, tensor: TensorSource, tensors: Mapping[str, TensorSource]) -> str | None:
    for pattern, found, dtypes in _SIGNATURES:
        if (not dtypes or tensor.dtype.name in dtypes) and re.fullmatch(f".*(?:{pattern})", name, re.DOTALL):
            return found if found != "MXFP4" or name.removesuffix("_blocks") + "_scales" in tensors else None
    # numbers that are no numbers, of a matrix that every other format stores as floats
    if tensor.dtype.name in _CODES and len(tensor.shape) >= 2 and _WEIGHT.fullmatch(name):
        return f"integers of {tensor.dtype.bits} bits"
    return None


def _refusal(found: str, name: str, tensor: TensorSource, config: Mapping[str, Any] | None) -> CheckpointError:
    method = _method(config)
    said = f" (quantization_config: {method})" if method else ""
    base = _original(config)
    return CheckpointError(
        f"the weights are quantized as {found}{said}: their codes cannot be merged",
        where=f"{tensor.place[0]}, tensor {printable(name)[:200]!r}",
        right=f"name the unquantized model{base}, or write one: "
        "AutoModelForCausalLM.from_pretrained(MODEL).dequantize().save_pretrained(OTHER)",
    )


def quantization_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the quantization_config of a model, or that of a part of it such as `text_config`; empty without one."""
    parts = [config or {}, *(part for part in (config or {}).values() if isinstance(part, dict))]
    found = (part.get(key) for part in parts for key in _KEYS)
    return next((value for value in found if isinstance(value, dict)), {})


def _method(config: Mapping[str, Any] | None) -> str:
    method = quantization_of(config).get("quant_method")
    return _METHODS.get(method, printable(method)[:60]) if isinstance(method, str) else ""


def _original(config: Mapping[str, Any] | None) -> str:
    name = (config or {}).get("_name_or_path")
    return f" (config.json says it came from {printable(name)[:100]!r})" if isinstance(name, str) and name else ""


def _without_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _KEYS}


def without_quantization(config: dict[str, Any] | None) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return config.json as it is for plain weights, and a note where that took something away."""
    if config is None or not quantization_of(config):
        return config, ()
    kept = {key: _without_keys(value) if isinstance(value, dict) else value for key, value in config.items()}
    kept = _without_keys(kept)
    method = _method(config) or "unnamed"
    return kept, (f"the quantization_config ({method}) is dropped: the weights are plain numbers",)
