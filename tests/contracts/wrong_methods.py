"""Merge methods that each break a law, and one that breaks none."""

from __future__ import annotations

import torch

from cuvee.methods.calls import current
from cuvee.methods.measuring import measured
from cuvee.methods.pieces.combine import mean
from cuvee.methods.reductions import Sums
from cuvee.methods.registry import Paper, merge_method

NOTHING = Paper("none")


@merge_method(paper=NOTHING)
def right(deltas):
    """Scale the mean to the largest L1 norm."""
    sums = measured(Sums("abs"), list(deltas))
    (merged,) = measured(Sums("abs"), [mean(deltas)])
    return mean(deltas) * float(max(sums) / merged) if merged > 1e-30 else mean(deltas)


@merge_method(paper=NOTHING)
def measures_by_value(deltas):
    """Measure only where something changed: frozen blocks ask for nothing."""
    scale = 1.0
    for delta in deltas:
        if bool(delta.any()):
            scale = max(scale, 1.0 + 1e-9 * float(measured(Sums("abs"), delta)))
    return mean(deltas) * scale


@merge_method(paper=NOTHING)
def looks_at_its_block(deltas):
    """Normalise by the block's largest value instead of the tensor's."""
    merged = mean(deltas)
    largest = float(merged.abs().max()) if merged.numel() else 0.0
    return merged / largest * 0.01 if largest else merged


@merge_method(paper=NOTHING)
def starts_at_each_block(deltas):
    """Zero every seventh element, counted from the beginning of the block."""
    merged = mean(deltas).reshape(-1).clone()
    merged[::7] = 0
    return merged.reshape(deltas[0].shape)


@merge_method(paper=NOTHING)
def draws_from_a_global_generator(deltas):
    """Draw from torch's own generator."""
    return mean(deltas) * (torch.rand(deltas[0].shape) < 0.5)


@merge_method(paper=NOTHING)
def works_on_the_cpu_alone(deltas):
    """Make weights without saying where."""
    weights = torch.linspace(0.5, 1.5, len(deltas))
    return (deltas * weights.reshape(-1, *[1] * (deltas.ndim - 1))).mean(0)


@merge_method(paper=NOTHING)
def hashes_names(deltas):
    """Scale by a hash that differs from process to process."""
    return mean(deltas) * (1 + hash(current().place.tensor) % 1000 / 1000)


@merge_method(paper=NOTHING)
def divides_by_norms(deltas):
    """Normalise without a guard."""
    (norm,) = measured(Sums("square"), [mean(deltas)])
    return mean(deltas) / torch.tensor(norm, dtype=deltas.dtype) * 0.01


@merge_method(paper=NOTHING)
def needs_matrices(deltas):
    """Take every tensor for a matrix."""
    rows, columns = deltas[0].shape
    return mean(deltas) * (rows / (rows + 0 * columns))


@merge_method(paper=NOTHING)
def forgets_a_model(deltas):
    """Take the first model alone."""
    return deltas[0].clone()


@merge_method(paper=NOTHING)
def sums_models(deltas):
    """Add models up."""
    return deltas.sum(0)


@merge_method(paper=NOTHING)
def adds_a_constant(deltas):
    """Move even where nothing moved."""
    return mean(deltas) + 1e-3


@merge_method(paper=NOTHING)
def rounds_twice(deltas):
    """Compute in bfloat16."""
    return mean(deltas).to(torch.bfloat16).to(deltas.dtype)


_CALLS = [0]


@merge_method(paper=NOTHING)
def counts_calls(deltas):
    """Depend on how often it was called before."""
    _CALLS[0] += 1
    return mean(deltas) * (1 + _CALLS[0] % 1000 / 1000)


@merge_method(paper=NOTHING)
def divides_by_a_parameter(deltas, *, temperature: float = 1.0):
    """Divide by a number that may be zero."""
    return mean(deltas) * (1.0 / temperature)
