"""The names in an adapter, matched to those of a base whose wrapper calls them otherwise.

An adapter trained on `AutoModelForCausalLM` says `model.layers.0…`, one trained on `AutoModel` says `layers.0…`, and
transformers has moved the text part of vision models from `language_model.model.` to `model.language_model.`. Names are
matched exactly; where that fails, without the wrappers in front, and only where one tensor fits.
"""

from __future__ import annotations

from collections.abc import Iterable

from cuvee.errors import printable

__all__ = ["Names"]

_WRAPPERS = frozenset({
    "backbone", "base_model", "bert", "deberta", "distilbert", "electra", "gpt_neox", "language_model", "model",
    "module", "mpnet", "roberta", "text_model", "transformer",
})  # fmt: skip


class Names:
    """The names of a base's tensors."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = set(names)
        self._by_core: dict[str, list[str]] = {}
        for name in self._exact:
            self._by_core.setdefault(_core(name), []).append(name)
        self._renamed: set[tuple[str, str]] = set()

    def find(self, name: str) -> str | None:
        """Return the base's name of a tensor that the adapter calls `name`, None when none or several fit."""
        if name in self._exact:
            return name
        core = _core(name)
        fitting = self._by_core.get(core, [])
        if len(fitting) != 1:
            return None
        self._renamed.add((name.removesuffix(core), fitting[0].removesuffix(core)))
        return fitting[0]

    def notes(self) -> tuple[str, ...]:
        """Return a sentence on each renaming that was needed."""
        return tuple(
            f"the adapter's names that begin with {printable(ours)!r} are those of the base with {printable(theirs)!r}"
            for ours, theirs in sorted(self._renamed)
        )


def _core(name: str) -> str:
    parts = name.split(".")
    begin = 0
    while begin < len(parts) - 2 and parts[begin] in _WRAPPERS:
        begin += 1
    return ".".join(parts[begin:])
