"""Whether a model's output head is its input embedding: one tensor in the file, two uses in the model."""

from __future__ import annotations

from typing import Any, NamedTuple

from cuvee.checkpoints.sources import Model

__all__ = ["Tie", "has_vocabulary_rows", "tie_of", "untied_config"]

_EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"})


def has_vocabulary_rows(name: str) -> bool:
    """True for embeddings and heads, whose rows are the vocabulary."""
    return any(part in _EMBEDDINGS or part == "lm_head" for part in name.split(".")[-2:])


class Tie(NamedTuple):
    """The tensor that a tied model stores, and what its head would be called as a tensor of its own."""

    embedding: str
    head: str


def tie_of(model: Model) -> Tie | None:
    """Return the tie of a model, None where head and embedding are two tensors, or where it cannot be told."""
    embeddings = [
        name
        for name, tensor in model.tensors.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and name.split(".")[-2] in _EMBEDDINGS
    ]
    if len(embeddings) != 1 or not _is_tied(model.config or {}):
        return None
    is_nested = embeddings[0].startswith("language_model.model.")
    head = "language_model.lm_head.weight" if is_nested else "lm_head.weight"
    return None if head in model.tensors else Tie(embeddings[0], head)


def _is_tied(config: dict[str, Any]) -> bool:
    text = config.get("text_config")
    parts = [config, *([text] if isinstance(text, dict) else [])]
    said = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    if said:
        return any(value is True for value in said)
    # a language model without a head of its own is tied, whatever its class's default
    architectures = config.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    return any(name.endswith(("CausalLM", "ConditionalGeneration")) for name in names)


def untied_config(config: dict[str, Any] | None) -> dict[str, Any]:
    """Return config.json for a model whose head is a tensor of its own."""
    untied = {**(config or {}), "tie_word_embeddings": False}
    text = untied.get("text_config")
    if isinstance(text, dict) and "tie_word_embeddings" in text:
        untied["text_config"] = {**text, "tie_word_embeddings": False}
    return untied
