"""What names and shapes alone cannot tell, per family. Data only; every hint is checked against the names it is for.

A family that is not here works just as well: layers, roles and heads are inferred. Sources: the modelling code of
transformers 4.57 and 5.x, timm, torchvision, diffusers, open_clip; methods/structural.md, architecture_layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from cuvee.architectures.meaning import Role

__all__ = [
    "ALWAYS_STACKED",
    "EQUAL_HEADS",
    "FAMILIES",
    "GATE_UP_ORDERS",
    "HEAD_NAMES",
    "INTERLEAVED_GATE_UP",
    "QKV_ORDERS",
    "STACKED_BY_DEFAULT",
    "TIED_BY_DEFAULT",
    "TRANSPOSED_EXPERTS",
    "Family",
    "QkvOrder",
]


class QkvOrder(Enum):
    """How queries, keys and values lie in one matrix, by output rows."""

    STACKED = "[Q; K; V]"
    GROUPED = "for every key-value head: its queries, its key, its value"
    CODEGEN = "four times: a quarter of Q, of V, of K"


@dataclass(frozen=True)
class Family:
    """A family and the evidence for it.

    Attributes:
        name: of the family.
        model_types: what config.json may call it.
        modules: alternatives; a stack of the family has all modules of one of them in its layers.
        lacks: modules that its layers never have.
        alone: True where the names identify the family without a config.
        transposed: matrices are stored (in, out), as by Conv1D.
    """

    name: str
    model_types: frozenset[str]
    modules: tuple[frozenset[str], ...]
    lacks: frozenset[str] = frozenset()
    alone: bool = False
    transposed: bool = False


def _types(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _family(
    name: str,
    model_types: str,
    *modules: str,
    lacks: str = "",
    alone: bool = False,
    transposed: bool = False,
) -> Family:
    alternatives = tuple(_types(option) for option in modules)
    return Family(name, _types(model_types), alternatives, _types(lacks), alone, transposed)


_LLAMA = "self_attn.q_proj self_attn.o_proj mlp.gate_proj mlp.down_proj input_layernorm post_attention_layernorm"
_SANDWICH = "pre_feedforward_layernorm post_feedforward_layernorm"
_BERT = "attention.self.query attention.output.dense attention.output.LayerNorm intermediate.dense output.dense"
_ATTENTION = "self_attn.q_proj self_attn.o_proj"

FAMILIES: tuple[Family, ...] = (
    _family("llama", "llama", _LLAMA, lacks="self_attn.q_norm"),
    _family("mistral", "mistral ministral ministral3", _LLAMA, lacks="self_attn.q_norm"),
    _family("qwen2", "qwen2", _LLAMA, lacks="self_attn.q_norm"),
    _family("qwen3", "qwen3", f"{_LLAMA} self_attn.q_norm self_attn.k_norm"),
    _family("gemma", "gemma", _LLAMA, lacks=_SANDWICH),
    _family("gemma2", "gemma2", f"{_LLAMA} {_SANDWICH}", lacks="self_attn.q_norm"),
    _family("gemma3", "gemma3 gemma3_text", f"{_LLAMA} {_SANDWICH} self_attn.q_norm"),
    _family("phi", "phi", "self_attn.q_proj self_attn.dense mlp.fc1 mlp.fc2 input_layernorm"),
    _family("phi3", "phi3", "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj"),
    _family("gpt2", "gpt2", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj ln_1 ln_2", alone=True, transposed=True),
    _family(
        "gpt_neox",
        "gpt_neox",
        "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h",
        alone=True,
    ),
    _family(
        "mixtral",
        "mixtral",
        f"{_ATTENTION} block_sparse_moe.gate",
        f"{_ATTENTION} mlp.gate mlp.experts.gate_up_proj",
    ),
    _family("qwen2_moe", "qwen2_moe", f"{_ATTENTION} mlp.gate mlp.shared_expert_gate"),
    _family("qwen3_moe", "qwen3_moe", f"{_ATTENTION} self_attn.q_norm mlp.gate"),
    _family(
        "deepseek",
        "deepseek deepseek_v2 deepseek_v3 deepseek_v32 kimi_k2",
        "self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj self_attn.o_proj",
        f"{_ATTENTION} mlp.gate mlp.shared_experts.gate_proj",
    ),
    _family("bert", "bert", _BERT),
    _family("roberta", "roberta xlm-roberta camembert", _BERT),
    _family("t5", "t5 mt5 umt5", "layer.0.SelfAttention.q layer.0.SelfAttention.o layer.0.layer_norm", alone=True),
    _family(
        "vit",
        "vit deit dinov2 vit_msn vit_mae",
        "attention.attention.query attention.output.dense intermediate.dense",
        "attention.attention.query attention.output.dense mlp.fc1",
        "attention.q_proj attention.o_proj mlp.fc1",
        "attention.q_proj attention.o_proj intermediate.dense",
    ),
    _family("timm_vit", "", "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2", lacks="adaLN_modulation.1", alone=True),
    _family(
        "clip", "clip clip_text_model clip_vision_model", "self_attn.q_proj self_attn.out_proj mlp.fc1 layer_norm1"
    ),
    _family("open_clip", "", "attn.in_proj_weight attn.out_proj mlp.c_fc mlp.c_proj ln_1 ln_2", alone=True),
    _family("whisper", "whisper", "self_attn.q_proj self_attn.out_proj fc1 fc2 self_attn_layer_norm"),
    _family(
        "sd_unet",
        "",
        "attentions.0.transformer_blocks.0.attn1.to_q resnets.0.time_emb_proj",
        "1.transformer_blocks.0.attn1.to_q 0.emb_layers.1",
        alone=True,
    ),
    _family("dit", "", "attn.qkv attn.proj mlp.fc1 adaLN_modulation.1", alone=True),
    _family("resnet", "resnet", "layer.0.convolution layer.0.normalization"),
    _family("torchvision_resnet", "", "conv1 bn1 conv2 bn2", alone=True),
)

QKV_ORDERS: Mapping[str, QkvOrder] = {
    **dict.fromkeys(
        ("gpt_neox", "gpt_neox_japanese", "bloom", "falcon", "RefinedWeb", "RefinedWebModel", "persimmon"),
        QkvOrder.GROUPED,
    ),
    **dict.fromkeys(("gpt_bigcode", "internlm2", "minimax"), QkvOrder.GROUPED),
    **dict.fromkeys(("phi3", "phi4_multimodal", "chatglm", "baichuan", "openelm", "gpt2"), QkvOrder.STACKED),
    "codegen": QkvOrder.CODEGEN,
}
"""Order by model type or family. GPTBigCode with `multi_query` and Falcon-7B are GROUPED with one key-value head."""

ALWAYS_STACKED = frozenset({"in_proj", "qkv", "att_proj", "img_qkv", "txt_qkv", "add_qkv_proj"})
"""Modules that are [Q; K; V] in whatever model: torch.nn.MultiheadAttention defines `in_proj`, and `qkv` is so in timm
and in each of the thirty families of transformers 5 that have it."""
STACKED_BY_DEFAULT = frozenset({"wqkv", "c_attn"})
"""Modules that are so where the model type is not in `QKV_ORDERS`."""

EQUAL_HEADS = frozenset({"gpt2", "timm_vit", "dit", "open_clip"})
"""Families with as many key-value heads as query heads, where no config says how many."""

_GATE_UP = (Role.MLP_GATE, Role.MLP_UP)
_UP_GATE = (Role.MLP_UP, Role.MLP_GATE)
GATE_UP_ORDERS: Mapping[str, tuple[Role, Role]] = {
    "gate_up_proj": _GATE_UP,
    "gate_and_up_proj": _GATE_UP,
    "input_linear": _GATE_UP,  # JetMoE, GraniteMoE
    "wi": _GATE_UP,  # ModernBERT: the activation is on the first half
    "weights_in": _GATE_UP,  # DINOv2
    "w12": _GATE_UP,  # xFormers SwiGLU
    "dense_h_to_4h": _GATE_UP,  # ChatGLM
    "up_gate_proj": _UP_GATE,  # GTE
    "ff_proj": _UP_GATE,  # OLMo before transformers
    "proj": _UP_GATE,  # diffusers GEGLU, net.0.proj
}
"""Order of a fused gate and up projection, by rows, by the module's name."""

INTERLEAVED_GATE_UP = frozenset({"gpt_oss"})
TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter"})
"""Packed experts stored (E, in, out); for other types the shape decides."""

HEAD_NAMES: Mapping[str, str] = {
    "whisper": "proj_out.weight",
    "gpt_neox": "embed_out.weight",
    "bert": "cls.predictions.decoder.weight",
    "roberta": "lm_head.decoder.weight",
    "xlm-roberta": "lm_head.decoder.weight",
    "camembert": "lm_head.decoder.weight",
    "distilbert": "vocab_projector.weight",
    "electra": "generator_lm_head.weight",
    "albert": "predictions.decoder.weight",
    "modernbert": "decoder.weight",
    "biogpt": "output_projection.weight",
    "trocr": "output_projection.weight",
    "xlm": "pred_layer.proj.weight",
    "flaubert": "pred_layer.proj.weight",
}
"""What the language-model head is called where it is not `lm_head.weight`, for files that leave out a tied one."""

TIED_BY_DEFAULT = _types(
    """
    albert bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small bloom camembert cohere
    cohere2 convbert ctrl data2vec-text deberta deberta-v2 distilbert electra ernie ernie4_5 falcon flaubert fnet funnel
    gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gpt2 gpt_bigcode gpt_neo
    gpt_neox_japanese jetmoe layoutlm led lfm2 lfm2_moe longformer longt5 luke m2m_100 mamba falcon_mamba marian mbart
    megatron-bert minicpm3 mobilebert modernbert modernbert-decoder mpnet mpt mt5 mvp nllb-moe nomic_bert nystromformer
    openai-gpt opt paligemma pegasus plbart prophetnet recurrent_gemma roberta roformer smollm3
    speech_to_text splinter squeezebert starcoder2 switch_transformers t5 t5gemma tapas umt5 vaultgemma whisper xglm
    xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso zamba zamba2
    """
)
"""Model types whose head is tied when config.json does not say: the key is written only where it differs."""
