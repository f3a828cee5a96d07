"""Which experts a published mixture sends its own prompts to: the measure of a router.

The mixture is computed here from its layout alone, so that every layout can be measured: attention is the base's, and the
experts are read from the published files, those only that a token goes to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sources import Model, Scratch, TensorSource
from cuvee.moe.building import Mixture
from cuvee.moe.forward import Batch, Pass, run_layers
from cuvee.statistics.networks import need_transformers
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Routing", "measure_routing"]


@dataclass(frozen=True)
class Routing:
    """Where the tokens of the positive prompts go, over all layers.

    Attributes:
        shares: [i][j], of what the tokens of expert i's prompts choose, the share that is expert j; a row adds up to 1.
        own: [i], of the tokens of expert i's prompts, the share that goes to expert i, among others.
        chance: what `own` is when the router chooses at random.
        warnings: what is wrong with the router.
    """

    shares: Sequence[Sequence[float]]
    own: Sequence[float]
    chance: float
    warnings: Sequence[str]

    @property
    def usage(self) -> list[float]:
        """[j]: the share of expert j, each expert's prompts counting the same."""
        return [sum(column) / len(self.shares) for column in zip(*self.shares, strict=True)]

    def as_object(self) -> dict[str, Any]:
        """Return plain values."""
        return {"shares": self.shares, "own": self.own, "usage": self.usage, "chance": self.chance}


@dataclass(frozen=True)
class _Block:
    """The mixture in one layer.

    Attributes:
        mixture: its layout.
        tensors: of the published model.
        experts, per_token: how many there are, and how many a token goes to.
        how: dtype and device.
        activation: of the gate projection.
    """

    mixture: Mixture
    tensors: Mapping[str, TensorSource]
    experts: int
    per_token: int
    how: Pass
    activation: Callable[[Tensor], Tensor]
    scratch: Scratch = field(default_factory=Scratch)

    def route(self, layer: int, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and numbers of the chosen experts of (N, H) states: (N, k) each."""
        gate = self._read(layer, self.mixture.layout.router[self.mixture.fused])
        chances = torch.softmax((states @ gate.T).float(), dim=-1)
        weights, chosen = chances.topk(self.per_token, dim=-1)
        if self.mixture.layout.router_divides or self.per_token > 1:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, chosen

    def compute(self, layer: int, states: Tensor) -> Tensor:
        """Return what the mixture makes of (…, H) states."""
        flat = states.reshape(-1, states.shape[-1])
        weights, chosen = self.route(layer, flat)
        result = torch.zeros_like(flat)
        for expert in sorted(set(chosen.reshape(-1).tolist())):
            rows, place = torch.where(chosen == expert)
            result[rows] += self._mlp(flat[rows], *self._expert(layer, expert)) * weights[rows, place, None].to(
                flat.dtype
            )
        return (result + self._shared(layer, flat)).reshape(states.shape)

    def _expert(self, layer: int, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        layout, base = self.mixture.layout, self.mixture.base
        if not (self.mixture.fused and layout.fused):
            gate, up, down = (self._read(layer, name.format(e=expert), slot=name) for name in layout.experts)
            return gate, up, down
        both = self._read(layer, layout.fused[0], expert).view(2, base.inner, base.hidden)
        return both[0], both[1], self._read(layer, layout.fused[1], expert)

    def _shared(self, layer: int, states: Tensor) -> Tensor | float:
        layout = self.mixture.layout
        if f"model.layers.{layer}.{layout.shared}down_proj.weight" not in self.tensors:
            return 0.0
        parts = [self._read(layer, f"{layout.shared}{part}_proj.weight") for part in ("gate", "up", "down")]
        result = self._mlp(states, *parts)
        if layout.shared_gate:
            result = result * torch.sigmoid(states @ self._read(layer, layout.shared_gate).T)
        return result

    def _mlp(self, states: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (self.activation(states @ gate.T) * (states @ up.T)) @ down.T

    def _read(self, layer: int, name: str, expert: int | None = None, slot: str = "") -> Tensor:
        """Read a tensor of a layer, or one expert's slice of it; it holds until the next one of that name or slot."""
        source = self.tensors[f"model.layers.{layer}.{name}"]
        shape = source.shape if expert is None else source.shape[1:]
        size = torch.Size(shape).numel()
        start = (expert or 0) * size
        values = source.read(start, start + size, self.scratch, slot or name)
        return values.view(shape).to(self.how.device, self.how.torch_dtype)


def measure_routing(
    mixture: Mixture,
    folder: Path,
    how: Pass,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Routing:
    """Run the positive prompts of all experts through a published mixture, and count where their tokens go.

    Raises:
        ResourceError: transformers is not installed.
        CheckpointError: the published folder cannot be read.
    """
    published = open_model(folder)
    try:
        return _measure(mixture, published, how, progress)
    finally:
        published.close()


def _measure(mixture: Mixture, published: Model, how: Pass, progress: Callable[[int, int], None]) -> Routing:
    config = published.config or {}
    experts, per_token = int(config[mixture.layout.count_key]), int(config["num_experts_per_tok"])
    activation = need_transformers("measuring the routing", "moe").activations.ACT2FN[
        mixture.base.settings["hidden_act"]
    ]
    block = _Block(mixture, published.tensors, experts, per_token, how, activation)
    owned = [(n, row) for (n, positive), rows in mixture.prompts.items() if positive and n < experts for row in rows]
    chosen = torch.zeros(experts, experts, dtype=torch.int64)
    tokens = torch.zeros(experts, dtype=torch.int64)

    def count(layer: int, batch: Batch, states: Tensor) -> None:
        for place, (mask, row) in enumerate(zip(batch.mask, states, strict=True), batch.first):
            owner = owned[place][0]
            _, picked = block.route(layer, row[mask.bool().to(row.device)])
            chosen[owner] += torch.bincount(picked.reshape(-1).cpu(), minlength=experts)
            tokens[owner] += len(picked)

    dense = replace(mixture.base, model=replace(published, config=mixture.base.model.config))
    rows = [row for _, row in owned]
    run_layers(dense, rows, mixture.padding, how, at_mlp=count, block=block.compute, progress=progress)
    shares = (chosen / chosen.sum(dim=1, keepdim=True)).tolist()
    own = (chosen.diagonal() / tokens).tolist()
    chance = per_token / experts
    return Routing(shares, own, chance, _warnings(chosen.sum(dim=0).tolist(), own, chance))


def _warnings(usage: Sequence[int], own: Sequence[float], chance: float) -> list[str]:
    warnings = [f"expert {number} is never chosen by any prompt" for number, uses in enumerate(usage) if not uses]
    if chance < 1:
        warnings += [
            f"the prompts of expert {number} reach it with {100 * share:.0f} % of their tokens; "
            f"chance would be {100 * chance:.0f} %"
            for number, share in enumerate(own)
            if share < chance
        ]
    return warnings
