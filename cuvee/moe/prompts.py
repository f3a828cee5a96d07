"""Prompts as token ids, by the base model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cuvee.checkpoints.sidecars import sidecars_of
from cuvee.checkpoints.sources import Model
from cuvee.errors import CheckpointError, RecipeError, printable
from cuvee.moe.config import MoeConfig
from cuvee.statistics.networks import load_words, need_transformers
from cuvee.tokenizers.reading import read_tokenizer

__all__ = ["PromptList", "prompt_lists", "tokenize_prompts", "words_of"]

PromptList = tuple[int, bool]
"""Which prompts: the entry's number, and whether they are its positive ones."""


def prompt_lists(config: MoeConfig) -> dict[PromptList, tuple[str, ...]]:
    """Return the prompts that make gates: of the experts, and of shared experts that have any."""
    lists: dict[PromptList, tuple[str, ...]] = {}
    for number, entry in enumerate(config.entries):
        for is_positive, prompts in zip((True, False), entry.prompts, strict=True):
            if prompts and entry.positive_prompts:
                lists[number, is_positive] = prompts
    return lists


def tokenize_prompts(
    lists: Mapping[PromptList, Sequence[str]], base: Model, vocabulary: int
) -> tuple[dict[PromptList, list[list[int]]], int]:
    """Return each prompt's token ids, after the tokenizer's beginning-of-sequence token if it has one, and a padding id.

    No other special tokens are added: what a prompt should hold, chat markers say, it says itself.

    Raises:
        ResourceError: transformers is not installed.
        CheckpointError: the base has no tokenizer, or one for a larger vocabulary.
        RecipeError: a prompt comes out without tokens.
    """
    need_transformers("a gate made of prompts", "moe")
    tokenizer = load_words(base, "a gate made of prompts", "gate_mode: random")
    begin = tokenizer.bos_token or ""
    ids = {key: [_ids(tokenizer, begin + prompt, key) for prompt in prompts] for key, prompts in lists.items()}
    for (number, is_positive), index, row in _rows(ids):
        if not row:
            key = "positive_prompts" if is_positive else "negative_prompts"
            raise RecipeError(
                f"prompt {index} of {key} of expert {number} has no tokens", right="a prompt with some text"
            )
        if max(row) >= vocabulary:
            raise CheckpointError(
                f"the tokenizer gives token {max(row)}, and the embedding of {base.label!r} has {vocabulary} rows",
                where=str(base.folder),
                right="the tokenizer that belongs to the base",
            )
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    return ids, next(token for token in known if token is not None and token < vocabulary)


def words_of(model: Model) -> Mapping[str, int]:
    """Return the ids of a model's tokens by their text; empty where nothing is known of them."""
    try:
        tokenizer = read_tokenizer(sidecars_of(model)[0], model.label)
    except CheckpointError:
        return {}
    return tokenizer.vocabulary if tokenizer else {}


def _rows(ids: Mapping[PromptList, list[list[int]]]) -> Iterator[tuple[PromptList, int, list[int]]]:
    for key, rows in ids.items():
        for index, row in enumerate(rows):
            yield key, index, row


def _ids(tokenizer: Any, text: str, of: PromptList) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # a tokenizer raises whatever a text makes it raise, such as half a surrogate pair
        raise RecipeError(
            f"a prompt of expert {of[0]} cannot be tokenized: {type(error).__name__}: {printable(str(error))[:200]}",
            right="a prompt of plain text",
        ) from None
