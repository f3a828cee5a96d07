"""The package tokenizers: asked to load a tokenizer.json, where it is installed."""

from __future__ import annotations

from typing import Any

from cuvee.errors import CheckpointError, printable

__all__ = ["load_tokenizer"]


def load_tokenizer(text: str, *, what: str, where: str, right: str) -> Any:
    """Return what the library makes of a tokenizer.json.

    Args:
        what: how errors call it.

    Raises:
        ImportError: it is not installed.
        CheckpointError: it refuses the text, with what it says.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # it raises bare exceptions, and a panic in Rust is not even one of these
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = printable(str(error))[:300]
        raise CheckpointError(f"{what} does not load: {said}", where=where, right=right) from None
