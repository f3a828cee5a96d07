"""config.json of a mixture of experts, from that of its dense base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.checkpoints.sidecars import merged_config
from cuvee.moe.config import MoeConfig
from cuvee.moe.dense import Dense
from cuvee.moe.layouts import MoeLayout
from cuvee.tensors.dtypes import DType

__all__ = ["config_warnings", "moe_json"]

_NOT_OURS = (
    *("auto_map", "_name_or_path", "pretraining_tp", "mlp_bias", "layer_types", "max_window_layers"),
    *("sliding_window", "use_sliding_window", "quantization_config"),
)
"""Keys that are about the dense model's own code, or that the layouts say anew."""


def moe_json(config: MoeConfig, layout: MoeLayout, base: Dense, dtype: DType) -> dict[str, Any]:
    """Return config.json: the base's, with what its family takes for granted spelt out, as the layout's family.

    Families differ in their defaults (the rotary base is 10⁴ in Llama and 10⁶ in Mixtral), so none is left to them.
    """
    experts, per_token = len(config.experts), config.experts_per_token
    result: dict[str, Any] = {key: value for key, value in base.settings.items() if key not in _NOT_OURS}
    result |= {**base.sizes, **_rope(layout, base)}
    result |= {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        layout.count_key: experts,
        "num_experts_per_tok": per_token,
        **layout.settings,
    }
    if layout.model_type != "mixtral":
        result["moe_intermediate_size"] = base.inner
    if layout.shared_gate:
        result["shared_expert_intermediate_size"] = base.inner
    elif layout.shared:
        result["n_shared_experts"] = len(config.shared_experts) or None
    if layout.model_type == "mixtral":
        result["sliding_window"] = None if config.compat == "mergekit" else base.window
    return merged_config(result, dtype=dtype, tied=base.tied, vocab_size=None)


def _rope(layout: MoeLayout, base: Dense) -> dict[str, Any]:
    """Return the rotary embedding in the form of the base's config; for DeepSeek's code in the older one."""
    said = base.settings.get("rope_parameters")
    if not isinstance(said, Mapping):
        return {}
    spelt = {"rope_theta": base.settings["rope_theta"], **said}
    if layout.model_type != "deepseek":
        return {"rope_parameters": spelt, "rope_theta": spelt["rope_theta"]}
    scaling = {("type" if key == "rope_type" else key): value for key, value in said.items() if key != "rope_theta"}
    return {"rope_theta": spelt["rope_theta"], "rope_scaling": None if base.rope_kind == "default" else scaling}


def config_warnings(config: MoeConfig, layout: MoeLayout, base: Dense) -> list[str]:
    """Return what the layout computes otherwise than the dense base, for the user to know."""
    warnings = []
    if base.window is not None and (not layout.keeps_window or config.compat == "mergekit"):
        warnings.append(
            f"attention of the base sees {base.window} tokens back, that of the mixture all of them: "
            "beyond that length it computes something else"
        )
    if config.experts_per_token == 1 and not layout.router_divides:
        warnings.append(
            f"with one expert a token, {layout.title} multiplies what the expert says by its probability: "
            "the mixture of equal experts is not the dense model; experts_per_token: 2 is"
        )
    return warnings
