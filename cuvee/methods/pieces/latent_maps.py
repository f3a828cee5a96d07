"""Maps between the hidden spaces of language models that share a vocabulary, from their heads alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.errors import MethodError
from cuvee.methods.spectral import eigh, gram, product
from cuvee.tensors.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["latent_map", "semantic_bases"]


def semantic_bases(head: Tensor, rtol: float = 1e-6) -> Tensor:
    """Return the direction that stands for each token: the unit columns of the pseudo-inverse of a head, (d, V).

    Args:
        head: (V, d), one row a token.
        rtol: directions of the head with singular values up to this share of the largest say nothing.
    """
    values, q = eigh(gram(head))
    used = values > values[:1].clamp(min=0) * rtol**2
    inverse = (q[:, used] / values[used]) @ q[:, used].mT
    return torch.nn.functional.normalize(product(head, inverse).mT, dim=0)


def latent_map(head_a: Tensor, head_b: Tensor) -> Tensor:
    """Return T (d_B, d_A), which takes a hidden vector of model A to the one of B that is as near to each token's direction.

    T = S_B S_Aᵀ of the semantic bases: cosines with A's directions become coefficients of B's. Only a direction is carried
    over, no length.

    Args:
        head_a, head_b: (V, d_A) and (V, d_B), rows in one order of tokens.

    Raises:
        MethodError: the vocabularies have different sizes.

    Source: the ingredients of SeMe, arXiv 2505.20144, whose merging steps were not seen and are not built.
    """
    if len(head_a) != len(head_b):
        raise MethodError(f"the heads have {len(head_a)} and {len(head_b)} rows", right="models of one vocabulary")
    return product(semantic_bases(head_b), semantic_bases(head_a).mT.double())
