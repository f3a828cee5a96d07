"""From the words of a name, and the shape where words leave it open, to the role of a tensor."""

from __future__ import annotations

from enum import Enum

import cuvee.architectures.vocabulary as known
from cuvee.architectures.meaning import Role
from cuvee.architectures.names import module_of, number, tokens
from cuvee.architectures.surroundings import Surroundings, is_expert_word

__all__ = ["plain_word", "role_of"]


class _Context(Enum):
    """What the nearest telling word before a word is about."""

    ATTENTION = 1
    MLP = 2
    MIXER = 3
    NONE = 4


def role_of(parts: tuple[str, ...], rest: int, shape: tuple[int, ...], around: Surroundings) -> Role:
    """Find the role of a tensor.

    Args:
        parts: components of its name.
        rest: where its name within the layer begins; 0 for a tensor outside the blocks.
        shape: of this tensor.
        around: the model it belongs to.
    """
    if not parts:
        return Role.OTHER
    module = module_of(parts)
    leaf = parts[len(module) :]
    if leaf and leaf[-1] in known.NORM_STATISTICS:
        return Role.NORM_STATISTIC
    if _is_buffer(parts, shape):
        return Role.BUFFER
    role = _by_words(module, rest, around, shape, inside=rest > 0)
    if role is None and not rest:
        # Layers that no list counts: a prediction layer behind the last one, a few tensors without their model.
        role = _by_words(module, rest, around, shape, inside=True)
    return role if role is not None else _by_shape(module, leaf, around)


def _is_buffer(parts: tuple[str, ...], shape: tuple[int, ...]) -> bool:
    """Constants by name, and the causal mask (1, 1, n, n) that GPT-2 and GPT-NeoX files call `attn.bias`."""
    last = parts[-1].lower() if parts else ""
    if last in known.BUFFERS or (len(parts) > 1 and parts[-2].lower() in ("rotary_emb", "rotary_pos_emb")):
        return True
    return last == "bias" and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _by_words(
    module: tuple[str, ...], rest: int, around: Surroundings, shape: tuple[int, ...], inside: bool
) -> Role | None:
    """Read the module's words from the last to the first; the first one that is known decides."""
    words = [(i, plain_word(part)) for i, part in enumerate(module) if i >= rest and number(part) is None]
    plain = [word for _, word in words]
    is_numbered = inside and number(module[-1]) is not None
    if is_numbered and _context(plain, module, around) is _Context.MLP and (role := _in_sequence(module, around)):
        return role
    for k in range(len(words) - 1, -1, -1):
        place, word = words[k]
        before = plain[:k]
        path = module[: place + 1]
        role = _anywhere(word, before, plain, shape, around.weight_of(module))
        if role is None and (inside or _context(before, path, around) is _Context.ATTENTION):
            role = _in_layer(word, before, path, module, around)
        if role is None and not inside:
            role = _outside(word, plain[k + 1 :], around, around.weight_of(module) or shape)
        if role is not None:
            return role
    return None


def plain_word(part: str) -> str:
    """Lower case, without the `_weight` or `_bias` of a bare parameter: `in_proj_weight`, `gate_up_proj_bias`."""
    lowered = part.lower()
    if lowered in known.POSITIONS or lowered in known.MIXER_MARKS or lowered in known.IN_LAYER:
        return lowered
    for suffix in ("_weight", "_bias"):
        if lowered.endswith(suffix) and len(lowered) > len(suffix):
            return lowered[: -len(suffix)]
    return lowered


def _context(before: list[str], path: tuple[str, ...], around: Surroundings) -> _Context:
    """Find what a word is about: a parent with a mixer's parameters, else the nearest telling word before it."""
    if ".".join(path[:-1]) in around.mixers:
        return _Context.MIXER
    for word in reversed(before):
        if word in known.MIXER_WORDS:
            return _Context.MIXER
        if word.rstrip("0123456789") in known.MLP_WORDS:
            return _Context.MLP
        if _is_attention(word):
            return _Context.ATTENTION
    # Experts are MLPs, but for those of JetMoE's attention.
    return _Context.MLP if any(is_expert_word(word) for word in before) else _Context.NONE


def _is_attention(word: str) -> bool:
    return any(token in known.ATTENTION_WORDS or token.endswith("attention") for token in tokens(word))


def _is_norm(word: str) -> bool:
    return "norm" in word or not known.NORM_TOKENS.isdisjoint(tokens(word))


def _anywhere(
    word: str,
    before: list[str],
    plain: list[str],
    shape: tuple[int, ...],
    weight: tuple[int, ...] | None,
) -> Role | None:
    """Roles that a word has inside and outside of layers."""
    if before and _is_norm(before[-1]) and (word.rstrip("0123456789") in ("linear", "dense") or word == "lin"):
        return Role.CONDITIONING
    if _is_norm(word):
        return Role.NORM
    if word in ("gamma", "beta") and before and _is_norm(before[-1]):
        return Role.NORM
    if word in known.LAYER_SCALES:
        return Role.LAYER_SCALE
    if word in known.BUFFERS:
        return Role.BUFFER
    if word in known.CONDITIONING:
        return Role.CONDITIONING
    words = tokens(word)
    if word in known.POSITIONS or not known.POSITION_TOKENS.isdisjoint(words):
        return Role.POSITION
    if len(weight or shape) >= 3 and any(token.startswith("conv") for token in words):
        return Role.EMBEDDING if any("patch" in tokens(other) for other in plain) else Role.CONV
    return None


def _in_layer(
    word: str, before: list[str], path: tuple[str, ...], module: tuple[str, ...], around: Surroundings
) -> Role | None:
    """Roles that a word has inside a layer, or in attention anywhere."""
    context = _context(before, path, around)
    if around.has(path, "receptance"):
        return _rwkv(word, before)
    if word in known.ROUTERS and ".".join(path[:-1]) in around.routed:
        return Role.ROUTER
    if context is _Context.MIXER:
        return _in_mixer(word)
    if context is _Context.ATTENTION:
        return known.IN_ATTENTION.get(word) or _attention_only(known.IN_LAYER.get(word))
    if before and (pair := known.PAIRS.get((before[-1], word))):
        return pair
    if word == "ffn" and around.has(path, "ffn_output"):
        return Role.MLP_UP
    if context is _Context.MLP:
        return _in_mlp(word, path, module, around)
    return _checked(known.IN_LAYER.get(word), path, around)


def _rwkv(word: str, before: list[str]) -> Role:
    """RWKV calls the parts of both its mixers key, value and receptance."""
    if "feed_forward" in before or "ffn" in before:
        return {"key": Role.MLP_UP, "value": Role.MLP_DOWN}.get(word, Role.MIXER)
    return Role.MIXER


def _in_mixer(word: str) -> Role:
    return known.IN_LAYER.get(word, Role.MIXER)


def _attention_only(role: Role | None) -> Role | None:
    """`gate_proj` of an attention output gate is no MLP."""
    return role if role is None or role.startswith("attention") or role is Role.ROUTER else Role.OTHER


def _in_mlp(word: str, path: tuple[str, ...], module: tuple[str, ...], around: Surroundings) -> Role | None:
    if word == "gate":
        return Role.MLP_GATE if around.has(path, "up", "down", "up_proj", "down_proj") else Role.OTHER
    if word == "w2" and around.has(path, "c_proj"):
        return Role.MLP_GATE
    if word in ("w1", "w3", "expert_w1", "expert_w3", "expert_v1", "expert_w2"):
        return _numbered_mlp(word, path, around)
    role = known.IN_MLP.get(word) or known.IN_LAYER.get(word)
    if role is not None and role.startswith("attention"):
        return None
    if role is None or word == "proj":
        sequential = _in_sequence(module, around)
        role = sequential or role
    return _checked(role, path, around)


def _numbered_mlp(word: str, path: tuple[str, ...], around: Surroundings) -> Role:
    """w1, w2, w3: Llama's w3 is the up projection and w1 the gate; without a third, w1 is the up projection.

    MegaBlocks' w1 and v1 are gate and up.
    """
    if word.endswith("w2"):
        return Role.MLP_DOWN
    if word.endswith("w3"):
        return Role.MLP_DOWN if around.has(path, "w12") else Role.MLP_UP
    if word.endswith("v1"):
        return Role.MLP_UP
    stem = word[:-2]
    gated = around.has(path, f"{stem}w3", f"{stem}v1", f"{stem}v1.0")
    return Role.MLP_GATE if gated else _checked(Role.MLP_UP, path, around) or Role.MLP_UP


def _in_sequence(module: tuple[str, ...], around: Surroundings) -> Role | None:
    """`mlp.0` and `mlp.2`, `ff.net.0.proj` and `ff.net.2`: the first of two matrices goes up and the second down."""
    for place in (len(module) - 1, len(module) - 2):
        index = number(module[place]) if place > 0 else None
        if index is None:
            continue
        siblings = around.sequences.get(".".join(module[:place]), set())
        if len(siblings) != 2:
            return None
        if index != min(siblings):
            return Role.MLP_DOWN
        up, down = around.weight_of(module), around.weight_of((*module[:place], str(max(siblings))))
        is_fused = up is not None and down is not None and len(up) == len(down) == 2 and up[0] == 2 * down[1]
        return Role.MLP_GATE_UP if is_fused else Role.MLP_UP
    return None


# Words that mean an up projection only where its down projection fits: Flux's `linear1` holds q, k and v as well.
_VAGUE = frozenset({"linear1", "linear_1", "w1"})
_DOWN_OF = {
    "fc1": ("fc2",),
    "linear1": ("linear2",),
    "linear_1": ("linear_2",),
    "wi": ("wo",),
    "w1": ("w2", "c_proj"),
    "dense_h_to_4h": ("dense_4h_to_h",),
    "ff_proj": ("ff_out",),
    "input_linear": ("output_linear",),
    "weights_in": ("weights_out",),
    "up_proj": ("down_proj",),
    "c_fc": ("c_proj",),
}


def _checked(role: Role | None, path: tuple[str, ...], around: Surroundings) -> Role | None:
    """Hold an up projection against its down projection: twice as many rows as that has columns is gate and up."""
    if role is not Role.MLP_UP:
        return role
    up = around.weight_of(path) or around.shapes.get(".".join(path))
    if up is None or len(up) < 2:
        return role
    for word in _DOWN_OF.get(plain_word(path[-1]), ()):
        for spelling in (word, word.capitalize()):
            down = around.sibling(path, spelling)
            if down is not None and len(down) == len(up):
                by_widths = _by_widths(up, down)
                return role if by_widths is Role.OTHER and plain_word(path[-1]) not in _VAGUE else by_widths
    return role


def _by_widths(up: tuple[int, ...], down: tuple[int, ...]) -> Role:
    """Compare in the layout (…, out, in), and where that does not fit in (…, in, out)."""
    for out, into in ((-2, -1), (-1, -2)):
        if up[into] == down[out]:
            if up[out] == down[into]:
                return Role.MLP_UP
            if up[out] == 2 * down[into]:
                return Role.MLP_GATE_UP
    return Role.OTHER


def _outside(word: str, after: list[str], around: Surroundings, shape: tuple[int, ...]) -> Role | None:
    """Roles of tensors outside the blocks."""
    words = tokens(word)
    if word in known.HEADS:
        return Role.HEAD
    if word in known.PROJECTORS:
        return Role.PROJECTOR
    if word in known.POOLERS:
        return Role.POOLER
    is_last = known.TRANSPARENT.issuperset(after)
    if word in known.PLAIN_HEADS and is_last and len(shape) in (1, 2) and shape[0] in around.vocabulary_sizes:
        return Role.HEAD
    if word in known.TASK_HEADS and is_last:
        # ModernBERT's `head.dense` leads to its `decoder`.
        return Role.HEAD if after and around.has((word,), "decoder") else Role.TASK_HEAD
    if not known.TASK_HEAD_TOKENS.isdisjoint(words):
        return Role.TASK_HEAD
    if word in known.EMBEDDINGS or not known.EMBEDDING_TOKENS.isdisjoint(words):
        return Role.EMBEDDING
    return None


def _by_shape(module: tuple[str, ...], leaf: tuple[str, ...], around: Surroundings) -> Role:
    """Without a telling word: a module whose weight is a vector is a norm, one with a kernel a convolution."""
    weight = around.weight_of(module)
    if leaf[-1:] not in (("weight",), ("bias",)) or weight is None:
        return Role.OTHER
    if len(weight) in (4, 5):
        return Role.CONV
    word = module[-1].lower() if module else ""
    is_gain = len(weight) == 1 and weight[0] > 1 and not word.endswith(("relu", "act", "scale"))
    return Role.NORM if is_gain else Role.OTHER
