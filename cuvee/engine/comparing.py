"""Comparing: how experts differ from their base and from each other, measured over every element in one reading.

Of each tensor, the Gram matrix of the base and the task vectors (float64, leaves folded in order) and counts of signs
(whole numbers) are kept; norms, cosines, agreement and interference of any group of tensors follow from their sums.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cuvee.checkpoints.sources import Model
from cuvee.engine.budget import CPU_BLOCK, default_threads
from cuvee.engine.matching import Matched, Matching, match_whole
from cuvee.engine.rounds import Handler, run_rounds
from cuvee.engine.tasks import Formula, Task
from cuvee.errors import IncompatibleModels, raise_all
from cuvee.methods.calls import Place, current
from cuvee.methods.folding import Accumulator, Miss
from cuvee.methods.reductions import Gram
from cuvee.methods.registry import find_method
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Comparison", "Contrast", "TensorPlace", "compare"]

K = TypeVar("K")

_EXACT_IN_FLOAT32 = 1 << 20
_UNRELATED_COSINE, _UNRELATED_DISTANCE = 0.3, 0.5


@dataclass(frozen=True)
class Contrast:
    """What is known of a group of tensors; two groups without a tensor in common add up.

    Attributes:
        parameters: number of elements.
        gram: (1 + K, 1 + K), the inner products of the base and the K task vectors.
        changed: (K,), elements that an expert has changed.
        both: (K, K), elements that two experts have changed.
        agree: (K, K), those of `both` with equal signs.
        contested: elements that at least two experts have changed.
        opposed: those of `contested` where at least two experts differ in sign.
    """

    parameters: int
    gram: NDArray[np.float64]
    changed: NDArray[np.int64]
    both: NDArray[np.int64]
    agree: NDArray[np.int64]
    contested: int
    opposed: int

    @classmethod
    def none(cls, experts: int) -> Contrast:
        """Return that of no tensors."""
        pairs = np.zeros((experts, experts), np.int64)
        return cls(0, np.zeros((experts + 1, experts + 1)), np.zeros(experts, np.int64), pairs, pairs, 0, 0)

    def __add__(self, other: Contrast) -> Contrast:
        mine, its = vars(self), vars(other)
        return Contrast(**{name: mine[name] + its[name] for name in mine})

    @property
    def base_norm(self) -> float:
        """‖θ_0‖."""
        return float(np.sqrt(self.gram[0, 0]))

    @property
    def norms(self) -> list[float]:
        """‖τ_k‖."""
        return [float(norm) for norm in np.sqrt(np.diag(self.gram)[1:])]

    @property
    def ratios(self) -> list[float]:
        """‖τ_k‖ / ‖θ_0‖; NaN where the base is zero."""
        return [norm / self.base_norm if self.base_norm > 0 else float("nan") for norm in self.norms]

    @property
    def cosines(self) -> NDArray[np.float64]:
        """(K, K) cosines of the task vectors; NaN where one is zero."""
        return _quotient(self.gram[1:, 1:], np.outer(self.norms, self.norms))

    @property
    def agreement(self) -> NDArray[np.float64]:
        """(K, K) share of equal signs among the elements that both have changed; NaN where there are none."""
        return _quotient(self.agree, self.both)

    @property
    def changed_shares(self) -> list[float]:
        """Share of the elements that each expert has changed."""
        return [float(count) / self.parameters if self.parameters else float("nan") for count in self.changed]

    @property
    def interference(self) -> float:
        """Share of all elements that at least two experts have changed with opposite signs."""
        return self.opposed / self.parameters if self.parameters else float("nan")

    @property
    def kinship(self) -> list[float]:
        """Cosine of each expert's weights and the base's; NaN where one is zero."""
        g = self.gram
        own = np.diag(g)[1:] + 2 * g[0, 1:] + g[0, 0]
        return [float(c) for c in _quotient(g[0, 0] + g[0, 1:], np.sqrt(g[0, 0] * np.maximum(own, 0)))]

    @property
    def mean_ratio(self) -> float:
        """‖τ‖ / ‖θ_0‖, the mean over experts."""
        return float(np.mean(self.ratios))

    @property
    def mean_cosine(self) -> float:
        """The mean over pairs of different experts; NaN where there are none."""
        return _mean_of_pairs(self.cosines)

    @property
    def mean_agreement(self) -> float:
        """Likewise of the agreement in sign."""
        return _mean_of_pairs(self.agreement)


def _quotient(above: Any, below: Any) -> NDArray[np.float64]:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _mean_of_pairs(matrix: NDArray[np.float64]) -> float:
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    known = pairs[~np.isnan(pairs)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor stands: its stack of layers ("" outside), its layer, its role."""

    stack: str
    layer: int | None
    role: str


@dataclass(frozen=True)
class Comparison:
    """The outcome.

    Attributes:
        base: how the user named it.
        experts: likewise.
        tensors: what was measured, by name.
        places: of the same tensors.
        left_out: name -> why it was not compared.
        warnings: for the user.
    """

    base: str
    experts: Sequence[str]
    tensors: Mapping[str, Contrast]
    places: Mapping[str, TensorPlace]
    left_out: Mapping[str, str]
    warnings: Sequence[str]

    def by(self, key: Callable[[TensorPlace], K]) -> dict[K, Contrast]:
        """Return the sums over the tensors whose places have equal keys, each in the order of their names."""
        found: dict[K, Contrast] = {}
        for name in sorted(self.tensors):
            group = key(self.places[name])
            found[group] = found.get(group, Contrast.none(len(self.experts))) + self.tensors[name]
        return found

    def total(self) -> Contrast:
        """Return the sum over all tensors."""
        return self.by(lambda _: None)[None]

    @property
    def roles(self) -> list[str]:
        """The roles that there are, in the order of the enumeration."""
        from cuvee.architectures import Role

        there = {place.role for place in self.places.values()}
        return [str(role) for role in Role if str(role) in there]

    @property
    def stacks(self) -> dict[str, int]:
        """Number of layers of each stack that there is."""
        found: dict[str, int] = {}
        for place in self.places.values():
            if place.layer is not None:
                found[place.stack] = max(found.get(place.stack, 0), place.layer + 1)
        return dict(sorted(found.items()))


def compare(
    base: Model,
    experts: Sequence[Model],
    *,
    exclude: Sequence[str] = (),
    only: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Measure how experts differ from their base and from each other.

    Embeddings and heads of different sizes are compared in the rows that all have.

    Args:
        exclude, only: glob patterns of the tensors that are left out, or of the only ones looked at.
        threads: None: one for each core.
        progress: called with the bytes read and the bytes of all.

    Raises:
        IncompatibleModels: the models do not have the same tensors.
        CheckpointError: a file cannot be read, or changed meanwhile.
    """
    matched = match_whole(Matching(experts, base, True, _no_arguments, exclude, only, crop_embeddings=True))
    raise_all(matched.errors)
    tasks = [task for task in matched.tasks if not task.is_copy]
    if not tasks:
        raise IncompatibleModels(
            "the models have no tensor to compare", right="models that were fine-tuned from the base"
        )
    measured = _measure(tasks, len(experts), threads or default_threads(), progress or (lambda done, total: None))
    for file in {id(file): file for model in (base, *experts) for file in model.files}.values():
        file.check_unchanged()
    comparison = Comparison(
        base.label, [e.label for e in experts], measured, _places(tasks, matched), matched.left_out, []
    )
    return dataclasses.replace(comparison, warnings=[*matched.warnings, *_warnings(comparison, matched)])


def _no_arguments(name: str, position: float | None, names: Sequence[str]) -> dict[str, Any]:
    return {}


def _places(tasks: Iterable[Task], matched: Matched) -> dict[str, TensorPlace]:
    architecture = matched.architecture
    return {task.name: TensorPlace(architecture.meaning(task.name).stack, task.layer, task.role) for task in tasks}


def _warnings(comparison: Comparison, matched: Matched) -> list[str]:
    warnings = []
    if matched.vocab_size is not None:
        warnings.append(f"vocabularies differ; compared are their first {matched.vocab_size} rows")
    broken = [name for name, contrast in comparison.tensors.items() if not np.isfinite(contrast.gram).all()]
    if broken:
        warnings.append(f"{len(broken)} tensors hold NaN or infinite values, such as {broken[0]}")
    total = comparison.total()
    for label, cosine, ratio in zip(comparison.experts, total.kinship, total.ratios, strict=True):
        if cosine < _UNRELATED_COSINE and ratio > _UNRELATED_DISTANCE:
            warnings.append(
                f"{label} does not look like a fine-tune of {comparison.base}: cosine {cosine:.2f}, "
                f"‖delta‖ is {ratio:.2f} of ‖base‖"
            )
    return warnings


@dataclass
class _Growing:
    """The measurements of one tensor on their way. Blocks come in any order, from any thread."""

    experts: int
    gram: Accumulator = field(default_factory=lambda: Accumulator("sum"))
    counts: NDArray[np.int64] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, place: Place, blocks: Tensor) -> None:
        """Add one block: (1 + K, …), the base and the experts."""
        flat = blocks.reshape(len(blocks), -1)
        vectors = torch.cat((flat[:1], flat[1:] - flat[:1]))
        leaves = [(index, Gram().measure(vectors[:, first:last], -1, None)) for index, first, last in place.leaves()]
        counts = _count_signs(vectors[1:])
        with self.lock:
            self.gram.add(Miss(Gram(), None, leaves, place.stop - place.start))
            self.counts = counts if self.counts is None else self.counts + counts

    def finished(self, name: str) -> Contrast:
        """Return the sum of all blocks."""
        gram = self.gram.folded(name)
        if gram is None or self.counts is None:
            return Contrast.none(self.experts)
        k = self.experts
        both, agree = self.counts[: 2 * k * k].reshape(2, k, k)
        contested, opposed = map(int, self.counts[2 * k * k :])
        return Contrast(self.gram.numel, gram, np.diag(both).copy(), both, agree, contested, opposed)


def _count_signs(deltas: Tensor) -> NDArray[np.int64]:
    """Return flat counts: (K, K) changed by both, (K, K) with equal signs, contested, opposed."""
    total: NDArray[np.int64] | None = None
    for start in range(0, deltas.shape[-1], _EXACT_IN_FLOAT32):
        signs = torch.sign(deltas[:, start : start + _EXACT_IN_FLOAT32]).nan_to_num_(0.0)
        moved = signs.abs()
        both, balance = moved @ moved.T, signs @ signs.T
        contested = (moved.sum(0) >= 2).sum()
        opposed = ((signs.amax(0) > 0) & (signs.amin(0) < 0)).sum()  # 10x faster than any(0)
        parts = (both.reshape(-1), ((both + balance) / 2).reshape(-1), torch.stack((contested, opposed)))
        counts = torch.cat([part.to(torch.int64) for part in parts]).cpu().numpy()
        total = counts if total is None else total + counts
    assert total is not None
    return total


class _Watching(Handler):
    """Keeps a measurement for each tensor, and says how far it is."""

    def __init__(self, tasks: Sequence[Task], experts: int, progress: Callable[[int, int], None]) -> None:
        self.growing = {task.name: _Growing(experts) for task in tasks}
        self._progress = progress
        self._total = sum(map(_bytes, tasks))
        self._done = 0

    def finish(self, task: Task) -> None:
        self._done += _bytes(task)

    def watch(self) -> None:
        """Say how far it is."""
        self._progress(self._done, self._total)

    def measure(self, blocks: Tensor) -> Tensor:
        """Stand in for a merge method: measure a block, and make nothing of it."""
        place = current().place
        self.growing[place.tensor].add(place, blocks)
        return blocks[0]


def _bytes(task: Task) -> int:
    return sum(task.layout.numel * one.source.dtype.itemsize for one in task.all_inputs)


def _measure(
    tasks: Sequence[Task], experts: int, threads: int, progress: Callable[[int, int], None]
) -> dict[str, Contrast]:
    handler = _Watching(tasks, experts, progress)
    method = dataclasses.replace(find_method("passthrough"), name="compare", function=handler.measure, arrays=False)
    # The base goes in as the first of the models, so that the method sees weights and no base is added back.
    plain = [dataclasses.replace(t, inputs=t.all_inputs, base=None, arguments={}) for t in tasks]
    run_rounds(plain, Formula(method), handler, threads=threads, block_elements=CPU_BLOCK, watch=handler.watch)
    handler.watch()
    return {name: handler.growing[name].finished(name) for name in sorted(handler.growing)}
