"""Collecting what a model's own predictions say of its weights: gradients of their log-probabilities, squared."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints.sources import Model
from cuvee.errors import IncompatibleModels
from cuvee.statistics.collecting import summed_grams
from cuvee.statistics.experts import as_stored, maps_of, stacks_of, watched
from cuvee.statistics.found import Statistics, checked
from cuvee.statistics.networks import load_network
from cuvee.statistics.passes import MAX_TOKENS, Watch, run_texts
from cuvee.tensors.draws import draw_key, uniform
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["collect_fisher", "collect_outgram"]


def collect_fisher(
    model: Model,
    texts: Sequence[str],
    *,
    only: Sequence[str] = ("*",),
    draws: int = 1,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Statistics:
    """Return the diagonal Fisher information of the weights, `fisher/<tensor>`, of each tensor's shape.

    It is E_y (∂ log p(y | x) / ∂θ)², the mean over the texts x, where y is what the model itself predicts. Of a classifier
    of texts the sum over all classes is exact. Of a language model y is drawn: a token at every position, whose
    log-probabilities are summed before the square; what the draws add between positions is zero on average. The sums are
    in float32, in memory beside the model and its gradients.

    Args:
        model, texts, max_tokens, device, watch: as for `collect_hidden`.
        only: patterns of the names of tensors.
        draws: predictions drawn for each text, of a language model.
        seed: of the draws; those of one text are the same for every model.

    Raises:
        IncompatibleModels: the network predicts nothing (it has no logits, or one class), or no tensor of it matches.
        Others: as `collect_hidden`.

    Source: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832.
    """

    def asked(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in only)

    network = load_network(model, device=device)
    wanted: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    apart = {one.name: one for one in stacks_of(model, network, asked) if one.stored}
    for name, value in network.named_parameters(remove_duplicate=False):
        matches = name in apart or (name in model.tensors and asked(name))
        if matches and id(value) in first:
            shared[f"fisher/{name}"] = f"fisher/{first[id(value)]}"
        elif matches:
            wanted[name] = value
            first[id(value)] = name
        value.requires_grad_(id(value) in first)
    if not wanted:
        right = 'a pattern of names that `cuvee inspect` shows, such as "*.mlp.*"'
        raise IncompatibleModels("the network has no such tensors", where=model.label, right=right)
    sums = {name: torch.zeros_like(value, requires_grad=False) for name, value in wanted.items()}

    def add(weight: float, gradients: Sequence[Tensor | None]) -> None:
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient, value=weight / len(texts))

    show = _predicting(network, model, draws, seed, lambda: list(wanted.values()), add)
    tokens = run_texts(network, model, texts, max_tokens, device, watch, show)
    tensors = {f"fisher/{name}": total.cpu() for name, total in sums.items() if name not in apart}
    for stack in apart.values():
        for total, matrices in zip(sums[stack.name].reshape(stack.weight.shape), stack.stored, strict=True):
            tensors |= {f"fisher/{name}": total[rows].cpu() for name, rows in matrices.items()}
    return checked(tensors, model, texts, tokens, max_tokens, shared)


def collect_outgram(
    model: Model,
    texts: Sequence[str],
    *,
    only: Sequence[str] = ("*",),
    draws: int = 1,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Statistics:
    """Return E_y Σ g gᵀ / tokens of every linear map, g = ∂ log p(y | x) / ∂z of its outputs z; and what `collect_gram` does.

    They are called `outgram/<module>`, (outputs, outputs). y is what the model itself predicts, as for
    `collect_fisher`; sums over the tokens are in float64. All that is collected is in memory. One file holds both, since a
    block of the Fisher information is the product of the two.

    Args:
        only: patterns of the names of modules.
        Others: as for `collect_fisher`.

    Raises:
        IncompatibleModels: the network predicts nothing, or no linear map has its weight under its name in the model.
        Others: as `collect_hidden`.
    """
    network = load_network(model, device=device)
    maps = maps_of(model, network, only)
    outputs: list[tuple[str, Tensor]] = []
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    before, finished = summed_grams()

    def after(name: str, output: Tensor) -> None:
        outputs.append((name, output))
        rows[name] = rows.get(name, 0) + output.shape[:-1].numel()

    def add(weight: float, gradients: Sequence[Tensor | None]) -> None:
        for (name, _), gradient in zip(outputs, gradients, strict=True):
            if gradient is not None:
                flat = gradient.reshape(-1, gradient.shape[-1]).double()
                moment = (flat.mT @ flat).mul_(weight)
                sums[name] = sums[name].add_(moment) if name in sums else moment

    predict = _predicting(network, model, draws, seed, lambda: [output for _, output in outputs], add)

    def show(ids: Tensor) -> None:
        outputs.clear()
        predict(ids)

    with watched(maps, before=before, after=after):
        tokens = run_texts(network, model, texts, max_tokens, device, watch, show)
    tensors, shared = finished()
    tensors |= {f"outgram/{name}": (total / rows[name]).float().cpu() for name, total in sums.items()}
    of_experts, unreached = as_stored(tensors, "gram", maps.stacks, model)
    as_stored(tensors, "outgram", maps.stacks, model)
    return checked(tensors, model, texts, tokens, max_tokens, shared | of_experts, unreached)


def _predicting(
    network: nn.Module,
    model: Model,
    draws: int,
    seed: int,
    variables: Callable[[], Sequence[Tensor]],
    add: Callable[[float, Sequence[Tensor | None]], None],
) -> Callable[[Tensor], None]:
    """Return what shows a network the ids of one text after the other, and hands on the gradients of what it predicts.

    Args:
        variables: by what its log-probabilities are differentiated, asked after each forward pass.
        add: takes the probability of a prediction and the gradients of its logarithm, None where there is none.
    """
    numbers = itertools.count()

    def show(ids: Tensor) -> None:
        with torch.enable_grad():
            logits: Any = getattr(network(input_ids=ids), "logits", None)
            if logits is None or logits.shape[-1] < 2:
                found = f"a {type(network).__name__} predicts nothing that has a probability"
                right = "a language model, or a classifier of texts"
                raise IncompatibleModels(found, where=model.label, right=right)
            by = variables()
            for weight, log_p in _predictions(logits[0].float().log_softmax(-1), draws, seed, next(numbers)):
                add(weight, torch.autograd.grad(log_p, by, retain_graph=True, allow_unused=True))

    return show


def _predictions(log_p: Tensor, draws: int, seed: int, number: int) -> Iterator[tuple[float, Tensor]]:
    """Yield predictions as (weight, log-probability): every class, of (classes,), or drawn tokens, of (tokens, vocabulary)."""
    if log_p.ndim == 1:
        for one in log_p:
            yield float(one.detach().exp()), one
        return
    for draw in range(draws):
        points = uniform(draw_key(seed, "predictions", number, draw), 0, len(log_p)).to(log_p.device)
        drawn = [
            torch.searchsorted(row.double().exp().cumsum(0), point).clamp(max=len(row) - 1)
            for row, point in zip(log_p.detach(), points, strict=True)
        ]
        yield 1 / draws, log_p.gather(1, torch.stack(drawn)[:, None]).sum()
