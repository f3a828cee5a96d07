"""Functional dual anchors (FDA): inputs at which the gradient of a layer points along a task vector, and training on them.

A layer is a function of its parameters and inputs, `layer({name: tensor}, inputs)`; what is learned never touches a module.
X is (anchors, tokens, width). The construction differentiates twice, so attention must be plain products and softmax.

Source: Model Merging with Functional Dual Anchors, arXiv 2510.21223; official code construct_fda.py and adapt.py, as read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cuvee.errors import MethodError
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Adapted", "Anchors", "Loss", "Start", "adapt", "construct_anchors", "mismatch", "start_of_anchors"]

Parameters = Mapping[str, "Tensor"]
Layer = Callable[[Parameters, "Tensor"], "Tensor"]
Start = Literal["weights", "gauss"]
Loss = Literal["cosine", "mse"]
_GAUSS = 0.01


@dataclass(frozen=True)
class Anchors:
    """The anchors of one expert at one layer.

    Attributes:
        inputs: (anchors, tokens, width).
        cosines: of the gradient with the task vector, the mean over the parameters, at every step; that of `inputs` is
            the largest.
    """

    inputs: Tensor
    cosines: Sequence[float]


@dataclass(frozen=True)
class Adapted:
    """A layer that was trained on anchors.

    Attributes:
        parameters: name -> tensor.
        losses: the mismatch on all anchors, before the first epoch and after each.
    """

    parameters: Parameters
    losses: Sequence[float]


def start_of_anchors(expert: Parameters, shape: tuple[int, int, int], start: Start, seed: int) -> Tensor:
    """Return where anchors begin, float32.

    Args:
        expert: the layer's parameters.
        shape: (anchors, tokens, width).
        start: weights: rows of its matrices of that width, in random order, each once; what is still missing is the mean
            of two random rows. gauss: normal draws times 0.01.
        seed: of the draws.

    Raises:
        MethodError: no matrix has rows of that width.
    """
    draws = torch.Generator().manual_seed(seed)
    count, width = shape[0] * shape[1], shape[2]
    if start == "gauss":
        return _GAUSS * torch.randn(shape, generator=draws)
    matrices = [tensor.float().cpu() for tensor in expert.values() if tensor.dim() == 2 and tensor.shape[1] == width]
    if not matrices:
        raise MethodError(f"no matrix of this layer has rows of {width} elements", right="start: gauss")
    rows = torch.cat(matrices)
    found = rows[torch.randperm(len(rows), generator=draws)[:count]]
    pairs = torch.randint(len(rows), (2, count - len(found)), generator=draws)
    return torch.cat([found, (rows[pairs[0]] + rows[pairs[1]]) / 2]).reshape(shape)


def construct_anchors(
    layer: Layer, base: Parameters, expert: Parameters, start: Tensor, *, steps: int = 1200, learning_rate: float = 1e-2
) -> Anchors:
    """Learn inputs at which raising the agreement of base and expert moves the base along the task vector.

    φ(X) is the mean cosine of the outputs of base and expert, g its gradient by the base's parameters. AdamW lowers
    Σ (1 − cos(g_p, expert_p − base_p)) over the parameters that the expert has moved; the best X is kept.

    Args:
        layer: differentiable twice.
        base, expert: its parameters, float32 on one device.
        start: (anchors, tokens, width).

    Returns:
        As many anchors as `start` has. Where the expert has moved nothing, `start` itself and no cosines.
    """
    deltas = {name: expert[name] - base[name] for name in base if bool((expert[name] != base[name]).any())}
    if not deltas:
        return Anchors(start, ())
    moved = {name: base[name].detach().clone().requires_grad_() for name in deltas}
    inputs = start.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([inputs], lr=learning_rate)
    best, cosines = inputs.detach().clone(), list[float]()
    for step in range(steps + 1):
        agreement = _cosine(layer({**base, **moved}, inputs), layer(expert, inputs)).mean()
        gradients = torch.autograd.grad(agreement, list(moved.values()), create_graph=True)
        along = torch.stack(
            [_cosine(g.flatten(), d.flatten()) for g, d in zip(gradients, deltas.values(), strict=True)]
        )
        cosines.append(float(along.detach().mean()))
        if cosines[-1] >= max(cosines):
            best = inputs.detach().clone()
        if step < steps:
            optimizer.zero_grad()
            (inputs.grad,) = torch.autograd.grad((1 - along).sum(), [inputs])
            optimizer.step()
    return Anchors(best, cosines)


def adapt(
    layer: Layer,
    start: Parameters,
    targets: Sequence[tuple[Parameters, Tensor]],
    *,
    base: Parameters | None = None,
    epochs: int = 100,
    learning_rate: float = 1e-5,
    batch: int = 128,
    loss: Loss = "cosine",
    seed: int = 0,
) -> Adapted:
    """Train a layer to answer the anchors of every expert as that expert does.

    Args:
        layer: see above.
        start: the parameters that it begins with.
        targets: parameters and anchors of each expert, (anchors, tokens, width).
        base: where it is given, what is learned is not the parameters but one coefficient for each of their elements, from
            1 on: base + c ⊙ (start − base). So the official code begins from a merged model.
        epochs, learning_rate, batch, loss: of Adam, over all anchors in random order.
        seed: of that order.

    Returns:
        Its parameters. Equal arguments give equal bits on one machine and number of threads.
    """
    with torch.no_grad():
        inputs = torch.cat([anchors for _, anchors in targets])
        wanted = torch.cat([layer(expert, anchors) for expert, anchors in targets])
    if base is None:
        learned = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    else:
        learned = {name: torch.ones_like(tensor).requires_grad_() for name, tensor in start.items()}

    def parameters() -> dict[str, Tensor]:
        if base is None:
            return dict(learned)
        return {name: base[name] + c * (start[name] - base[name]) for name, c in learned.items()}

    def remaining() -> float:
        with torch.no_grad():
            return float(mismatch(layer(parameters(), inputs), wanted, loss))

    optimizer = torch.optim.Adam(list(learned.values()), lr=learning_rate)
    draws = torch.Generator().manual_seed(seed)
    losses = [remaining()]
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=draws).to(inputs.device)
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            left = mismatch(layer(parameters(), inputs[chosen]), wanted[chosen], loss)
            for tensor, gradient in zip(
                learned.values(), torch.autograd.grad(left, list(learned.values())), strict=True
            ):
                tensor.grad = gradient
            optimizer.step()
        losses.append(remaining())
    return Adapted({name: tensor.detach() for name, tensor in parameters().items()}, losses)


def mismatch(outputs: Tensor, wanted: Tensor, loss: Loss) -> Tensor:
    """Return how far outputs are from those wanted, both (…, width): 1 − the mean cosine, or the mean squared distance."""
    return 1 - _cosine(outputs, wanted).mean() if loss == "cosine" else torch.nn.functional.mse_loss(outputs, wanted)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return cosines along the last dimension; 0 where a vector is zero."""
    return torch.nn.functional.cosine_similarity(one, other, dim=-1, eps=1e-30)
