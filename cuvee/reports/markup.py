"""Markup for pages: elements of HTML and SVG as strings, escaped where text is put in."""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["element", "joined", "text"]

_EMPTY = {"br", "circle", "line", "meta", "path", "polyline", "rect"}


def element(name: str, *children: str, **attributes: object) -> str:
    """Return `<name …>children</name>`.

    Args:
        name: of the element.
        children: markup; use `text` for what is not.
        attributes: `class_` is class, `data_x` is data-x; None leaves an attribute out. Numbers are written short.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY and not children:
        return f"<{name}{written}/>"
    return f"<{name}{written}>{''.join(children)}</{name}>"


def joined(parts: Iterable[str]) -> str:
    """Return markup one after the other."""
    return "".join(parts)


def text(value: object) -> str:
    """Return text as markup."""
    return html.escape(str(value), quote=False)


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
