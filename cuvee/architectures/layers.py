"""Which numbers in a tensor's name count layers: the layer lists of a model and their lengths.

The layer list is the outermost numbered list whose items are alike and hold a layer's worth of matrices. Expert
indices, sub-blocks, convolutions and heads of nn.Sequential are numbered too, but lie inside a layer or hold one
matrix an item. Where a list is nested in a list of stages (ResNet, Swin), the blocks are counted through all stages.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cuvee.architectures.names import Name, Number, module_of, number, tokens
from cuvee.architectures.vocabulary import LIST_WORDS, NO_LAYER_LISTS, PLURAL_LIST_WORDS

__all__ = ["LayerCounts", "Place", "Stack", "find_stacks", "locate"]

# A list with holes is believed while it is at least a quarter full, and a lonely layer below this index.
_FILL = 4
_LONELY = 256
# So many tensors show what a layer is made of; a mixture of experts repeats itself.
_ENOUGH = 256


@dataclass(frozen=True)
class LayerCounts:
    """What config.json says: numbers of layers, of any stack, and of multi-token-prediction layers behind them."""

    layers: frozenset[int] = frozenset()
    extra: frozenset[int] = frozenset()


class _Stage(NamedTuple):
    """Blocks of one stage: `word` names their list ("" where they are numbered directly), the first is `first`."""

    word: str
    first: int
    length: int
    offset: int


@dataclass(frozen=True)
class Stack:
    """A layer list: items `first` … of `prefix`, or the blocks of its stages in order."""

    prefix: str
    length: int
    first: int = 0
    stages: Mapping[int, _Stage] | None = None


class Place(NamedTuple):
    """A tensor inside a stack; its name within the layer begins at component `rest`."""

    stack: str
    layer: int
    rest: int


class _Tensor(NamedTuple):
    parts: tuple[str, ...]
    numbers: tuple[Number, ...]
    elements: int
    is_matrix: bool


class _Item:
    """One item of a numbered list."""

    def __init__(self) -> None:
        self.tensors: list[_Tensor] = []
        self.matrices: set[tuple[str, ...]] = set()
        self.tails: set[str] = set()
        self.elements = 0

    def add(self, tensor: _Tensor, rest: int) -> None:
        self.tensors.append(tensor)
        self.elements += tensor.elements
        if len(self.tensors) > _ENOUGH:
            return
        if tensor.is_matrix and len(self.matrices) < 2:
            self.matrices.add(module_of(tensor.parts[rest:]))
        self.tails.add(".".join("#" if number(part) is not None else part for part in tensor.parts[rest:]))

    @property
    def is_layer(self) -> bool:
        return len(self.matrices) >= 2


_List = dict[int, _Item]
_Rule = Callable[[str, _List], bool]


def find_stacks(
    names: Mapping[str, Name], shapes: Mapping[str, tuple[int, ...]], counts: LayerCounts
) -> dict[str, Stack]:
    """Find the layer lists: {prefix: stack}, in the order of their names.

    Three rules, the next only where the one before finds nothing: lists named like layers whose items are layers;
    lists of any name that hold most of the model; lists named like layers that hold anything (a few tensors only).
    """
    numbered = ((name, shapes[text]) for text, name in names.items() if name.numbers)
    tensors = [_Tensor(*name, math.prod(shape), len(shape) >= 2) for name, shape in numbered]
    for rule in (_is_layer_list, _is_most_of(tensors), _is_named_like_layers):
        if stacks := _search(tensors, 0, rule, counts):
            return {s.prefix: s for s in sorted(_widened(stacks, counts), key=lambda s: s.prefix)}
    return {}


def locate(name: Name, stacks: Mapping[str, Stack]) -> Place | None:
    """Find the layer of a tensor, None outside the stacks and for an index beyond the stack's length."""
    path = name.numbers
    for level, here in enumerate(path):
        stack = stacks.get(here.prefix)
        if stack is None:
            continue
        if stack.stages is None:
            layer = here.item - stack.first
            return Place(stack.prefix, layer, here.rest) if 0 <= layer < stack.length else None
        stage = stack.stages.get(here.item)
        if stage is None:
            return None
        inner = path[level + 1] if level + 1 < len(path) else None
        if inner is not None and _inner_word(name.parts, here, inner) == stage.word:
            block = inner.item - stage.first
            return Place(stack.prefix, stage.offset + block, inner.rest) if 0 <= block < stage.length else None
        return Place(stack.prefix, stage.offset, here.rest)
    return None


def _search(tensors: Iterable[_Tensor], level: int, rule: _Rule, counts: LayerCounts) -> list[Stack]:
    """Take the outermost lists that the rule accepts, and look inside the others."""
    stacks: list[Stack] = []
    lists = _lists(tensors, level)
    for prefix, items in sorted(lists.items(), key=lambda entry: -sum(item.elements for item in entry[1].values())):
        if rule(prefix, items):
            stacks.extend(_stack(prefix, items, counts, level))
            continue
        inner = [tensor for item in items.values() for tensor in item.tensors if len(tensor.numbers) > level + 1]
        found = _search(inner, level + 1, rule, counts) if inner else []
        stacks.extend(_chained(prefix, found))
    return stacks


def _lists(tensors: Iterable[_Tensor], level: int) -> dict[str, _List]:
    lists: dict[str, _List] = defaultdict(lambda: defaultdict(_Item))
    for tensor in tensors:
        if len(tensor.numbers) > level:
            here = tensor.numbers[level]
            lists[here.prefix][here.item].add(tensor, here.rest)
    return lists


def _word(prefix: str) -> str:
    return prefix.rpartition(".")[2]


def _is_layer_word(word: str) -> bool:
    """True for "layers", "h", "transformer_blocks", "layer" of "layer1"; not for "conv_layers"."""
    lowered, words = word.lower(), tokens(word)
    if "conv" in words or "convs" in words:
        return False
    return lowered in LIST_WORDS or words[-1] in PLURAL_LIST_WORDS or lowered.endswith(("layer", "block", "stage"))


def _is_excluded(prefix: str) -> bool:
    """True for lists of experts or models, and for anything in a quantizer."""
    *outer, word = prefix.lower().split(".")
    words = set(tokens(word))
    return not words.isdisjoint(NO_LAYER_LISTS) or any("quantizer" in part or "codebook" in part for part in outer)


def _is_named_like_layers(prefix: str, items: _List) -> bool:
    return _is_layer_word(_word(prefix)) and not _is_excluded(prefix)


def _is_layer_list(prefix: str, items: _List) -> bool:
    if not _is_named_like_layers(prefix, items) or not _holds_layers(items):
        return False
    return _word(prefix) not in ("encoders", "decoders") or not _has_lists(items)


def _has_lists(items: _List) -> bool:
    """True for a list of encoders, each with layers of its own; false for layers that are called encoders."""
    tensors = (tensor for item in items.values() for tensor in item.tensors)
    return any(_is_layer_word(_word(here.prefix)) for tensor in tensors for here in tensor.numbers[1:])


def _holds_layers(items: _List) -> bool:
    """True where at least half of the items hold two matrices, and any two items have something in common."""
    if 2 * sum(item.is_layer for item in items.values()) < len(items):
        return False
    seen: set[str] = set()
    for item in items.values():
        if not seen.isdisjoint(item.tails):
            return True
        seen |= item.tails
    return len(items) == 1


def _is_most_of(tensors: list[_Tensor]) -> _Rule:
    """The rule for lists of unknown name: at least two layers, and a quarter of all that is numbered.

    XLM has several lists side by side, with an entry per layer each: the norms among them count with the others.
    """
    total = sum(tensor.elements for tensor in tensors)
    found: set[tuple[str, int]] = set()

    def rule(prefix: str, items: _List) -> bool:
        if not prefix or len(items) < 2 or _is_excluded(prefix) or sorted(items) != list(range(len(items))):
            return False
        beside = prefix.rpartition(".")[0], len(items)
        is_large = _holds_layers(items) and 4 * sum(item.elements for item in items.values()) >= total
        if is_large:
            found.add(beside)
        return is_large or beside in found

    return rule


def _stack(prefix: str, items: _List, counts: LayerCounts, level: int) -> list[Stack]:
    if stages := _stages(items, level):
        return [Stack(prefix, sum(stage.length for stage in stages.values()), stages=stages)]
    first = _first(items, level)
    length = _length({index - first for index in items}, counts)
    return [Stack(prefix, length, first)] if length else []


def _first(items: _List, level: int) -> int:
    """Lists inside a word ("layer1") may begin at 1; lists of modules begin at 0."""
    item = items.get(1)
    if 0 in items or item is None:
        return 0
    tensor = item.tensors[0]
    return 0 if number(tensor.parts[tensor.numbers[level].rest - 1]) is not None else 1


def _length(indices: set[int], counts: LayerCounts) -> int:
    """Count the layers of a list: its items, or what the config says where items are missing or in excess."""
    top = max(indices) + 1
    run = next(i for i in range(len(indices) + 1) if i not in indices)
    if run == len(indices):
        return next((run - extra for extra in counts.extra if run - extra in counts.layers), run)
    if fitting := [count for count in counts.layers if count >= top]:
        return min(fitting)
    if top <= _FILL * len(indices):
        return top
    return run or (top if top <= _LONELY else 0)


def _widened(stacks: list[Stack], counts: LayerCounts) -> list[Stack]:
    """Take the config's count where the only stack holds fewer layers: some tensors of a model, not all.

    Not for lists of shared layers (ALBERT's `albert_layer_groups`), which have names of their own.
    """
    if len(stacks) != 1 or len(counts.layers) != 1 or stacks[0].stages is not None:
        return stacks
    (stack,), (count,) = stacks, counts.layers
    if count <= stack.length or _word(stack.prefix).lower() not in LIST_WORDS:
        return stacks
    return [Stack(stack.prefix, count, stack.first)]


def _inner_word(parts: tuple[str, ...], outer: Number, inner: Number) -> str | None:
    """Name the list of `inner` within its item of `outer`: "" where numbered directly, None where further down."""
    word = inner.prefix[len(".".join(parts[: outer.rest])) + 1 :]
    return None if "." in word else word


def _stages(items: _List, level: int) -> dict[int, _Stage] | None:
    """Read a list of stages: most of every item is one inner list, whose items are layers and alike."""
    inner = {index: _inner_items(item, level) for index, item in items.items()}
    sizes: dict[str, int] = defaultdict(int)
    for lists in inner.values():
        for word, blocks in lists.items():
            sizes[word] += sum(block.elements for block in blocks.values())
    if not sizes:
        return None
    word = max(sizes, key=lambda key: (sizes[key], key))
    if 2 * sizes[word] < sum(item.elements for item in items.values()):
        return None
    chosen = {index: lists[word] for index, lists in inner.items() if word in lists}
    if len(chosen) < len(items) or not _are_alike(list(chosen.values())):
        return None
    return _counted({index: (word, min(blocks), len(blocks)) for index, blocks in chosen.items()})


def _inner_items(item: _Item, level: int) -> dict[str, _List]:
    """Sort the tensors of an item into the lists directly inside it."""
    lists: dict[str, _List] = defaultdict(lambda: defaultdict(_Item))
    for tensor in item.tensors:
        if len(tensor.numbers) > level + 1:
            outer, inner = tensor.numbers[level : level + 2]
            word = _inner_word(tensor.parts, outer, inner)
            if word is not None and (not word or _is_layer_word(word)):
                lists[word][inner.item].add(tensor, inner.rest)
    return lists


def _are_alike(stages: list[_List]) -> bool:
    """True where the blocks of a stage hold layers and share most names with the next one.

    The sub-blocks of T5's `block.0.layer.1` (attention, then MLP) share only their norm.
    """
    common = union = 0
    for blocks in stages:
        if not all(block.is_layer for block in blocks.values()):
            return False
        tails = [blocks[index].tails for index in sorted(blocks)]
        for one, other in itertools.pairwise(tails):
            common += len(one & other)
            union += len(one | other)
    return 2 * common >= union > 0


def _counted(blocks: Mapping[int, tuple[str, int, int]]) -> dict[int, _Stage]:
    stages: dict[int, _Stage] = {}
    offset = 0
    for index in sorted(blocks):
        word, first, count = blocks[index]
        stages[index] = _Stage(word, first, count, offset)
        offset += count
    return stages


def _chained(prefix: str, stacks: list[Stack]) -> list[Stack]:
    """Join the stacks found directly in the items of one list: stages whose list is not named like layers."""
    inner: dict[int, tuple[str, int, int]] = {}
    for stack in stacks:
        index, _, word = stack.prefix[len(prefix) + 1 :].partition(".")
        place = number(index)
        if place is None or not word or "." in word or stack.stages is not None or place in inner:
            return stacks
        inner[place] = word, stack.first, stack.length
    if len(inner) < 2 or not prefix or _is_excluded(prefix):
        return stacks
    stages = _counted(inner)
    return [Stack(prefix, sum(stage.length for stage in stages.values()), stages=stages)]
