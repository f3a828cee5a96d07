"""What config.json says of layers and heads, for the model and for each of its parts.

A config is text from outside: every value is taken only where it is of the right kind, and nothing here raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.architectures.layers import LayerCounts
from cuvee.architectures.names import tokens

__all__ = [
    "LAYER_KEYS",
    "Settings",
    "boolean",
    "kinds",
    "layer_counts",
    "matching",
    "read_settings",
    "text",
    "vocabulary_sizes",
]

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_blocks", "num_encoder_layers")
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "hidden_dim", "model_dim", "width")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "heads")
_KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads", "multi_query_group_num", "kv_n_heads")
_HEAD_DIM = ("head_dim", "d_kv", "d_head", "kv_channels", "attention_head_size", "attention_head_dim")
_EXTRA_LAYERS = ("num_nextn_predict_layers", "mtp_num_layers", "num_mtp_layers", "mtp_num_hidden_layers")
_DEEPEST = 4
_MOST_PARTS = 64
_LARGEST = 1 << 31

# Which words of a stack's name speak for which part of a config.
_KINDS = {
    "vision": ("vision", "visual", "image", "vit", "img"),
    "audio": ("audio", "speech", "sound", "acoustic", "whisper"),
    "text": ("text", "language", "llm", "lm"),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "talker": ("talker",),
    "qformer": ("qformer",),
}


@dataclass(frozen=True)
class Settings:
    """One part of a config ("" is the whole, "text_config" a part of it), as far as it is known.

    Attributes:
        path: keys that lead to the part, joined by dots; "encoder" and "decoder" for those of a flat config.
        model_type: of the part.
        layers: number of layers.
        hidden_size: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads, None where not declared: as many as query heads, as a rule.
        head_dim: rows of a query or key head.
        value_head_dim: rows of a value head, None where not declared: those of a key, as a rule.
        raw: the part itself.
    """

    path: str
    model_type: str | None
    layers: int | None
    hidden_size: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    value_head_dim: int | None
    raw: Mapping[str, Any]

    @property
    def size(self) -> int | None:
        """Size of a head: declared, else the width divided by the heads."""
        if self.head_dim is not None or self.hidden_size is None or self.heads is None:
            return self.head_dim
        return self.hidden_size // self.heads if self.hidden_size % self.heads == 0 else None


def integer(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """Read the first of the keys that holds a positive whole number."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST:
            return value
    return None


def text(config: Mapping[str, Any], key: str) -> str | None:
    """Read a string."""
    value = config.get(key)
    return value if isinstance(value, str) else None


def boolean(config: Mapping[str, Any], key: str) -> bool | None:
    """Read true or false."""
    value = config.get(key)
    return value if isinstance(value, bool) else None


def read_settings(config: Any) -> tuple[Settings, ...]:
    """Read the whole config first, then its parts, outermost first."""
    return tuple(part for path, raw in _parts(config) for part in _read(path, raw))


def layer_counts(settings: Iterable[Settings]) -> LayerCounts:
    """Collect the numbers of layers that the parts speak of."""
    parts = list(settings)
    layers = frozenset(part.layers for part in parts if part.layers is not None)
    extra = (integer(part.raw, _EXTRA_LAYERS) for part in parts)
    return LayerCounts(layers, frozenset(count for count in extra if count is not None))


def vocabulary_sizes(settings: Iterable[Settings]) -> set[int]:
    """Collect the vocabulary sizes of the parts."""
    sizes = (integer(part.raw, ("vocab_size", "n_vocab", "padded_vocab_size")) for part in settings)
    return {size for size in sizes if size is not None}


def matching(settings: tuple[Settings, ...], stack: str, length: int, widths: frozenset[int]) -> Settings | None:
    """Find the part of the config that speaks of a stack.

    Args:
        settings: the parts.
        stack: the stack's prefix.
        length: its number of layers.
        widths: sizes that occur in its tensors.

    Returns:
        The part that fits best by width, then name, then number of layers, then by having heads; None where none
        fits in at least width or number of layers.
    """
    of_stack = kinds(stack)
    best: tuple[int, Settings] | None = None
    for part in settings:
        fits_width = part.hidden_size is not None and part.hidden_size in widths
        fits_length = part.layers == length
        if (part.hidden_size is not None and not fits_width) or not (fits_width or fits_length):
            continue
        score = 8 * fits_width + 6 * _agreement(of_stack, kinds(part.path)) + 4 * fits_length + (part.heads is not None)
        if best is None or score > best[0]:
            best = score, part
    return best[1] if best else None


def _parts(config: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Go through a config and the configs in it, breadth first."""
    waiting: list[tuple[str, Any, int]] = [("", config, 0)]
    for seen, (path, part, depth) in enumerate(waiting):
        if seen >= _MOST_PARTS:
            return
        if not isinstance(part, Mapping):
            continue
        yield path, part
        if depth < _DEEPEST:
            inside = ((key, value) for key, value in part.items() if isinstance(key, str))
            waiting += [(f"{path}.{key}" if path else key, v, depth + 1) for key, v in inside if isinstance(v, Mapping)]


def _read(path: str, raw: Mapping[str, Any]) -> Iterator[Settings]:
    whole = _settings(path, raw, "")
    yield whole
    for side in ("encoder", "decoder"):
        if integer(raw, (f"{side}_layers", f"num_{side}_layers", f"{side}_num_hidden_layers")) is not None:
            yield _settings(f"{path}.{side}" if path else side, raw, side)


def _settings(path: str, raw: Mapping[str, Any], side: str) -> Settings:
    """Read one part; `side` is "encoder" or "decoder" in a flat config of both, whose keys then come first."""
    sided = (f"{side}_layers", f"num_{side}_layers", f"{side}_num_hidden_layers") if side else ()
    # MPT and DBRX keep attention settings in a part of their own.
    attention = raw.get("attn_config")
    attention = attention if isinstance(attention, Mapping) else {}
    sided_heads = (f"{side}_attention_heads", f"{side}_num_attention_heads") if side else ()
    heads = integer(raw, (*sided_heads, *_HEADS))
    head_dim, value_head_dim = _head_dims(raw)
    return Settings(
        path=path,
        model_type=text(raw, "model_type"),
        layers=integer(raw, (*sided, *LAYER_KEYS))
        or (None if side else integer(raw, ("encoder_layers", "decoder_layers"))),
        hidden_size=integer(raw, ("embed_dim", *_HIDDEN) if "depth" in raw else _HIDDEN),
        heads=heads or (None if side else integer(raw, ("encoder_attention_heads", "decoder_attention_heads"))),
        kv_heads=(integer(raw, (f"{side}_num_key_value_heads",)) if side else None) or _kv_heads(raw, attention),
        head_dim=head_dim,
        value_head_dim=value_head_dim,
        raw=raw,
    )


def _kv_heads(raw: Mapping[str, Any], attention: Mapping[str, Any]) -> int | None:
    """Falcon and GPTBigCode say `multi_query`; Falcon's newer decoder counts its groups instead."""
    if boolean(raw, "multi_query") and not boolean(raw, "new_decoder_architecture"):
        return 1
    return integer(raw, _KV_HEADS) or integer(attention, _KV_HEADS)


def _head_dims(raw: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Multi-head latent attention has a part without and a part with rotation, and values of another size."""
    plain = integer(raw, _HEAD_DIM)
    nope, rope = integer(raw, ("qk_nope_head_dim",)), integer(raw, ("qk_rope_head_dim",))
    query = nope + rope if nope and rope else plain
    return query, integer(raw, ("v_head_dim",))


def kinds(path: str) -> frozenset[str]:
    """Say which kinds of model the words of a path speak of: vision, audio, text, encoder, decoder, …"""
    words = {token for part in path.split(".")[:32] for token in tokens(part)}
    return frozenset(kind for kind, spellings in _KINDS.items() if not words.isdisjoint(spellings))


def _agreement(stack: frozenset[str], part: frozenset[str]) -> int:
    """1 where names agree, -1 where they speak of different things, 0 where one of them says nothing."""
    if not stack or not part:
        return 0
    return 1 if stack & part else -1
