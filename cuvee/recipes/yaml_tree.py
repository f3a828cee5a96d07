"""YAML text as a tree of nodes that know their place. Nothing is constructed, and hostile text is refused quickly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from cuvee.errors import RecipeError, raise_all

__all__ = ["Entries", "Items", "Node", "Scalar", "read_trees"]

MAX_CHARACTERS = 4 * 2**20
MAX_NODES = 20_000
MAX_DEPTH = 32

_CORE_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq"))
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}  # as PyYAML reads them, which is what mergekit's files were written for
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(
    r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[1-9][0-9]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))"
)
_NAN = re.compile(r"\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Scalar:
    """One value, at a line and column (from 1).

    Attributes:
        text: as written, quotes and escapes resolved.
        plain: False when quoted or tagged as a string.
    """

    line: int
    column: int
    text: str
    plain: bool
    size: int = 1

    @property
    def value(self) -> None | bool | int | float | str:
        """What the text means: a number, true or false, nothing, or the text itself."""
        if not self.plain:
            return self.text
        if self.text in _WORDS:
            return _WORDS[self.text]
        if _INTEGER.fullmatch(self.text):
            return int(self.text)
        if _NUMBER.fullmatch(self.text):
            return float(self.text.lower().replace(".inf", "inf"))
        return float("nan") if _NAN.fullmatch(self.text) else self.text


@dataclass(frozen=True)
class Items:
    """A list."""

    line: int
    column: int
    items: tuple[Node, ...]
    size: int


@dataclass(frozen=True)
class Entries:
    """A mapping: key -> (the key as written, its node)."""

    line: int
    column: int
    entries: Mapping[str, tuple[Scalar, Node]]
    size: int


Node: TypeAlias = Scalar | Items | Entries


def read_trees(text: str, name: str) -> tuple[list[Node], list[RecipeError]]:
    """Return the roots of the documents and what is wrong but does not stop the reading.

    Args:
        name: of the file, for errors.

    Raises:
        CuveeError: it is not YAML, or it is too large, too deep, or grows beyond reason through aliases.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(
            f"the text has {len(text)} characters, more than {MAX_CHARACTERS}", where=name, right="a smaller recipe"
        )
    builder = _Builder(name)
    try:
        for event in _events(text, name):
            if isinstance(event, DocumentStartEvent):
                builder.start_document()
            if isinstance(event, NodeEvent | SequenceEndEvent | MappingEndEvent):
                builder.take(event)
    except RecipeError as error:
        raise_all([*builder.problems, error])
    return builder.roots, builder.problems


def _events(text: str, name: str) -> Iterator[Any]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise RecipeError(
            f"an unprintable character, {text[error.position]!r}", where=f"{name}:{line}:{column}", right="plain text"
        ) from None
    except MarkedYAMLError as error:
        raise _not_yaml(error, name) from None
    except YAMLError as error:
        raise RecipeError(f"not YAML: {error}", where=name) from None


def _not_yaml(error: MarkedYAMLError, name: str) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = str(error.problem or error.context or "it cannot be read")
    if r"'\t'" in problem:
        return RecipeError("a tab where YAML wants spaces", where=where, right="spaces, two for each level")
    context = f" {error.context}" if error.context and error.problem else ""
    return RecipeError(
        f"not YAML: {problem}{context}", where=where, right="check indentation, quotes and brackets from here upwards"
    )


@dataclass
class _Open:
    """A list or mapping whose end has not been met."""

    start: Any
    nodes: list[Node] = field(default_factory=list)
    size: int = 1

    @property
    def key(self) -> str:
        """The key whose value comes next, in a mapping."""
        key = self.nodes[-1] if len(self.nodes) % 2 else None
        return key.text if isinstance(key, Scalar) else ""


class _Builder:
    """Puts nodes together from events, counting what aliases would make of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.roots: list[Node] = []
        self.problems: list[RecipeError] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}

    def start_document(self) -> None:
        self._anchors = {}

    def take(self, event: Any) -> None:
        if isinstance(event, SequenceStartEvent | MappingStartEvent):
            self._check_tag(event)
            if len(self._open) >= MAX_DEPTH:
                raise self._error(event, f"nested more than {MAX_DEPTH} deep", "a flatter recipe")
            self._open.append(_Open(event))
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            done = self._open.pop()
            self._add(self._container(done), done.start)
        elif isinstance(event, AliasEvent):
            self._add(self._aliased(event), event)
        elif isinstance(event, ScalarEvent):
            self._check_tag(event)
            is_plain = event.style is None and event.tag != "tag:yaml.org,2002:str"
            self._add(Scalar(*_place(event), event.value, is_plain), event)

    def _add(self, node: Node, event: Any) -> None:
        if event.anchor is not None and not isinstance(event, AliasEvent):
            self._anchors[event.anchor] = node
        if not self._open:
            self.roots.append(node)
            if sum(root.size for root in self.roots) > MAX_NODES:
                raise self._error(event, f"more than {MAX_NODES} values in all documents", "a smaller recipe")
            return
        parent = self._open[-1]
        parent.nodes.append(node)
        parent.size += node.size
        if parent.size > MAX_NODES:
            raise self._error(event, f"more than {MAX_NODES} values, aliases written out", "a smaller recipe")

    def _aliased(self, event: Any) -> Node:
        if any(one.start.anchor == event.anchor for one in self._open):
            raise self._error(event, f"*{event.anchor} stands inside what it names", "write it out")
        if event.anchor not in self._anchors:
            raise self._error(
                event, f"*{event.anchor} names no anchor above it", f"&{event.anchor} before its first use"
            )
        return self._anchors[event.anchor]

    def _container(self, done: _Open) -> Node:
        line, column = _place(done.start)
        if isinstance(done.start, SequenceStartEvent):
            return Items(line, column, tuple(done.nodes), done.size)
        return Entries(line, column, self._entries(done.nodes), done.size)

    def _entries(self, nodes: list[Node]) -> dict[str, tuple[Scalar, Node]]:
        entries: dict[str, tuple[Scalar, Node]] = {}
        merged: dict[str, tuple[Scalar, Node]] = {}
        for key, node in zip(nodes[::2], nodes[1::2], strict=True):
            if not isinstance(key, Scalar):
                self._problem(key, "a list or a mapping stands as a key", "a word as key")
            elif key.plain and key.text == "<<":
                merged = {**self._merged(node), **merged}
            elif not isinstance(key.value, str):
                right = f'"{key.text}", if it is meant as a word'
                self._problem(key, f"the key {key.text or 'null'} is not a word", right, key=key.text)
            elif key.text in entries:
                found = f"the key {key.text!r} stands twice, first in line {entries[key.text][0].line}"
                self._problem(key, found, "one of them, or one list", key=key.text)
            else:
                entries[key.text] = (key, node)
        return {**entries, **{key: entry for key, entry in merged.items() if key not in entries}}

    def _merged(self, node: Node) -> Mapping[str, tuple[Scalar, Node]]:
        """Return the entries that a `<<:` key brings in; of several mappings the first wins."""
        merged: dict[str, tuple[Scalar, Node]] = {}
        for one in node.items if isinstance(node, Items) else (node,):
            if isinstance(one, Entries):
                merged = {**one.entries, **merged}
            else:
                self._problem(one, "<< takes a mapping, or a list of them", "<<: *name", key="<<")
        return merged

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag not in _CORE_TAGS:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._problem(event, f"the tag {tag} is not allowed", "plain values")

    def _problem(self, at: Any, found: str, right: str, *, key: str = "") -> None:
        self.problems.append(self._error(at, found, right, key=key))

    def _error(self, at: Any, found: str, right: str, *, key: str = "") -> RecipeError:
        line, column = (at.line, at.column) if isinstance(at, Scalar | Items | Entries) else _place(at)
        path = self._path(key)
        where = f"{self.name}:{line}:{column}" + (f" ({path})" if path else "")
        return RecipeError(found[:400], where=where, right=right)

    def _path(self, key: str) -> str:
        """Return the key path of what is being put together, down to one of its keys."""
        parts = [str(len(one.nodes)) if isinstance(one.start, SequenceStartEvent) else one.key for one in self._open]
        return ".".join(part[:100] for part in (*parts, key) if part)


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
