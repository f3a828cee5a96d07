"""How fused tensors split into their matrices."""

from __future__ import annotations

from cuvee.architectures.configs import Settings
from cuvee.architectures.heads import HeadSizes
from cuvee.architectures.hints import (
    ALWAYS_STACKED,
    EQUAL_HEADS,
    GATE_UP_ORDERS,
    INTERLEAVED_GATE_UP,
    QKV_ORDERS,
    STACKED_BY_DEFAULT,
    QkvOrder,
)
from cuvee.architectures.meaning import Fused, Part, Role

__all__ = ["fused_gate_up", "fused_kv", "fused_qkv"]


def fused_qkv(word: str, rows: int, kinds: tuple[str, ...], sizes: HeadSizes) -> Fused | None:
    """Split queries, keys and values; None where the order is not known or the rows do not add up.

    Args:
        word: the module's name, lower case.
        rows: along the output axis.
        kinds: model types and family, the most telling first.
        sizes: of the heads.
    """
    order = _order(word, kinds)
    heads, kv_heads = sizes.heads, sizes.kv_heads
    if order is None:
        return None
    if heads is None or kv_heads is None:
        is_equal = word == "in_proj" or not EQUAL_HEADS.isdisjoint(kinds)
        return _equal_thirds(rows) if order is QkvOrder.STACKED and is_equal else None
    if rows % (heads + 2 * kv_heads):
        return None
    size = rows // (heads + 2 * kv_heads)
    if sizes.query is not None and sizes.query != size:
        return None
    if order is QkvOrder.STACKED:
        return _qkv(1, heads, kv_heads, size)
    if order is QkvOrder.GROUPED:
        return _qkv(kv_heads, heads // kv_heads, 1, size) if heads % kv_heads == 0 else None
    if heads % 4 or heads != kv_heads:
        return None
    quarter = (Part(role, heads // 4 * size, heads // 4) for role in _CODEGEN)
    return Fused(4, tuple(quarter))


def _order(word: str, kinds: tuple[str, ...]) -> QkvOrder | None:
    if word in ALWAYS_STACKED:
        return QkvOrder.STACKED
    known = next((QKV_ORDERS[kind] for kind in kinds if kind in QKV_ORDERS), None)
    return known or (QkvOrder.STACKED if word in STACKED_BY_DEFAULT else None)


_CODEGEN = (Role.ATTENTION_Q, Role.ATTENTION_V, Role.ATTENTION_K)


def fused_kv(word: str, rows: int, settings: Settings | None) -> Fused | None:
    """Split `kv_b_proj` of multi-head latent attention: for every head, the unrotated key and the value."""
    heads = settings.heads if settings else None
    value = settings.value_head_dim if settings else None
    if word != "kv_b_proj" or heads is None or value is None or rows % heads:
        return None
    key = rows // heads - value
    if key <= 0:
        return None
    return Fused(heads, (Part(Role.ATTENTION_K, key, 1), Part(Role.ATTENTION_V, value, 1)))


def fused_gate_up(word: str, rows: int, kinds: tuple[str, ...], is_packed: bool) -> Fused | None:
    """Split gate and up. Packed experts of an unknown model may alternate row by row, as those of gpt-oss do."""
    order = GATE_UP_ORDERS.get(word)
    if order is None or rows % 2:
        return None
    if not INTERLEAVED_GATE_UP.isdisjoint(kinds):
        return Fused(rows // 2, tuple(Part(role, 1) for role in order))
    if is_packed and not kinds:
        return None
    return Fused(1, tuple(Part(role, rows // 2) for role in order))


def _qkv(groups: int, heads: int, kv_heads: int, size: int) -> Fused:
    return Fused(
        groups,
        (
            Part(Role.ATTENTION_Q, heads * size, heads),
            Part(Role.ATTENTION_K, kv_heads * size, kv_heads),
            Part(Role.ATTENTION_V, kv_heads * size, kv_heads),
        ),
    )


def _equal_thirds(rows: int) -> Fused | None:
    if rows % 3:
        return None
    roles = (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V)
    return Fused(1, tuple(Part(role, rows // 3) for role in roles))
