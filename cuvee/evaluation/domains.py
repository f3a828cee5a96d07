"""Real text that every installation holds, in domains, and split by document into training, validation and test text.

Nothing is downloaded: the documents are files of the Python standard library, PyTorch, NumPy and matplotlib. Which side
a document is on follows from its name alone, so a text that a model was trained on is never one that it is scored on.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cuvee.errors import ResourceError

__all__ = [
    "ENGLISH",
    "EXPERTISE",
    "UNSEEN",
    "Corpus",
    "Document",
    "Domain",
    "Side",
    "docstrings",
    "python_files",
    "read_corpus",
    "side_of",
]

Side = Literal["train", "validation", "test"]

TRAIN_BYTES = 1_000_000
HELD_OUT_BYTES = 12_288
# A held-out document gives one passage from its middle, so that many documents have a say, and not only their headers.
PASSAGE_BYTES = 512
_SHORTEST_BYTES = 200
_TEST_ONE_IN = _VALIDATION_ONE_IN = 8
_BETWEEN = b"\n\n"


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        name: the same on every machine; decides the split and the order.
        read: returns its bytes.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Domain:
    """A kind of text.

    Attributes:
        name: a word, which also names the expert.
        title: as tables print it.
        source: where the text comes from.
        documents: lists them, in any order.
    """

    name: str
    title: str
    source: str
    documents: Callable[[], Iterable[Document]]


@dataclass(frozen=True)
class Corpus:
    """The text of a domain.

    Attributes:
        domain: which one.
        train: documents one after the other.
        validation, test: a passage of each of their documents, one after the other.
        names: the documents of each side.
    """

    domain: Domain
    train: bytes = field(repr=False)
    validation: bytes = field(repr=False)
    test: bytes = field(repr=False)
    names: Mapping[Side, tuple[str, ...]] = field(repr=False)


def side_of(name: str) -> Side:
    """Return what the document of this name is for: training, choosing coefficients, or scoring."""
    digest = _digest(name)
    if digest[0] % _TEST_ONE_IN == 0:
        return "test"
    return "validation" if digest[0] % _VALIDATION_ONE_IN == 1 else "train"


def read_corpus(domain: Domain, *, train_bytes: int = TRAIN_BYTES, held_out_bytes: int = HELD_OUT_BYTES) -> Corpus:
    """Read documents, in the order of a hash of their names, until all sides are full or all are read.

    A document with the same bytes as an earlier one, or hardly any, is left out.

    Raises:
        ResourceError: the domain has no text in this installation.
    """
    sides: dict[Side, _Filling] = {
        "train": _Filling(train_bytes),
        "validation": _Filling(held_out_bytes),
        "test": _Filling(held_out_bytes),
    }
    seen: set[bytes] = set()
    for document in sorted(domain.documents(), key=lambda one: _digest(one.name)[1:]):
        side = side_of(document.name)
        if sides[side].is_full:
            continue
        text = document.read()
        content = hashlib.sha256(text).digest()
        if content not in seen and len(text) >= _SHORTEST_BYTES:
            seen.add(content)
            sides[side].add(document.name, text if side == "train" else _passage(text))
    if not all(side.names for side in sides.values()):
        raise ResourceError(
            f"this installation has no text for the domain {domain.name!r}: {domain.source}",
            where=str(sysconfig.get_path("purelib")),
            right="install PyTorch, NumPy and matplotlib from their wheels",
        )
    names: dict[Side, tuple[str, ...]] = {side: tuple(filling.names) for side, filling in sides.items()}
    return Corpus(domain, sides["train"].text, sides["validation"].text, sides["test"].text, names)


class _Filling:
    """One side of the split, up to a size."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[bytes] = []
        self.names: list[str] = []
        self.is_full = False

    def add(self, name: str, text: bytes) -> None:
        self._parts.append(text)
        self.names.append(name)
        self.is_full = sum(map(len, self._parts)) >= self._size

    @property
    def text(self) -> bytes:
        return _BETWEEN.join(self._parts)[: self._size]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _passage(text: bytes) -> bytes:
    start = max(0, (len(text) - PASSAGE_BYTES) // 2)
    return text[start : start + PASSAGE_BYTES]


# --- Domains --------------------------------------------------------------------------------------------------------


def _english() -> Iterator[Document]:
    """The topics of Python's help, and the docstrings of NumPy's and matplotlib's modules, without their code."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield _in_memory(f"topics/{name}", text)
    for package in ("numpy", "matplotlib"):
        for file in python_files(package):
            yield Document(file.name, lambda file=file: _joined(docstrings(file.read())))  # type: ignore[misc]


def python_files(package: str) -> Iterator[Document]:
    """Return the Python files of an installed package, or those of the standard library for "python"."""
    return _python() if package == "python" else _files(_package(package), ".py", but_not=("tests",))


def _python() -> Iterator[Document]:
    """The standard library without tests, generated tables, and applications that some systems leave out."""
    beside = ("test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "encodings",
              "turtledemo", "ensurepip", "tkinter")  # fmt: skip
    files = _files(Path(sysconfig.get_path("stdlib")), ".py", but_not=beside)
    return (file for file in files if not file.name.rpartition("/")[2].startswith("_sysconfigdata"))


def _cpp() -> Iterator[Document]:
    """The headers of PyTorch that people wrote; generated ones would also tell of the held-out YAML."""
    for folder in ("c10", "torch", "ATen"):
        for file in _files(_package("torch") / "include" / folder, ".h", but_not=("ops", "generated")):
            yield Document(file.name, lambda file=file: _unless_generated(file.read()))  # type: ignore[misc]


def _unicode() -> Iterator[Document]:
    """The names of characters, a block of 128 a document; those that only spell a number or a syllable are left out."""
    for start in range(0, 0x20000, 128):
        named = ((code, unicodedata.name(chr(code), "")) for code in range(start, start + 128))
        names = [name for code, name in named if name and not name.endswith(f"{code:04X}")]
        names = [name for name in names if not name.startswith("HANGUL SYLLABLE")]
        if names:
            yield _in_memory(f"U+{start:05X}", "\n".join(names) + "\n")


def _yaml() -> Iterator[Document]:
    """The list of PyTorch's operators, one family a document: variants of an operator stay on one side."""
    listing = _package("torchgen") / "packaged" / "ATen" / "native" / "native_functions.yaml"
    families: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=- func:)", listing.read_text() if listing.is_file() else "")[1:]:
        family = re.match(r"- func: _*([a-z]+)", entry)
        families.setdefault(family.group(1) if family else "", []).append(entry)
    for name, entries in families.items():
        yield _in_memory(f"operators/{name}", "\n".join(entries))


def _cmake() -> Iterator[Document]:
    """The CMake scripts of PyTorch."""
    yield from _files(_package("torch") / "share" / "cmake", ".cmake", but_not=())


ENGLISH = Domain("english", "English", "docstrings of NumPy and matplotlib, the topics of Python's help", _english)
EXPERTISE = (
    Domain("python", "Python", "the standard library", _python),
    Domain("cpp", "C++", "the headers of PyTorch", _cpp),
    Domain("unicode", "Unicode", "the names of characters", _unicode),
    Domain("yaml", "YAML", "the list of PyTorch's operators", _yaml),
)
UNSEEN = Domain("cmake", "CMake", "the build scripts of PyTorch", _cmake)
"""Text that no model has read, and that is none of its domains."""


def _joined(texts: Iterable[str]) -> bytes:
    return _BETWEEN.join(text.encode() for text in texts)


def _in_memory(name: str, text: str) -> Document:
    data = text.encode()
    return Document(name, lambda: data)


def _files(folder: Path, ending: str, *, but_not: tuple[str, ...]) -> Iterator[Document]:
    for path in folder.rglob("*" + ending):
        inside = path.relative_to(folder)
        if not set(but_not).intersection(inside.parts):
            yield Document(f"{folder.name}/{inside.as_posix()}", path.read_bytes)


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ResourceError(f"the package {name!r} is not installed", right=f"pip install {name}")
    return Path(found.origin).parent


def _unless_generated(source: bytes) -> bytes:
    return b"" if b"generated" in source[:500].lower() or b'"schema":' in source else source


def docstrings(source: bytes) -> list[str]:
    """Return the docstrings of a module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's escapes
        tree = ast.parse(source)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in found if text]
