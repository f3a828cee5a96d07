"""Docstrings taken apart."""

from __future__ import annotations

from cuvee.cli.docstrings import read_docstring


def documented():
    """Merge models
    on two lines.

    A body, which
    goes on.

    Another paragraph.

    Args:
        weight: of each model,
            any sign: also negative.
        one, two: said of both.

    Returns:
        (…), float32:
        the result.

    Raises:
        ValueError: never.

    Source: a paper, section 3.
    """


def test_all_parts_are_found():
    page = read_docstring(documented)
    assert page.summary == "Merge models on two lines."
    assert page.body == "A body, which goes on.\n\nAnother paragraph."
    assert page.arguments == {
        "weight": "of each model, any sign: also negative.",
        "one": "said of both.",
        "two": "said of both.",
    }
    assert page.returns == "(…), float32: the result."
    assert page.source == "a paper, section 3."


def test_no_docstring_is_an_empty_page():
    assert read_docstring(lambda: None).summary == ""
