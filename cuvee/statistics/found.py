"""What was collected of a model, and the file that holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.checkpoints import fs
from cuvee.checkpoints.safetensors_format import lay_out
from cuvee.checkpoints.sources import Model
from cuvee.engine.given import SHARED, TEXTS
from cuvee.errors import CheckpointError
from cuvee.statistics.texts import digest_of_texts
from cuvee.tensors.dtypes import DTYPES
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Statistics", "checked"]


@dataclass(frozen=True)
class Statistics:
    """What data say of one model, as a file of statistics holds it.

    Attributes:
        tensors: name -> float32, such as `gram/<module>` (inputs, inputs), `hidden/<layer>` (texts, width).
        shared: a name -> the one of `tensors` that it means too.
        unreached: matrices of experts of which nothing is known, since no token reached them.
        texts: how many they were collected on.
        tokens: in all of them.
        digest: of the texts.
    """

    tensors: Mapping[str, Tensor]
    texts: int
    tokens: int
    digest: str
    shared: Mapping[str, str] = field(default_factory=dict)
    unreached: int = 0

    def write(self, path: Path) -> None:
        """Write them as a safetensors file, complete or not at all.

        Raises:
            OSError: the disk refuses.
        """
        metadata = {TEXTS: self.digest, SHARED: json.dumps(self.shared), "tokens": str(self.tokens)}
        layout = lay_out({name: (DTYPES["F32"], tuple(t.shape)) for name, t in self.tensors.items()}, metadata)
        made = path.with_name(f".{path.name}.cuvee")
        fs.remove_tree(made)
        try:
            fd = fs.create(made)
            try:
                fs.pwrite(fd, layout.header, 0)
                for name, tensor in self.tensors.items():
                    fs.pwrite(fd, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, layout.offsets[name])
                fs.fsync(fd)
            finally:
                fs.close(fd)
            fs.rename(made, path)
        finally:
            fs.remove_tree(made)
        fs.fsync_folder(path.parent)


def checked(
    tensors: Mapping[str, Tensor],
    model: Model,
    texts: Sequence[str],
    tokens: int,
    max_tokens: int,
    shared: Mapping[str, str],
    unreached: int = 0,
) -> Statistics:
    """Return what was collected, once it is finite.

    Raises:
        CheckpointError: the model computes NaN or Inf.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            found = f"the model computes NaN or Inf: {name}"
            raise CheckpointError(found, where=model.label, right="a model that works; cuvee inspect shows its tensors")
    return Statistics(tensors, len(texts), tokens, digest_of_texts(texts, max_tokens), shared, unreached)
