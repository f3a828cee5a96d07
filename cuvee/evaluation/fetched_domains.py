"""More domains of text: manual pages in other languages and the King James Bible out of packages, and sums."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from itertools import groupby

from cuvee.evaluation.domains import Document, Domain, side_of
from cuvee.evaluation.packages import Package, members
from cuvee.evaluation.texts import KJV

__all__ = ["BIBLE", "MANUALS", "SUMS", "Sum", "manual_package", "sums"]

_SUMS_A_DOCUMENT = 32
_DOCUMENTS_OF_SUMS = 3000
_LARGEST = 99
_LICENCE = "GPL-3+ and the licences of the pages"


def manual_package(language: str) -> Package:
    """Return the package of manual pages in a language: "fr", "de", …"""
    return Package("debian", f"manpages-{language}", "", "", _LICENCE, "manual pages")


def _manual(language: str, title: str) -> Domain:
    def pages() -> Iterator[Document]:
        for path, data in members(manual_package(language), [f"usr/share/man/{language}/"]).items():
            if path.endswith(".gz"):
                yield Document(path, lambda data=data: _plain(gzip.decompress(data)))  # type: ignore[misc]

    return Domain(title.lower(), title, f"manual pages of Debian's manpages-{language}", pages)


_COMMENT = re.compile(rb"^[.']\s*\\\".*$", re.MULTILINE)
_MACRO = re.compile(rb"^[.'][A-Za-z]* *", re.MULTILINE)
_ESCAPE = re.compile(rb"\\(?:f[BIPR]|f\[\w*\]|\*\[\w*\]|[&%:/,]|\(\w\w)")


def _plain(troff: bytes) -> bytes:
    """Return the text of a manual page: without comments, names of macros and changes of font."""
    text = _ESCAPE.sub(b"", _MACRO.sub(b"", _COMMENT.sub(b"", troff))).replace(b"\\-", b"-")
    return re.sub(rb"\n\s*\n+", b"\n\n", text).strip()


def _chapters() -> Iterator[Document]:
    path = "package/json/verses-1769.json"
    verses = json.loads(members(KJV, [path])[path]).items()
    for chapter, lines in groupby(verses, key=lambda one: one[0].rpartition(":")[0]):
        text = "\n".join(verse.lstrip("# ") for _, verse in lines)
        yield Document(chapter, lambda text=text: text.encode())  # type: ignore[misc]


# --- Sums -----------------------------------------------------------------------------------------------------------

Sum = str
"""As "12+7=19" or "7-12=-5"."""


def sums() -> Iterator[tuple[str, list[Sum]]]:
    """Yield documents: a name, and sums on its side: none is trained on and scored, nor is its twin, 7+12 of 12+7."""
    generator = random.Random(0)
    waiting: dict[str, list[Sum]] = {"train": [], "validation": [], "test": []}
    for place in range(_DOCUMENTS_OF_SUMS):
        name = f"sums/{place}"
        own = waiting[side_of(name)]
        while len(own) < _SUMS_A_DOCUMENT:
            one, other = generator.randint(0, _LARGEST), generator.randint(0, _LARGEST)
            sign = generator.choice("+-")
            twins = f"{min(one, other)}{sign}{max(one, other)}"
            waiting[side_of(twins)].append(f"{one}{sign}{other}={one + other if sign == '+' else one - other}")
        yield name, [own.pop() for _ in range(_SUMS_A_DOCUMENT)]


def _documents_of_sums() -> Iterator[Document]:
    for name, lines in sums():
        yield Document(name, lambda lines=lines: "\n".join(lines).encode())  # type: ignore[misc]


MANUALS: dict[str, Domain] = {
    language: _manual(language, title)
    for language, title in {"fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}.items()
}
BIBLE = Domain("bible", "King James", "the King James Bible, by chapter", _chapters)
SUMS = Domain("sums", "Sums", "sums and differences of numbers up to 99, made here", _documents_of_sums)
