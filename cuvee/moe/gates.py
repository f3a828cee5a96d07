"""Gates: the rows of each layer's router, one an expert, made of prompts or drawn.

L layers, E gated experts (the routed ones, then a shared one that has prompts), H hidden size. A token goes to the experts
whose rows have the largest products with it, so a row is a direction that its expert's prompts have in common.

Source: mergekit-moe (no paper). It takes the inputs of each layer; what the router sees in truth is the input of the MLP,
after attention and a norm: `gate_mode: router_input` takes that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cuvee.errors import NonFinite
from cuvee.moe.config import CHEAP, RANDOM, MoeConfig
from cuvee.moe.dense import Dense
from cuvee.moe.forward import Batch, Pass, embeddings_of, run_layers
from cuvee.moe.prompts import PromptList
from cuvee.tensors.draws import draw_key, normal, uniform
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.sums import lane_sum

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gate_warnings", "make_gates"]

Prompts = Mapping[PromptList, list[list[int]]]
_CONDITION = 5.0
_SMALLEST = 1e-8


def make_gates(
    config: MoeConfig,
    dense: Dense,
    prompts: Prompts,
    padding: int,
    how: Pass,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Return the rows of all routers: (L, E, H) float32; of length 1 where they are made of prompts.

    Args:
        prompts: token ids of the prompts, by expert and sign; empty for random gates.

    Raises:
        NonFinite: the forward pass gives NaN or Inf.
    """
    if config.gate_mode in RANDOM:
        return _random(config, dense)
    gated = sorted({number for number, _ in prompts})
    means = (
        _cheap(dense, prompts) if config.gate_mode in CHEAP else _hidden(config, dense, prompts, padding, how, progress)
    )
    rows = []
    for number in gated:
        row = means[number, True]
        if (number, False) in means:
            row = row - means[number, False]
        rows.append(_unit(row).float())
    gates = torch.stack(rows, dim=1)
    if not bool(torch.isfinite(gates).all()):
        raise NonFinite(
            "the forward pass through the base gives NaN or infinite values",
            where=dense.model.label,
            right="mend or fetch the base again; or gate_mode: cheap_embed",
        )
    return gates


def _unit(rows: Tensor) -> Tensor:
    """Return rows of length 1; one of length 0 stays."""
    squares = torch.from_numpy(lane_sum((rows.double() ** 2).numpy()))
    return rows / squares.sqrt().unsqueeze(-1).clamp(min=_SMALLEST)


def _random(config: MoeConfig, dense: Dense) -> Tensor:
    """Draw each row from N(0, 1), or from U(−1, 1) / √H as a linear layer begins; for every routed and shared expert."""

    def row(layer: int, number: int) -> Tensor:
        key = draw_key(config.seed, f"router/{layer}", number)
        if config.gate_mode == "random":
            return normal(key, 0, dense.hidden)
        return ((2 * uniform(key, 0, dense.hidden) - 1) / dense.hidden**0.5).float()

    count = len(config.entries)
    return torch.stack([torch.stack([row(layer, number) for number in range(count)]) for layer in range(dense.layers)])


def _cheap(dense: Dense, prompts: Prompts) -> dict[PromptList, Tensor]:
    """Return the direction of the summed embeddings of each list of prompts, the same for all layers: (L, H) float64."""
    embedded = embeddings_of(dense, [token for rows in prompts.values() for row in rows for token in row])
    sums = {key: torch.zeros(dense.hidden, dtype=torch.float64) for key in prompts}
    for key, rows in prompts.items():
        for row in rows:
            for token in row:
                sums[key] += embedded[token]
    return {key: _unit(total).expand(dense.layers, -1) for key, total in sums.items()}


def _hidden(
    config: MoeConfig,
    dense: Dense,
    prompts: Prompts,
    padding: int,
    how: Pass,
    progress: Callable[[int, int], None],
) -> dict[PromptList, Tensor]:
    """Return the mean state of each list of prompts at every layer: (L, H) float64.

    The state of a prompt is that of its last token; with `hidden_avg` the mean over its tokens, in mergekit over the
    padding too.
    """
    counts_padding = config.compat == "mergekit" and config.gate_mode == "hidden_avg"
    averaged = config.gate_mode == "hidden_avg"
    means: dict[PromptList, Tensor] = {}
    # mergekit pads each list to its longest prompt, by itself.
    groups = [[key] for key in prompts] if counts_padding else [list(prompts)]
    for group in groups:
        owners = [key for key in group for _ in prompts[key]]
        rows = [row for key in group for row in prompts[key]]
        sums = {key: torch.zeros(dense.layers, dense.hidden, dtype=torch.float64) for key in group}

        def add(
            layer: int,
            batch: Batch,
            states: Tensor,
            owners: Sequence[PromptList] = owners,
            sums: dict[PromptList, Tensor] = sums,
        ) -> None:
            values = (states if averaged else states[:, -1]).double().cpu()
            if averaged:
                mask = torch.ones_like(batch.mask) if counts_padding else batch.mask
                # Padding may hold NaN: all that it could attend to is masked.
                values = values.masked_fill(~mask.bool().unsqueeze(-1), 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            for place, value in enumerate(values, batch.first):
                sums[owners[place]][layer] += value

        told = {"at_mlp" if config.gate_mode == "router_input" else "at_layer": add}
        size = len(rows) if counts_padding else how.batch
        run_layers(dense, rows, padding, Pass(how.device, how.dtype, size), progress=progress, **told)  # type: ignore[arg-type]
        means |= {key: total / len(prompts[key]) for key, total in sums.items()}
    return means


def gate_warnings(gates: Tensor, experts: int) -> list[str]:
    """Return what is wrong with gates made of prompts: empty rows, and rows that are nearly parallel.

    Args:
        gates: (L, E, H).
        experts: how many of the rows are of routed experts.
    """
    routed = gates[:, :experts].double()
    warnings = []
    for number in range(experts):
        if bool((routed[:, number].norm(dim=-1) < 0.5).any()):
            warnings.append(f"the gate of expert {number} is empty: its positive and negative prompts say the same")
    if experts < 2:
        return warnings
    values = torch.linalg.svdvals(routed)
    condition = values[:, 0] / values[:, -1].clamp(min=_SMALLEST)
    alike = [layer for layer in range(len(condition)) if condition[layer] > _CONDITION]
    if alike:
        cosines = routed @ routed.transpose(1, 2) - 2 * torch.eye(experts, dtype=torch.float64)
        worst = max(alike, key=lambda layer: float(condition[layer]))
        first, second = divmod(int(cosines[worst].argmax()), experts)
        warnings.append(
            f"the gates are nearly parallel in {_layers(alike, len(condition))} (condition up to "
            f"{min(float(condition.max()), 1e9):.3g}; experts {first} and {second} have cosine "
            f"{float(cosines[worst, first, second]):.3f}): the router will hardly tell experts apart; give them prompts that "
            "differ more, or negative prompts"
        )
    return warnings


def _layers(numbers: Sequence[int], count: int) -> str:
    if len(numbers) == count:
        return "all layers"
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return f"{len(numbers)} of {count} layers, from {numbers[0]} to {numbers[-1]}"
