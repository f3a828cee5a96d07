"""Edits before and after a merge."""

from __future__ import annotations

from typing import Any

import pytest

from cuvee.recipes import Recipe, prepare, validate

pytestmark = pytest.mark.usefixtures("fakes")


def recipe(**changes: Any) -> Recipe:
    return Recipe("fake_deltas", **{"models": ["a"], "base_model": "base", **changes})


def test_edits_come_with_all_their_parameters() -> None:
    prepared = prepare(
        recipe(before=[{"fake_filter": {"share": 1}}], after=["fake_refiner", {"fake_refiner": {"alpha": 2}}])
    )
    assert [(edit.name, values) for edit, values in prepared.before] == [
        ("fake_filter", {"share": 1.0, "exact": False})
    ]
    assert [(edit.name, values) for edit, values in prepared.after] == [
        ("fake_refiner", {"alpha": 0.5}),
        ("fake_refiner", {"alpha": 2.0}),
    ]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"before": [{"fake_filtre": {}}]}, "unknown edit 'fake_filtre'"),
        (
            {"before": [{"fake_refiner": {}}]},
            "'fake_refiner' cannot stand before the merge: it changes the merged task vector, which is not there yet",
        ),
        (
            {"after": ["fake_filter"]},
            "'fake_filter' cannot stand after the merge: it changes the task vectors of single models, "
            "which are merged by then",
        ),
        ({"before": ["fake_deltas"]}, "'fake_deltas' is a merge method, and before it stand edits"),
        ({"before": ["fake_filter"]}, "fake_filter needs share"),
        ({"before": [{"fake_filter": {"share": 2}}]}, "share is 2"),
        ({"before": [{"fake_filter": {"share": [0, 1]}}]}, "share is [0, 1]"),
        ({"before": [{"fake_filter": {"share": 1, "exactly": True}}]}, "fake_filter has no parameter 'exactly'"),
        ({"before": [{"fake_filter": 0.5}]}, "the parameters of fake_filter are 0.5"),
        ({"before": [{"a": {}, "b": {}}]}, "an edit is one name with its parameters"),
        ({"before": [3]}, "an edit is one name with its parameters"),
        ({"before": {"fake_filter": {"share": 1}}}, "before is not a list"),
    ],
)
def test_what_is_wrong_with_an_edit_is_told_once(changes: dict[str, Any], found: str) -> None:
    (error,) = validate(recipe(**changes))
    assert error.found == found
    assert error.right


def test_edits_need_task_vectors() -> None:
    edits = [{"fake_filter": {"share": 1}}]
    (error,) = validate(Recipe("fake_weights", models=["a"], before=edits))
    assert error.found == "before edits task vectors, and fake_weights merges weights"
    optional = {"models": ["a", "b"], "parameters": {"weight": 1}, "after": ["fake_refiner"]}
    (error,) = validate(Recipe("fake_optional", **optional))
    assert error.found == "after edits task vectors, and fake_optional merges weights without a base model"
    assert error.right == "name the base_model"
    assert validate(Recipe("fake_optional", base_model="base", **optional)) == []
