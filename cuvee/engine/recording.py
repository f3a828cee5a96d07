"""What a run records of each tensor: digests of inputs and output, and values that are not finite."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.engine.blocks import Task
from cuvee.errors import NonFinite
from cuvee.tensors.digests import TensorDigest
from cuvee.tensors.layout import Layout
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TaskRecord", "count_non_finite"]


def count_non_finite(values: Tensor) -> int:
    """Return how many values are NaN or infinite. One sum tells that there are none, in most cases."""
    if not values.dtype.is_floating_point or values.numel() == 0:
        return 0
    if values.dtype in (torch.float32, torch.float64) and bool(torch.isfinite(values.sum())):
        return 0
    return int(values.numel() - torch.isfinite(values).sum())


@dataclass
class TaskRecord:
    """The record of one task while it is computed; blocks may come from any thread."""

    task: Task
    labels: Mapping[int, str]
    allow_non_finite: bool

    def __post_init__(self) -> None:
        inputs = self.task.all_inputs
        self.inputs = [TensorDigest(one.source.dtype, Layout(one.source.shape)) for one in inputs]
        self.output = TensorDigest(self.task.dtype, self.task.layout)
        self.non_finite = [0] * (len(inputs) + 1)
        self._lock = threading.Lock()

    def read(self, number: int, start: int, raw: Tensor) -> None:
        """Digest an input's block."""
        self.inputs[number].add(start, raw.cpu())

    def loaded(self, start: int, values: Tensor, first: int = 0) -> None:
        """Count what is not finite in the inputs' blocks."""
        for number, row in enumerate(values, first):
            self._count(number, count_non_finite(row))

    def _count(self, number: int, found: int) -> None:
        if found:
            with self._lock:
                self.non_finite[number] += found

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
                    f"tensor {one.name or self.task.name!r} of {self.labels[one.model]!r} holds {found} values that are "
                    f"NaN or infinite, of {math.prod(one.source.shape)}",
                    where=one.source.place[0],
                    right="mend or fetch the model again, or --allow-nan to merge it as it is",
                )

    def wrote(self, start: int, values: Tensor) -> None:
        """Digest and check an output block, in the output's dtype."""
        self.output.add(start, values)
        self._count(-1, count_non_finite(values if values.element_size() >= 4 else values.float()))

    def check_output(self) -> None:
        """Raise when the output is not finite though all its inputs were.

        Raises:
            NonFinite: naming tensor and count.
        """
        if self.non_finite[-1] and not self.allow_non_finite:
            raise NonFinite(
                f"the merge makes {self.non_finite[-1]} values of tensor {self.task.name!r} NaN or infinite, "
                f"of {self.task.layout.numel}, in {self.task.dtype.name}",
                right="smaller weights, out_dtype: bfloat16 or float32, or --allow-nan to keep them",
            )
