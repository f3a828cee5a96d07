"""Collecting what goes into a model's linear maps and comes out of its layers, by forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints.sources import Model
from cuvee.statistics.experts import as_stored, maps_of, watched
from cuvee.statistics.found import Statistics, checked
from cuvee.statistics.networks import layers_of, load_network
from cuvee.statistics.passes import MAX_TOKENS, Watch, hooked, run_texts
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["collect_gram", "collect_hidden", "summed_grams"]


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

    with hooked(layers, after=after):
        tokens = run_texts(network, model, texts, max_tokens, device, watch)
    tensors = {f"hidden/{name}": torch.stack(states) for name, states in found.items() if states}
    return checked(tensors, model, texts, tokens, max_tokens, {})


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

    Maps that are given one input (queries, keys and values; gate and up) share one. Those of experts are of the tokens that
    reach each, stacked as the experts are in the model, or one by one. All that is collected is in memory.

    Args:
        model, texts, max_tokens, device, watch: as for `collect_hidden`.
        only: patterns of the names of modules.

    Raises:
        IncompatibleModels: no linear map of the network has its weight under its name in the model.
        Others: as `collect_hidden`.
    """
    network = load_network(model, device=device)
    maps = maps_of(model, network, only)
    before, finished = summed_grams()
    with watched(maps, before=before):
        tokens = run_texts(network, model, texts, max_tokens, device, watch)
    tensors, shared = finished()
    of_experts, unreached = as_stored(tensors, "gram", maps.stacks, model)
    return checked(tensors, model, texts, tokens, max_tokens, shared | of_experts, unreached)


def summed_grams() -> tuple[Callable[[str, Tensor], None], Callable[[], tuple[dict[str, Tensor], dict[str, str]]]]:
    """Return what takes (name of a map, its input) at each pass, and what returns XᵀX / tokens of all, with shared names."""
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
        flat = given.detach().reshape(-1, given.shape[-1]).float()
        moment = flat.mT @ flat
        sums[name] = sums[name].add_(moment) if name in sums else moment.double()
        rows[name] = rows.get(name, 0) + len(flat)

    def finished() -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = {f"gram/{name}": (total / max(1, rows[name])).float().cpu() for name, total in sums.items()}
        return tensors, {f"gram/{name}": f"gram/{owner}" for name, owner in shared.items()}

    return before, finished
