"""Tensor names cut into components, and the numbers in them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from cuvee.architectures.vocabulary import LEAVES, SINGLE_BLOCKS

__all__ = ["Name", "Number", "module_of", "number", "read_name", "tokens"]

# Longer names and numbers are of no model; left unread, so that reading stays linear in the name.
_LONGEST_NAME = 1024
_MOST_PARTS = 64
_MOST_DIGITS = 6
_MOST_NUMBERS = 4

# "layer1" of ResNets, "denselayer12", "block_2": a list word with its index inside. Anchored, no nested repeats.
_LIST_WORD = re.compile(r"([a-z]{0,8}(?:layers?|blocks?|stages?))[_-]?(\d{1,4})", re.IGNORECASE | re.ASCII)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Number(NamedTuple):
    """A numbered place in a name: item number `item` of the list `prefix`; its own name begins at `rest`."""

    prefix: str
    item: int
    rest: int


class Name(NamedTuple):
    """A tensor's name, cut: its components, and the numbered lists that it goes through, outermost first."""

    parts: tuple[str, ...]
    numbers: tuple[Number, ...]


def read_name(name: str) -> Name:
    """Cut a name at its dots; one too long to be a tensor's has no parts."""
    if not 0 < len(name) <= _LONGEST_NAME:
        return Name((), ())
    parts = tuple(name.split("."))
    if len(parts) > _MOST_PARTS:
        return Name((), ())
    hints = [i for i, part in enumerate(parts) if part[-1:].isdigit() or part in SINGLE_BLOCKS]
    found = [here for i in hints if (here := _numbered(parts, i)) is not None]
    return Name(parts, tuple(found[:_MOST_NUMBERS]))


@lru_cache(maxsize=4096)
def number(component: str) -> int | None:
    """Read a component that is an index: ASCII digits without leading zeros."""
    if len(component) > _MOST_DIGITS or not (component.isascii() and component.isdigit()):
        return None
    return int(component) if component == "0" or component[0] != "0" else None


@lru_cache(maxsize=4096)
def _list_item(component: str) -> tuple[str, int] | None:
    """Read a list word with its index: "layer1" is item 1 of "layer", "mid_block" is the only item of itself."""
    if component in SINGLE_BLOCKS:
        return component, 0
    match = _LIST_WORD.fullmatch(component)
    return (match[1], int(match[2])) if match else None


def _numbered(parts: tuple[str, ...], i: int) -> Number | None:
    part = parts[i]
    index = number(part)
    if index is not None:
        return Number(".".join(parts[:i]), index, i + 1)
    item = _list_item(part)
    return Number(".".join((*parts[:i], item[0])), item[1], i + 1) if item else None


@lru_cache(maxsize=4096)
def _is_below_module(component: str) -> bool:
    return component in LEAVES or component.startswith(("lora_", "parametrizations"))


def module_of(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Drop what is below the module: `weight`, `lora_A.weight`, `parametrizations.weight.original0`, …"""
    for i, component in enumerate(parts):
        if i and _is_below_module(component):
            return parts[:i]
    return parts


@lru_cache(maxsize=4096)
def tokens(component: str) -> tuple[str, ...]:
    """Cut a component into lower-case words: "EncDecAttention" and "encoder_attn" into three and two."""
    return tuple(_CAMEL.sub("_", component).lower().split("_"))
