"""Passes of texts through a network, one by one, so that there is no padding to be left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from cuvee.checkpoints.sources import Model
from cuvee.errors import CheckpointError, RecipeError, printable
from cuvee.statistics.networks import load_words
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MAX_TOKENS", "Watch", "hooked", "run_texts"]

MAX_TOKENS = 512
Watch = Callable[[int, int], None]


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    *,
    before: Callable[[str, Tensor], None] | None = None,
    after: Callable[[str, Any], None] | None = None,
) -> Iterator[None]:
    """Tell what goes into modules, and what comes out, while this lasts."""
    handles = []
    for name, module in modules.items():

        def enter(_: nn.Module, inputs: Any, named: Any, name: str = name) -> None:
            assert before is not None
            before(name, inputs[0] if inputs else named["input"])

        def leave(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            assert after is not None
            after(name, output)

        handles += [module.register_forward_pre_hook(enter, with_kwargs=True)] if before else []
        handles += [module.register_forward_hook(leave)] if after else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_texts(
    network: nn.Module,
    model: Model,
    texts: Sequence[str],
    max_tokens: int,
    device: str,
    watch: Watch | None,
    show: Callable[[Tensor], object] | None = None,
) -> int:
    """Show a network the texts, and return how many tokens they had.

    Args:
        show: what is done with the ids of each text, (1, tokens), instead of a forward pass.
    """
    embedding: Any = cast(Any, network).get_input_embeddings()
    words = load_words(model, "a forward pass over texts")
    said = getattr(network.config, "max_position_embeddings", None)
    most = min(max_tokens, said) if isinstance(said, int) and said > 0 else max_tokens
    total = 0
    with contextlib.nullcontext() if show else torch.inference_mode():
        for number, text in enumerate(texts):
            ids = _ids(words, text, number, most)
            if max(ids) >= embedding.num_embeddings:
                found = f"the tokenizer gives token {max(ids)}, which the model has no embedding for"
                raise CheckpointError(found, where=model.label, right="the tokenizer that belongs to the model")
            given = torch.tensor([ids], device=device)
            if show:
                show(given)
            else:
                network(input_ids=given)
            total += len(ids)
            if watch:
                watch(number + 1, len(texts))
    return total


def _ids(words: Any, text: str, number: int, most: int) -> list[int]:
    try:
        ids = [int(one) for one in words(text)["input_ids"][:most]]
    except Exception as error:  # a tokenizer raises whatever a text makes it raise, such as half a surrogate pair
        found = f"text {number} cannot be tokenized: {type(error).__name__}: {printable(str(error))[:200]}"
        raise RecipeError(found, right="plain text") from None
    if not ids:
        raise RecipeError(f"text {number} has no tokens", right="a text with some words")
    return ids
