"""Localize: which entries of a merged task vector serve a task (TALL masks)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cuvee.methods.combination import plain, spread
from cuvee.tensors.either import as_tensor
from cuvee.tensors.lazy_torch import torch
from cuvee.tensors.masking import keep_where
from cuvee.tensors.rows import Combination, Served

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["keep_consensus", "tall_mask"]


def tall_mask(delta: Tensor, merged: Tensor, mask_lambda: float) -> Tensor:
    """Return where |τ| > λ |τ_merged − τ|: the entries of the merged task vector that serve this task.

    Returns:
        bool, (…); nowhere true where both are zero.

    Source: TALL masks, arXiv 2405.07813, section 4.
    """
    return delta.abs() > (merged - delta).abs() * mask_lambda


def keep_consensus(merged: Any, deltas: Any, mask_lambda: float | Sequence[float], k: int) -> Any:
    """Zero the entries of a merged task vector that serve fewer than `k` of the tasks.

    Args:
        merged: (…), or a combination, whose rest is then kept when it is made.
        deltas: (K, …), untrimmed; stored blocks where `merged` is a combination.
        mask_lambda: of the mask of each task.

    Source: Consensus Merging, arXiv 2405.07813, section 5.
    """
    lambdas = spread(mask_lambda, len(deltas))
    if isinstance(merged, Combination):
        return replace(merged, served=Served(deltas.rows, lambdas, k))
    merged, deltas = as_tensor(plain(merged)), as_tensor(plain(deltas))
    masks = torch.stack([tall_mask(delta, merged, value) for delta, value in zip(deltas, lambdas, strict=True)])
    return keep_where(masks.sum(0) >= k, merged)
