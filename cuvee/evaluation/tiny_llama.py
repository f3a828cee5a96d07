"""A small language model of bytes in the shape of Llama, with the parameter names of Hugging Face.

Small enough to train in a minute on a laptop, and a real one: transformers loads its folder as `LlamaForCausalLM` and
computes the same logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Shape", "TinyLlama"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model. The vocabulary is the 256 bytes.

    Attributes:
        hidden: width of the residual stream.
        intermediate: width inside the MLP.
        layers: their number.
        heads: of attention.
        key_value_heads: of keys and values, shared by groups of heads.
        context: bytes that the model sees at once.
    """

    hidden: int = 128
    intermediate: int = 352
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    context: int = 64

    vocabulary = 256
    rope_theta = 10_000.0
    norm_epsilon = 1e-5

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """Return config.json of transformers' `LlamaForCausalLM`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rope_theta,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "torch_dtype": "float32",
        }

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Shape:
        """Return the shape that config.json tells."""
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["max_position_embeddings"],
        )


class TinyLlama(nn.Module):
    """The model: logits of the next byte at every place.

    Args:
        shape: its sizes.
        seed: of the weights that it starts with.
    """

    _rotation: Tensor

    def __init__(self, shape: Shape, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Stack(shape)
        self.lm_head = _linear(shape.hidden, shape.vocabulary)
        self.register_buffer("_rotation", _rotation(shape), persistent=False)
        _start(self, torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (batch, length, 256) logits for (batch, length ≤ context) bytes as int64."""
        return self.lm_head(self.model(tokens, self._rotation[:, : tokens.shape[1]]))

    def loss(self, text: Tensor) -> Tensor:
        """Return the mean loss, in nats a byte, of predicting text[:, 1:] from what stands before."""
        return functional.cross_entropy(self(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


class _Stack(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _norm(shape)

    def forward(self, tokens: Tensor, rotation: Tensor) -> Tensor:
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden, rotation)
        return self.norm(hidden)


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _Mlp(shape)
        self.input_layernorm = _norm(shape)
        self.post_attention_layernorm = _norm(shape)

    def forward(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._head = shape.head
        narrow = shape.key_value_heads * shape.head
        self.q_proj = _linear(shape.hidden, shape.hidden)
        self.k_proj = _linear(shape.hidden, narrow)
        self.v_proj = _linear(shape.hidden, narrow)
        self.o_proj = _linear(shape.hidden, shape.hidden)

    def forward(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        query = _rotated(self._heads(self.q_proj(hidden)), rotation)
        key = _rotated(self._heads(self.k_proj(hidden)), rotation)
        value = self._heads(self.v_proj(hidden))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, values: Tensor) -> Tensor:
        """Return (batch, heads, length, head) of (batch, length, heads · head)."""
        return values.view(*values.shape[:2], -1, self._head).transpose(1, 2)


class _Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden, shape.intermediate)
        self.up_proj = _linear(shape.hidden, shape.intermediate)
        self.down_proj = _linear(shape.intermediate, shape.hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _norm(shape: Shape) -> nn.RMSNorm:
    return nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _rotation(shape: Shape) -> Tensor:
    """Return (2, context, head): cosines and sines of the rotary positions (arXiv 2104.09864), halves alike."""
    frequency = shape.rope_theta ** -(torch.arange(0, shape.head, 2) / shape.head)
    angle = torch.outer(torch.arange(shape.context, dtype=torch.float32), frequency).repeat(1, 2)
    return torch.stack([angle.cos(), angle.sin()])


def _rotated(heads: Tensor, rotation: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


@torch.no_grad()
def _start(model: TinyLlama, generator: torch.Generator) -> None:
    """Draw the weights: 0.02 for embedding and head, 0.6/√inputs for matrices, half of it where they feed the stream."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            share = 0.3 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.6
            at_edge = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            weight.normal_(0.0, 0.02 if at_edge else share * weight.shape[1] ** -0.5, generator=generator)
