"""Markup for pages: elements of HTML and SVG as strings, escaped where text is put in."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["element", "joined", "name", "text"]

_EMPTY = {"br", "circle", "line", "meta", "path", "polyline", "rect", "wbr"}


def element(tag: str, *children: str, **attributes: object) -> str:
    """Return `<tag …>children</tag>`.

    Args:
        tag: name of the element.
        children: markup; use `text` for what is not.
        attributes: `class_` is class, `data_x` is data-x; None leaves an attribute out. Numbers are written short.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY and not children:
        return f"<{tag}{written}/>"
    return f"<{tag}{written}>{''.join(children)}</{tag}>"


def joined(parts: Iterable[str]) -> str:
    """Return markup one after the other."""
    return "".join(parts)


def text(value: object) -> str:
    """Return text as markup."""
    return html.escape(str(value), quote=False)


def name(value: str) -> str:
    """Return a name as markup that may be broken after its signs."""
    return re.sub(r"([_:,=])(?=.)", r"\1<wbr/>", text(value))


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
