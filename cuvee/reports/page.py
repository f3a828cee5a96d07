"""A page: one file of HTML with its style inside, no script and no network; light and dark, as narrow as a phone."""

from __future__ import annotations

import pkgutil

from cuvee.reports.markup import element, text

__all__ = ["page", "section"]


def page(title: str, *parts: str) -> str:
    """Return the whole file.

    Args:
        title: of the window.
        parts: markup of the body.
    """
    style = (pkgutil.get_data(__name__, "page.css") or b"").decode()
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # nothing may be fetched, whatever a label says
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("title", text(title)),
        element("style", style),
    )
    return "<!DOCTYPE html>\n" + element("html", head, element("body", element("main", *parts)), lang="en") + "\n"


def section(title: str, words: str, *parts: str) -> str:
    """Return a part of a page with its heading and a sentence that says how it is read."""
    said = element("p", text(words), class_="soft") if words else ""
    return element("section", element("h2", text(title)), said, *parts)
