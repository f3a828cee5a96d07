"""How many heads a tensor of attention holds: from the config, held against the shapes, or forced by them."""

from __future__ import annotations

from cuvee.architectures.configs import Settings
from cuvee.architectures.meaning import Role
from cuvee.architectures.surroundings import Surroundings

__all__ = ["HeadSizes", "head_sizes", "heads_in"]

_QUERY_NORMS = ("q_norm", "q_layernorm", "query_norm", "norm_q", "query_layernorm")
_KEY_NORMS = ("k_norm", "k_layernorm", "key_norm", "norm_k", "key_layernorm")
_FUSED = ("qkv", "qkv_proj", "query_key_value", "Wqkv")
_QUERIES = ("q_proj", "to_q", "query", "q", "wq", "linear_q", *_FUSED)
_KEYS = ("k_proj", "to_k", "key", "k", "wk", "linear_k", *_FUSED)
# Parameters with an entry per head, and the dimension that counts them.
_PER_HEAD = (
    ("sinks", 0),
    ("relative_attention_bias.weight", -1),
    ("relative_position_bias_table", -1),
    ("relative_position_bias.relative_position_bias_table", -1),
)


class HeadSizes:
    """Numbers and sizes of heads in one attention module, each None where not known."""

    def __init__(
        self, heads: int | None, kv_heads: int | None, query: int | None, key: int | None, value: int | None
    ) -> None:
        self.heads = heads
        self.kv_heads = kv_heads
        self.query = query
        self.key = key
        self.value = value


def head_sizes(
    module: tuple[str, ...], first: tuple[str, ...], settings: Settings | None, around: Surroundings
) -> HeadSizes:
    """Gather what is known of the heads of the attention that `module` belongs to.

    Args:
        module: components of a projection's name.
        first: the same in the stack's first layer, where T5 keeps its position bias.
        settings: the part of the config for this stack.
        around: the model.
    """
    heads = settings.heads if settings else None
    kv_heads = (settings.kv_heads or heads) if settings else None
    size = settings.size if settings else None
    forced = _per_head(module, around) or _per_head(first, around)
    if forced is not None and forced != heads:
        heads, kv_heads, size = forced, forced, None
    parent = module[:-1]
    key = _norm_size(parent, _KEY_NORMS, _KEYS, around) or size
    value = settings.value_head_dim if settings else None
    return HeadSizes(heads, kv_heads, _norm_size(parent, _QUERY_NORMS, _QUERIES, around) or size, key, value or key)


def heads_in(role: Role, rows: int, sizes: HeadSizes) -> int | None:
    """Count the heads in `rows` rows of q, k or v, or in as many columns of o."""
    if role is Role.ATTENTION_Q:
        return _gated(rows, sizes) or _count(rows, sizes.heads, sizes.query)
    if role is Role.ATTENTION_O:
        return _count(rows, sizes.heads, sizes.value)
    if role is Role.ATTENTION_K:
        return _count(rows, sizes.kv_heads, sizes.key)
    return _count(rows, sizes.kv_heads, sizes.value)


def _gated(rows: int, sizes: HeadSizes) -> int | None:
    """Qwen3-Next keeps an output gate beside the query of every head: twice the rows, the same heads."""
    if sizes.heads is None or sizes.query is None:
        return None
    return sizes.heads if rows == 2 * sizes.heads * sizes.query else None


def _count(rows: int, declared: int | None, size: int | None) -> int | None:
    """Take as many heads as fit: layers may be pruned, or differ. Without a size, the declared number if it fits."""
    if rows <= 0:
        return None
    if size is not None:
        return rows // size if rows % size == 0 else None
    return declared if declared is not None and rows % declared == 0 else None


def _norm_size(
    parent: tuple[str, ...], norms: tuple[str, ...], projections: tuple[str, ...], around: Surroundings
) -> int | None:
    """Read the size of a head from the norm over it; a norm over all heads at once (OLMo 2) says nothing."""
    norm = next((w for word in norms if (w := around.weight_of((*parent, word)))), None)
    rows = next((w[0] for word in projections if (w := around.weight_of((*parent, word)))), None)
    if norm is None or rows is None or norm[-1] <= 0:
        return None
    return norm[-1] if norm[-1] < rows and rows % norm[-1] == 0 else None


def _per_head(module: tuple[str, ...], around: Surroundings) -> int | None:
    parent = ".".join(module[:-1])
    for name, dimension in _PER_HEAD:
        shape = around.shapes.get(f"{parent}.{name}")
        if shape is not None and len(shape) in (1, 2) and shape[dimension] > 0:
            return shape[dimension]
    return None
