"""Tied weights: names that stand for one tensor, whether a file stores it once or twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cuvee.architectures.configs import boolean, text
from cuvee.architectures.hints import HEAD_NAMES, TIED_BY_DEFAULT
from cuvee.architectures.meaning import Role
from cuvee.architectures.names import read_name
from cuvee.architectures.vocabulary import TOKEN_EMBEDDINGS

__all__ = ["find_tied"]

Shapes = Mapping[str, tuple[int, ...]]

_PARTS = ("text_config", "language_config", "llm_config", "decoder", "text_encoder", "thinker_config")
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_CONDITIONAL = ("ForConditionalGeneration", "WithLMHead")


def find_tied(shapes: Shapes, roles: Mapping[str, Role], config: Any, stacks: Iterable[str]) -> dict[str, str]:
    """Find the aliases: {name: the tensor that it is tied to}, the latter always one of `shapes`.

    Three ties exist: encoder and decoder share `shared.weight`; the language-model head is the input embedding
    where the config says so, or its family's default, or where a language model has no head of its own; the bias of
    BERT's decoder is the bias beside it. An alias that the file leaves out is listed too: another file may store it.

    Args:
        shapes: the model's tensors.
        roles: of the embeddings and heads among them.
        config: config.json, or None.
        stacks: prefixes of the layer lists.
    """
    embeddings = [n for n, role in roles.items() if role is Role.EMBEDDING and _is_input_embedding(n, shapes)]
    heads = [n for n, role in roles.items() if role is Role.HEAD]
    tied = _shared_embeddings(embeddings, shapes, list(stacks))
    sources = [name for name in embeddings if name not in tied]
    tied.update(_tied_heads(heads, sources, shapes, config if isinstance(config, Mapping) else {}, list(stacks)))
    tied.update(_decoder_biases(heads, shapes))
    return tied


def _is_input_embedding(name: str, shapes: Shapes) -> bool:
    parts = read_name(name).parts
    is_weight = len(parts) >= 2 and parts[-1] == "weight" and parts[-2].lower() in TOKEN_EMBEDDINGS
    return is_weight and len(shapes[name]) == 2


def _shared_embeddings(embeddings: list[str], shapes: Shapes, stacks: list[str]) -> dict[str, str]:
    """`encoder.embed_tokens` and `decoder.embed_tokens` are `shared`, wherever that exists (T5, BART)."""
    tied: dict[str, str] = {}
    for shared in (name for name in embeddings if read_name(name).parts[-2] == "shared"):
        prefix = shared.removesuffix("shared.weight")
        sides = (f"{prefix}{side}." for side in ("encoder", "decoder"))
        names = [f"{side}embed_tokens.weight" for side in sides if any(stack.startswith(side) for stack in stacks)]
        names += [name for name in embeddings if name.startswith(prefix) and name.endswith(".embed_tokens.weight")]
        tied.update({name: shared for name in names if shapes.get(name, shapes[shared]) == shapes[shared]})
    return tied


def _tied_heads(
    heads: list[str], embeddings: list[str], shapes: Shapes, config: Mapping[str, Any], stacks: list[str]
) -> dict[str, str]:
    declared = _is_tied(config)
    if declared is False:
        return {}
    weights = [name for name in heads if name.endswith(".weight") and len(shapes[name]) == 2]
    if not embeddings:
        return _missing_embedding(weights, stacks) if declared else {}
    if declared and (matches := _matches(weights, embeddings, shapes)):
        return matches
    is_whole = any(shapes[head][0] == shapes[name][0] for head in weights for name in embeddings)
    if is_whole or not _is_language_model(config, declared):
        return {}
    source = _preferred(embeddings, "")
    alias = _head_name(source, config)
    return {} if alias in shapes else {alias: source}


def _is_tied(config: Mapping[str, Any]) -> bool | None:
    """Read `tie_word_embeddings` from the config, else from its text part, else take the family's default.

    None where none of them says anything, and where only the text part says that it is tied.
    """
    parts = [part for key in _PARTS if isinstance(part := config.get(key), Mapping)]
    said = boolean(config, "tie_word_embeddings")
    inside = [value for part in parts if (value := boolean(part, "tie_word_embeddings")) is not None]
    if said is not None:
        return None if inside and any(inside) and not said else said
    if inside:
        return any(inside)
    return True if any(text(part, "model_type") in TIED_BY_DEFAULT for part in (config, *parts)) else None


def _is_language_model(config: Mapping[str, Any], declared: bool | None) -> bool:
    """True where the config names a class with a head; of masked models, one whose head's name is known."""
    classes = config.get("architectures")
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    endings = [*_CAUSAL, *(_CONDITIONAL if declared else ())]
    if declared and text(config, "model_type") in HEAD_NAMES:
        endings += ["ForMaskedLM", "ForPreTraining"]
    return any(name.endswith(tuple(endings)) for name in names)


def _matches(heads: list[str], embeddings: list[str], shapes: Shapes) -> dict[str, str]:
    found: dict[str, str] = {}
    for head in heads:
        alike = [name for name in embeddings if shapes[name] == shapes[head]]
        if alike:
            found[head] = _preferred(alike, head)
    return found


def _preferred(embeddings: list[str], head: str) -> str:
    """Take the embedding that shares the longest path with the head; among equals `shared`, then a decoder's."""
    path = read_name(head).parts

    def rank(name: str) -> tuple[int, bool, bool]:
        parts = read_name(name).parts
        common = next((i for i, (a, b) in enumerate(zip(parts, path, strict=False)) if a != b), 0)
        return common, "shared" in parts, "decoder" in parts

    return max(embeddings, key=rank)


def _head_name(embedding: str, config: Mapping[str, Any]) -> str:
    """Name the head beside the innermost `model.` of the embedding: `language_model.model.embed_tokens.weight` has
    `language_model.lm_head.weight`, and so has `model.embed_tokens.weight` its `lm_head.weight`."""
    parts = read_name(embedding).parts
    model = len(parts) - 1 - parts[::-1].index("model") if "model" in parts else 0
    name = HEAD_NAMES.get(text(config, "model_type") or "", "lm_head.weight")
    return ".".join((*parts[:model], name))


def _missing_embedding(heads: list[str], stacks: list[str]) -> dict[str, str]:
    """A file that kept the head and left out the embedding."""
    inner = [stack for stack in stacks if stack.endswith("model.layers")]
    if len(heads) != 1 or len(inner) != 1:
        return {}
    return {f"{inner[0].removesuffix('layers')}embed_tokens.weight": heads[0]}


def _decoder_biases(heads: list[str], shapes: Shapes) -> dict[str, str]:
    """`cls.predictions.decoder.bias` is `cls.predictions.bias`, `lm_head.decoder.bias` is `lm_head.bias`."""
    tied: dict[str, str] = {}
    for name in heads:
        stem, found, end = name.rpartition(".decoder.bias")
        if found and not end and shapes.get(f"{stem}.bias") == shapes[name]:
            tied[name] = f"{stem}.bias"
    return tied
