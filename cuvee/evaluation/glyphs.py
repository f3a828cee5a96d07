"""Letters and signs as pictures: drawn in the fonts that matplotlib brings along, turned, moved and sized at random.

A font that a sign is scored in is never one that it is trained in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cuvee.errors import ResourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image, ImageFont

__all__ = ["ARMENIAN", "CYRILLIC", "GEORGIAN", "GREEK", "LATIN", "SIDE", "SIGNS", "draw_signs"]

SIDE = 28
"""Pixels a side of every picture."""

LATIN = "".join(map(chr, range(0x61, 0x7B)))
GREEK = "".join(map(chr, (*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA))))
CYRILLIC = "".join(map(chr, range(0x430, 0x450)))
ARMENIAN = "".join(map(chr, range(0x561, 0x587)))
GEORGIAN = "".join(map(chr, range(0x10D0, 0x10F1)))
SIGNS = "".join(
    map(chr, (*range(0x2200, 0x2210), *range(0x2227, 0x2233), *range(0x2260, 0x226C), *range(0x2190, 0x219A)))
)

_FAMILIES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
_HELD_OUT = ("DejaVuSans-Oblique", "DejaVuSerif-Bold", "DejaVuSansMono-BoldOblique", "STIXGeneral")
_LARGE = 64
"""Signs are drawn large and brought down, which smooths them."""


def draw_signs(signs: str, count: int, *, held_out: bool, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return (count, 28, 28) pictures, white on black, and (count,) places in `signs`.

    Args:
        signs: the classes; they take turns.
        count: of pictures.
        held_out: in fonts for scoring, and not in those for training.
        seed: of the draws.

    Raises:
        ResourceError: matplotlib, which has the fonts, or Pillow, which draws, is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ResourceError("drawing letters needs Pillow", right="pip install 'cuvee[bench]'") from None
    generator = np.random.default_rng((seed, int(held_out)))
    pictures = np.empty((count, SIDE, SIDE), np.uint8)
    labels = np.arange(count) % len(signs)
    for place, label in enumerate(labels):
        fonts = _fonts_of(signs[label], held_out)
        large = _drawn(fonts[int(generator.integers(len(fonts)))], signs[label])
        turn, size, right, down = generator.uniform((-15, 0.75, -3, -3), (15, 1.15, 3, 3))
        moved = large.rotate(turn, resample=Image.Resampling.BILINEAR)
        edge = (_LARGE - _LARGE / size) / 2
        box = (edge - right, edge - down, _LARGE - edge - right, _LARGE - edge - down)
        moved = moved.transform((SIDE, SIDE), Image.Transform.EXTENT, box, resample=Image.Resampling.BICUBIC)
        pictures[place] = np.asarray(moved)
    return pictures, labels


@dataclass(frozen=True)
class _Font:
    path: Path
    signs: frozenset[int]


@cache
def _fonts() -> list[_Font]:
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
    except ImportError:
        raise ResourceError(
            "drawing letters needs the fonts of matplotlib", right="pip install 'cuvee[bench]'"
        ) from None
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [path for path in sorted(folder.glob("*.ttf")) if path.stem.startswith(_FAMILIES)]
    plain = [path for path in files if "Display" not in path.stem]
    return [_Font(path, frozenset(FT2Font(str(path)).get_charmap())) for path in plain]


@cache
def _fonts_of(sign: str, held_out: bool) -> Sequence[Path]:
    return [one.path for one in _fonts() if ord(sign) in one.signs and (one.path.stem in _HELD_OUT) == held_out]


@cache
def _drawn(font: Path, sign: str) -> Image.Image:
    """Return a sign in the middle of a large picture."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (_LARGE, _LARGE))
    ImageDraw.Draw(picture).text((_LARGE / 2, _LARGE / 2), sign, 255, _sized(font), anchor="mm")
    return picture


@cache
def _sized(font: Path) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(font), 46)
