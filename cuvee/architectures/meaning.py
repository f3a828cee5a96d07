"""What a tensor means: the role it plays, the layer it belongs to, the heads it holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fused", "Part", "Role", "TensorMeaning"]


class Role(StrEnum):
    """What a tensor is for. The bias, LoRA factor or quantization scale of a matrix has the role of that matrix.

    Cross-attention has the roles of self-attention. A role says what a tensor is, not where: an attention pooling
    head outside the blocks has `ATTENTION_Q` and no layer.
    """

    ATTENTION_Q = "attention_q"
    """Rows are the queries of all heads."""
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    ATTENTION_QKV = "attention_qkv"
    """Queries, keys and values in one matrix; `TensorMeaning.fused` says how, where it is known."""
    ATTENTION_KV = "attention_kv"
    """Keys and values in one matrix (cross-attention, `kv_b_proj` of multi-head latent attention)."""
    ATTENTION_LATENT = "attention_latent"
    """Down-projection to the latent of multi-head latent attention: `q_a_proj`, `kv_a_proj_with_mqa`. No heads."""
    ATTENTION_O = "attention_o"
    """Columns are the outputs of all heads."""
    MLP_GATE = "mlp_gate"
    """The branch of a gated MLP that passes the activation function."""
    MLP_UP = "mlp_up"
    MLP_GATE_UP = "mlp_gate_up"
    """Gate and up in one matrix; `TensorMeaning.fused` says how, where it is known."""
    MLP_DOWN = "mlp_down"
    ROUTER = "router"
    """Chooses experts (rows), or weighs a shared one; its correction bias too."""
    MIXER = "mixer"
    """Of a sequence mixer that is not softmax attention: state space, linear attention, RWKV, gated convolution."""
    CONV = "conv"
    NORM = "norm"
    """Gain or bias of a normalisation."""
    NORM_STATISTIC = "norm_statistic"
    """Running mean or variance of a batch norm: no parameter, and wrong after a merge until it is estimated again."""
    LAYER_SCALE = "layer_scale"
    """Learned factor of a residual branch."""
    EMBEDDING = "embedding"
    """Token, patch, segment and class-token embeddings."""
    POSITION = "position"
    """Position embeddings, absolute or relative."""
    CONDITIONING = "conditioning"
    """Of diffusion models: timestep, label and text vectors, and the modulation made of them."""
    PROJECTOR = "projector"
    """From one modality's space to another's: `visual_projection`, `multi_modal_projector`."""
    POOLER = "pooler"
    """Dense layer over the first token, pretrained with the encoder."""
    HEAD = "head"
    """The language-model head, and what leads to it (`cls.predictions.transform`)."""
    TASK_HEAD = "task_head"
    """Made for one task: classifier, regression, span, reward."""
    BUFFER = "buffer"
    """Constants that are not learned (masks, position ids, rotary frequencies): copy, never merge."""
    OTHER = "other"
    """Not known."""


@dataclass(frozen=True)
class Part:
    """One matrix inside a fused one.

    Attributes:
        role: of this part.
        rows: output rows of this part in one group.
        heads: heads that these rows hold, None where it is not attention or not known.
    """

    role: Role
    rows: int
    heads: int | None = None


@dataclass(frozen=True)
class Fused:
    """How a fused tensor splits along its output axis: `groups` times the parts, in order.

    [Q; K; V] by rows is one group; GPT-NeoX's (heads, 3, head_dim) is one group per head; gate and up that alternate
    row by row are one group per row of each.
    """

    groups: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class TensorMeaning:
    """What one tensor is.

    Attributes:
        layer: index of its layer in its stack, None outside the blocks.
        stack: the layer list, as the prefix in front of the index ("model.layers"); "" outside the blocks.
        role: what it is for.
        expert: index of its expert in a mixture of experts, None elsewhere and where all experts share one tensor.
        packed_experts: number of experts stacked along dimension 0, None elsewhere.
        heads: heads that its rows (of `ATTENTION_O`: its columns) hold, so key-value heads for k and v. None where
            that is unknown and for fused tensors, which say it per part.
        fused: how it splits, None where it is not fused or the order is not known.
        transposed: True where it is stored (…, in, out), as GPT-2 does; "rows" then means the last dimension.
    """

    layer: int | None = None
    stack: str = ""
    role: Role = Role.OTHER
    expert: int | None = None
    packed_experts: int | None = None
    heads: int | None = None
    fused: Fused | None = None
    transposed: bool = False
