"""The layouts of mixtures of experts: where each tensor goes, which dense models fit, and what config.json says.

A layout is data: names, what stands around the MLPs, and a few rules. Sources: the modelling code of Mixtral, Qwen2-MoE and
Qwen3-MoE in transformers, that of DeepSeek-MoE beside its weights (arXiv 2401.04088, 2407.10671, 2505.09388, 2401.06066).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuvee.moe.config import MoeConfig
    from cuvee.moe.dense import Dense

__all__ = ["LAYOUTS", "MoeLayout", "misfits", "named_layouts"]

_NORMS = frozenset({"input_layernorm.weight", "post_attention_layernorm.weight"})
_PROJECTIONS = frozenset(f"self_attn.{side}_proj.weight" for side in "qkvo")
_QKV_BIASES = frozenset(f"self_attn.{side}_proj.bias" for side in "qkv")
_QK_NORMS = frozenset({"self_attn.q_norm.weight", "self_attn.k_norm.weight"})
_OUTSIDE = frozenset({"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"})


@dataclass(frozen=True, eq=False)
class MoeLayout:
    """How one family stores a mixture of experts.

    Attributes:
        title: as mergekit calls it, and by which a config chooses it (any case, any beginning).
        model_type, architecture: in config.json.
        families: the dense families that can become it, by model_type.
        router: the router's name in a layer, fused and separate.
        experts: the names of an expert's gate, up and down projections in a layer, separate; `{e}` is its number.
        fused: the names of (E, 2I, H) and (E, H, I) tensors; None where the family has none.
        is_fused: what it is where the config does not say.
        shared: the prefix of the shared expert; empty where there is none.
        shared_gate: the name of the shared expert's gate; empty where it has none.
        shared_counts: how many shared experts there may be.
        biases: attention biases that the family has; where the dense model lacks some, they are zero.
        allowed: further names around the MLP that the family may have.
        required: further names that it must have.
        count_key: where config.json says how many experts there are.
        settings: what else config.json says.
        router_divides: the weights of the chosen experts add up to 1 even for one expert a token.
        keeps_window: attention may see a window, as Mistral's does.
    """

    title: str
    model_type: str
    architecture: str
    families: tuple[str, ...]
    router: Mapping[bool, str]
    experts: tuple[str, str, str]
    fused: tuple[str, str] | None
    is_fused: bool
    count_key: str
    settings: Mapping[str, Any]
    shared: str = ""
    shared_gate: str = ""
    shared_counts: tuple[int, ...] = (0,)
    biases: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    router_divides: bool = True
    keeps_window: bool = False


_QWEN_EXPERTS = tuple(f"mlp.experts.{{e}}.{part}_proj.weight" for part in ("gate", "up", "down"))
_FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_ONE_NAME = {True: "mlp.gate.weight", False: "mlp.gate.weight"}
_SPARSE_EVERYWHERE = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "use_sliding_window": False,
}
_REMOTE = "deepseek-ai/deepseek-moe-16b-base--"

MIXTRAL = MoeLayout(
    title="Mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    families=("llama", "mistral"),
    router={True: "mlp.gate.weight", False: "block_sparse_moe.gate.weight"},
    experts=tuple(f"block_sparse_moe.experts.{{e}}.{w}.weight" for w in ("w1", "w3", "w2")),  # type: ignore[arg-type]
    fused=_FUSED,
    is_fused=True,
    count_key="num_local_experts",
    settings={},
    keeps_window=True,
)
DEEPSEEK = MoeLayout(
    title="DeepSeek MoE",
    model_type="deepseek",
    architecture="DeepseekForCausalLM",
    families=("llama", "mistral"),
    router=_ONE_NAME,
    experts=_QWEN_EXPERTS,  # type: ignore[arg-type]
    fused=None,
    is_fused=False,
    count_key="n_routed_experts",
    settings={
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "auto_map": {
            "AutoConfig": f"{_REMOTE}configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{_REMOTE}modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{_REMOTE}modeling_deepseek.DeepseekForCausalLM",
        },
    },
    shared="mlp.shared_experts.",
    shared_counts=(0, 1),
    allowed=_QKV_BIASES | {"self_attn.o_proj.bias"},
    router_divides=False,
)
QWEN2 = MoeLayout(
    title="Qwen MoE",
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    families=("qwen2", "llama", "mistral"),
    router=_ONE_NAME,
    experts=_QWEN_EXPERTS,  # type: ignore[arg-type]
    fused=_FUSED,
    is_fused=False,
    count_key="num_experts",
    settings={**_SPARSE_EVERYWHERE, "qkv_bias": True},
    shared="mlp.shared_expert.",
    shared_gate="mlp.shared_expert_gate.weight",
    shared_counts=(1,),
    biases=_QKV_BIASES,
)
QWEN3 = MoeLayout(
    title="Qwen3 MoE",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    families=("qwen3",),
    router=_ONE_NAME,
    experts=_QWEN_EXPERTS,  # type: ignore[arg-type]
    fused=_FUSED,
    is_fused=True,
    count_key="num_experts",
    settings=_SPARSE_EVERYWHERE,
    allowed=_QKV_BIASES | {"self_attn.o_proj.bias"},
    required=_QK_NORMS,
)
LAYOUTS = (MIXTRAL, DEEPSEEK, QWEN2, QWEN3)
_SPOKEN = {"Qwen MoE": ("qwen2 moe", "qwen2-moe", "qwen2_moe"), "Qwen3 MoE": ("qwen3-moe", "qwen3_moe")}


def named_layouts(name: str) -> list[MoeLayout]:
    """Return the layouts whose name begins so, in the order in which they are tried."""
    wanted = name.strip().lower()
    return [
        layout
        for layout in LAYOUTS
        if wanted and any(one.startswith(wanted) for one in (layout.title.lower(), *_SPOKEN.get(layout.title, ())))
    ]


def misfits(layout: MoeLayout, config: MoeConfig, base: Dense, others: Mapping[str, Dense]) -> list[str]:
    """Return why a layout cannot take these dense models; nothing where it can.

    Args:
        others: the experts and shared experts, by what they are called.
    """
    return [*_of_config(layout, config), *_of_families(layout, base, others), *_of_base(layout, base)]


def _of_config(layout: MoeLayout, config: MoeConfig) -> Iterator[str]:
    count = len(config.shared_experts)
    if count not in layout.shared_counts:
        wanted = " or ".join({0: "no", 1: "one"}[n] for n in layout.shared_counts)
        yield f"it takes {wanted} shared expert, and the config has {count or 'none'}"
    for entry in config.shared_experts:
        if layout.shared and not layout.shared_gate and any(entry.prompts):
            yield "its shared expert has no gate, and the config gives it prompts"
        if layout.shared_gate and not entry.positive_prompts and "random" not in config.gate_mode:
            yield "its shared expert has a gate, made of prompts, and the config gives it none"
    if config.expert_layout == "fused" and layout.fused is None:
        yield "it has no fused form (expert_layout: separate)"


def _of_families(layout: MoeLayout, base: Dense, others: Mapping[str, Dense]) -> Iterator[str]:
    wanted = " or ".join(layout.families)
    if base.family not in layout.families:
        yield f"it is made of {wanted} models, and the base is of model_type {base.family!r}"
    for role, dense in others.items():
        if dense.family and dense.family not in layout.families and dense.family != base.family:
            yield f"it is made of {wanted} models, and {role} is of model_type {dense.family!r}"


def _of_base(layout: MoeLayout, base: Dense) -> Iterator[str]:
    required = _NORMS | _PROJECTIONS | layout.required
    known = required | layout.biases | layout.allowed
    found = frozenset().union(*base.around)
    if strange := sorted(found - known):
        yield f"it has no place for {_some(strange)}"
    if missing := sorted(name for name in required if any(name not in names for names in base.around)):
        yield f"it needs {_some(missing)}, and the base has none"
    if strange := sorted(base.in_mlp - {f"{part}_proj.weight" for part in ("gate", "up", "down")}):
        yield f"its experts have no place for mlp.{_some(strange)}"
    if strange := sorted(base.outside - _OUTSIDE):
        yield f"it has no place for {_some(strange)}"
    needed = _OUTSIDE - ({"lm_head.weight"} if base.tied else set())
    if missing := sorted(needed - base.outside):
        yield f"it needs {_some(missing)}, and the base has none"
    if layout is DEEPSEEK:
        yield from _of_deepseek(base)


def _of_deepseek(base: Dense) -> Iterator[str]:
    heads = int(base.settings["num_attention_heads"])
    if base.head_dim * heads != base.hidden:
        yield f"its heads have hidden size / heads = {base.hidden // heads} elements, and those of the base {base.head_dim}"
    if base.rope_kind not in ("default", "linear", "dynamic"):
        yield f"its code knows no rope scaling of the kind {base.rope_kind!r}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
