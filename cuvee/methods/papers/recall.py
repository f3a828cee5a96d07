"""RECALL: layers averaged by how alike the models' hidden states are, on typical inputs of the newest task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cuvee.errors import MethodError
from cuvee.methods.calls import Call, current
from cuvee.methods.needs import collect_command
from cuvee.methods.pieces.combine import weighted_sum
from cuvee.methods.registry import NONE, WEIGHTS, Bound, Paper, merge_method
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

_FIRST = ("embedding", "position", "conditioning")


@merge_method(
    paper=Paper(
        "RECALL: REpresentation-aligned Catastrophic-forgetting ALLeviation via Hierarchical Model Merging",
        arxiv="2510.20479",
        year=2025,
    ),
    on=WEIGHTS,
    base=NONE,
    needs=("hidden",),
    arrays=True,
    cost="one pass; a forward pass of some twenty texts through every model beforehand",
    formula="s_i = mean_x exp(−‖h_i(x) − h_K(x)‖² / 2σ²), σ² the median of ‖h_K(x) − h_K(x′)‖², of each layer;  "
    "out = Σ softmax(s / temperature)_i · θ_i",
    differs="A reconstruction: the paper's abstract says that layers are merged by weights from hidden states of typical "
    "inputs of the new task, compared by a radial basis function; σ, the temperature, and what lies outside the layers "
    "(before them as the first, behind them as the last) are our choice.",
    status="reconstruction",
)
def recall(weights: Tensor, *, temperature: Annotated[float, Bound(0, open_low=True)] = 1.0) -> Tensor:
    """Average the models, the last of which is the newest, layer by layer: the more, the more alike they see its inputs.

    The statistic `hidden` of each model holds its states after every layer, (texts, width), on one file of texts:
    `cuvee collect typical NEWEST texts.txt typical.txt`, then `cuvee collect hidden MODEL typical.txt …` for each.

    Args:
        weights: (K, …), the newest last.
        temperature: of the softmax. Its likeness to itself is 1, so that the newest model never weighs less than another;
            towards infinity all weigh alike.

    Returns:
        (…); equal models give that model.

    Raises:
        MethodError: a model has no hidden states of this layer, or others than the newest has.
    """
    states = [_states(current(), k, len(weights)) for k in range(len(weights))]
    return weighted_sum(weights, _shares(states, temperature))


def _shares(states: Sequence[Tensor], temperature: float) -> list[float]:
    """Return the weight of each model in a layer, of its hidden states (texts, width); they sum to 1."""
    newest = states[-1]
    apart = torch.cdist(newest, newest).square()
    pairs = apart[torch.ones_like(apart).triu(1).bool()]
    median = float(pairs.median()) if len(pairs) else float(newest.square().sum(1).mean())
    distances = torch.stack([(one - newest).square().sum(1) for one in states])
    alike = torch.exp(-distances / (2 * max(median, torch.finfo(torch.float64).tiny))).mean(1)
    return torch.softmax(alike / temperature, 0).tolist()


def _states(call: Call, k: int, count: int) -> Tensor:
    """Return the hidden states of model k after the layer that a tensor belongs to, (texts, width) in float64."""
    prefix, newest = f"hidden/model{k}/", f"hidden/model{count - 1}/"
    layers = [key.removeprefix(newest) for key in call.statistics if key.startswith(newest)]
    if not layers:
        right = collect_command("hidden")
        raise MethodError("recall has no hidden states to compare models by", where=f"statistic {newest}…", right=right)
    key = prefix + layer_of(call.place.tensor, call.place.role, layers)
    if key not in call.statistics:
        right = "the same texts and layers for all"
        raise MethodError("this model has no hidden states", where=f"statistic {key}", right=right)
    states: Tensor = call.statistics[key].double()
    wanted = call.statistics[newest + key.removeprefix(prefix)].shape
    if states.dim() != 2 or states.shape != wanted or not states.numel():
        found = f"hidden states of shape {tuple(states.shape)}, and {tuple(wanted)} of the newest model"
        raise MethodError(found, where=f"statistic {key}", right="(texts, width), of the same texts for all")
    if not bool(torch.isfinite(states).all()):
        raise MethodError("hidden states with NaN or Inf", where=f"statistic {key}", right="collect them again")
    return states


def layer_of(tensor: str, role: str, layers: Sequence[str]) -> str:
    """Return the layer that a tensor belongs to; what lies in none is of the first or the last of its stack.

    Args:
        tensor: its name.
        role: what it is; embeddings stand before the layers.
        layers: names such as `model.layers.0`, at least one.
    """
    inside = [layer for layer in layers if tensor.startswith(f"{layer}.")]
    if inside:
        return max(inside, key=len)
    of_stack = [(_common(tensor, layer), layer) for layer in layers]
    deepest = max(depth for depth, _ in of_stack)
    stack = sorted((layer for depth, layer in of_stack if depth == deepest), key=_in_order)
    return stack[0] if role in _FIRST or "embed" in tensor else stack[-1]


def _common(tensor: str, layer: str) -> int:
    """Return how many parts of two names are the same, from the first on."""
    count = 0
    for one, other in zip(tensor.split("."), layer.split("."), strict=False):
        if one != other:
            break
        count += 1
    return count


def _in_order(layer: str) -> list[tuple[int, str]]:
    """Sort 10 behind 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in layer.split(".")]
