"""What a run records of each tensor: digests of inputs and output, and values that are not finite."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cuvee.engine.blocks import Computed
from cuvee.engine.tasks import Task
from cuvee.errors import NonFinite
from cuvee.tensors.digests import TensorDigest
from cuvee.tensors.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FiniteRecord", "TaskRecord"]


@dataclass
class FiniteRecord:
    """Counts what is not finite in one task while it is computed; blocks may come from any thread.

    Attributes:
        labels: what errors call the models, by number.
        how: what lets NaN and Inf through, as it is typed.
    """

    task: Task
    labels: Mapping[int, str]
    allow_non_finite: bool
    how: str = "--allow-nan"

    def __post_init__(self) -> None:
        self.non_finite = [0] * (len(self.task.all_inputs) + 1)
        self._lock = threading.Lock()

    def read(self, number: int, start: int, raw: NDArray[np.uint8]) -> None:
        """An input's block was read."""

    def place(self, number: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Return room for digests that nobody asks for."""
        return np.empty((-(-(stop - start) // self.task.layout.leaf), 32), np.uint8)

    def decoded(self, number: int, non_finite: int) -> None:
        """Count what is not finite in an input."""
        if non_finite:
            with self._lock:
                self.non_finite[number] += non_finite

    def check_inputs(self) -> None:
        """Raise when an input was not finite.

        Raises:
            NonFinite: naming model, tensor and count.
        """
        if self.allow_non_finite:
            return
        for one, found in zip(self.task.all_inputs, self.non_finite, strict=False):
            if found:
                raise NonFinite(
                    f"tensor {one.name or self.task.name!r} of {self.labels[one.model]!r} holds NaN or infinite values: "
                    f"{found} of {math.prod(one.source.shape)}",
                    where=one.source.place[0],
                    right=f"mend or fetch the model again, or {self.how} to merge it as it is",
                )

    def computed(self, start: int, block: Computed) -> None:
        """Check an output block."""
        self.decoded(-1, block.non_finite)

    def check_output(self) -> None:
        """Raise when the output is not finite though all its inputs were.

        Raises:
            NonFinite: naming tensor and count.
        """
        if self.non_finite[-1] and not self.allow_non_finite:
            raise NonFinite(
                f"the merge makes values of tensor {self.task.name!r} NaN or infinite: {self.non_finite[-1]} of "
                f"{self.task.layout.numel}, in {self.task.dtype.name}",
                right=f"smaller weights, out_dtype: bfloat16 or float32, or {self.how} to keep them",
            )


@dataclass
class TaskRecord(FiniteRecord):
    """The record of one task while it is computed: its digests too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inputs = [TensorDigest(one.source.dtype, Layout(one.source.shape)) for one in self.task.all_inputs]
        self.output = TensorDigest(self.task.dtype, self.task.layout)

    def read(self, number: int, start: int, raw: NDArray[np.uint8]) -> None:
        """Digest an input's block."""
        self.inputs[number].add(start, raw)

    def place(self, number: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Return where the digests of an input's leaves go."""
        return self.inputs[number].place(start, stop)

    def computed(self, start: int, block: Computed) -> None:
        """Digest and check an output block."""
        self.output.add(start, block.raw)
        super().computed(start, block)
