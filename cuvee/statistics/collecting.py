"""Collecting: texts run through a model one by one, and what goes into its linear maps and comes out of its layers.

One text at a time, so that there is no padding to be left out.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cuvee.checkpoints import fs
from cuvee.checkpoints.safetensors_format import lay_out
from cuvee.checkpoints.sources import Model
from cuvee.engine.given import SHARED, TEXTS
from cuvee.errors import CheckpointError, IncompatibleModels, RecipeError, printable
from cuvee.statistics.networks import layers_of, load_network, load_words
from cuvee.statistics.texts import digest_of_texts
from cuvee.tensors.dtypes import DTYPES
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MAX_TOKENS", "Statistics", "collect_gram", "collect_hidden"]

MAX_TOKENS = 512
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Statistics:
    """What data say of one model, as a file of statistics holds it.

    Attributes:
        tensors: name -> float32, such as `gram/<module>` (inputs, inputs), `hidden/<layer>` (texts, width).
        shared: a name -> the one of `tensors` that it means too.
        texts: how many they were collected on.
        tokens: in all of them.
        digest: of the texts.
    """

    tensors: Mapping[str, Tensor]
    texts: int
    tokens: int
    digest: str
    shared: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write them as a safetensors file, complete or not at all.

        Raises:
            OSError: the disk refuses.
        """
        metadata = {TEXTS: self.digest, SHARED: json.dumps(self.shared), "tokens": str(self.tokens)}
        layout = lay_out({name: (DTYPES["F32"], tuple(t.shape)) for name, t in self.tensors.items()}, metadata)
        made = path.with_name(f".{path.name}.cuvee")
        fs.remove_tree(made)
        try:
            fd = fs.create(made)
            try:
                fs.pwrite(fd, layout.header, 0)
                for name, tensor in self.tensors.items():
                    fs.pwrite(fd, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, layout.offsets[name])
                fs.fsync(fd)
            finally:
                fs.close(fd)
            fs.rename(made, path)
        finally:
            fs.remove_tree(made)
        fs.fsync_folder(path.parent)


def collect_hidden(
    model: Model, texts: Sequence[str], *, max_tokens: int = MAX_TOKENS, device: str = "cpu", watch: Watch | None = None
) -> Statistics:
    """Return the hidden states after every layer, the mean over the tokens of each text: `hidden/<layer>`, (texts, width).

    Args:
        model: with config.json and a tokenizer, such as `cuvee.open_model` opens.
        texts: shown in this order.
        max_tokens: of each text, from its beginning.
        device: "cpu" or "cuda".
        watch: told how many texts are done, of all.

    Raises:
        ResourceError: transformers is not installed.
        IncompatibleModels: transformers does not load the model, or it has no layers.
        CheckpointError: it has no tokenizer, or computes NaN.
        RecipeError: a text has no tokens.
    """
    network = load_network(model, device=device)
    layers = layers_of(model, network)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def after(name: str, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found[name].append(states.reshape(-1, states.shape[-1]).double().mean(0).float().cpu())

    with _hooked(layers, after=after):
        tokens = _run(network, model, texts, max_tokens, device, watch)
    tensors = {f"hidden/{name}": torch.stack(states) for name, states in found.items() if states}
    return _checked(tensors, model, texts, tokens, max_tokens, {})


def collect_gram(
    model: Model,
    texts: Sequence[str],
    *,
    only: Sequence[str] = ("*",),
    max_tokens: int = MAX_TOKENS,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Statistics:
    """Return XᵀX / tokens of the inputs of every linear map, `gram/<module>`, (inputs, inputs), summed in float64.

    Maps that are given one input (queries, keys and values; gate and up) share one. All that is collected is in memory.

    Args:
        model, texts, max_tokens, device, watch: as for `collect_hidden`.
        only: patterns of the names of modules.

    Raises:
        IncompatibleModels: no linear map of the network has its weight under its name in the model.
        Others: as `collect_hidden`.
    """
    network = load_network(model, device=device)
    maps = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and f"{name}.weight" in model.tensors
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in only)
    }
    if not maps:
        right = 'a model of torch.nn.Linear under the names of its weights; or another pattern, such as "*.mlp.*"'
        raise IncompatibleModels("the network has no such linear maps", where=model.label, right=right)
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    shared: dict[str, str] = {}
    last: list[Any] = [None, ""]  # the input that was given last, and to which map

    def before(name: str, given: Tensor) -> None:
        if name in shared:
            return
        if given is last[0] and name not in sums:
            shared[name] = last[1]
            return
        last[:] = [given, name]
        flat = given.reshape(-1, given.shape[-1]).float()
        moment = flat.mT @ flat
        sums[name] = sums[name].add_(moment) if name in sums else moment.double()
        rows[name] = rows.get(name, 0) + len(flat)

    with _hooked(maps, before=before):
        tokens = _run(network, model, texts, max_tokens, device, watch)
    tensors = {f"gram/{name}": (total / max(1, rows[name])).float().cpu() for name, total in sums.items()}
    return _checked(tensors, model, texts, tokens, max_tokens, {f"gram/{n}": f"gram/{of}" for n, of in shared.items()})


@contextmanager
def _hooked(
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


def _run(
    network: nn.Module, model: Model, texts: Sequence[str], max_tokens: int, device: str, watch: Watch | None
) -> int:
    """Show a network the texts, and return how many tokens they had."""
    embedding: Any = cast(Any, network).get_input_embeddings()
    words = load_words(model, "a forward pass over texts")
    said = getattr(network.config, "max_position_embeddings", None)
    most = min(max_tokens, said) if isinstance(said, int) and said > 0 else max_tokens
    total = 0
    with torch.inference_mode():
        for number, text in enumerate(texts):
            ids = _ids(words, text, number, most)
            if max(ids) >= embedding.num_embeddings:
                found = f"the tokenizer gives token {max(ids)}, which the model has no embedding for"
                raise CheckpointError(found, where=model.label, right="the tokenizer that belongs to the model")
            network(input_ids=torch.tensor([ids], device=device))
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


def _checked(
    tensors: Mapping[str, Tensor],
    model: Model,
    texts: Sequence[str],
    tokens: int,
    max_tokens: int,
    shared: Mapping[str, str],
) -> Statistics:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            found = f"the model computes NaN or Inf: {name}"
            raise CheckpointError(found, where=model.label, right="a model that works; cuvee inspect shows its tensors")
    return Statistics(tensors, len(texts), tokens, digest_of_texts(texts, max_tokens), shared)
