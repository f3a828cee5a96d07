"""Token rows: the tensors of a model that have a row for each token."""

from __future__ import annotations

from collections.abc import Mapping

from cuvee.architectures.architecture import Architecture
from cuvee.architectures.meaning import Role
from cuvee.architectures.names import read_name
from cuvee.architectures.vocabulary import TOKEN_EMBEDDINGS

__all__ = ["token_rows"]


def token_rows(shapes: Mapping[str, tuple[int, ...]], architecture: Architecture) -> tuple[int, tuple[str, ...]]:
    """Return how many rows the input embedding has, and the tensors that have as many: it, heads, biases of heads.

    Returns:
        (0, ()) where no tensor looks like an input embedding.
    """
    found = {name: shape[0] for name, shape in shapes.items() if shape and _role(name, shape, architecture)}
    embeddings = {name: rows for name, rows in found.items() if _is_embedding(name, shapes[name], architecture)}
    if not embeddings:
        return 0, ()
    rows = max(embeddings.values())
    return rows, tuple(name for name, own in found.items() if own == rows)


def _role(name: str, shape: tuple[int, ...], architecture: Architecture) -> bool:
    is_head = architecture.meaning(name).role is Role.HEAD and len(shape) <= 2
    return is_head or _is_embedding(name, shape, architecture)


def _is_embedding(name: str, shape: tuple[int, ...], architecture: Architecture) -> bool:
    parts = read_name(name).parts
    is_named = len(parts) >= 2 and parts[-1] == "weight" and parts[-2].lower() in TOKEN_EMBEDDINGS
    return is_named and len(shape) == 2 and architecture.meaning(name).role is Role.EMBEDDING
