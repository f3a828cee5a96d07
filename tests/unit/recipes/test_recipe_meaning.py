"""A recipe explained with its own numbers."""

from __future__ import annotations

import pytest

from cuvee.recipes import Recipe, explain, parse_recipe, prepare

pytestmark = pytest.mark.usefixtures("fakes")


def test_every_number_of_the_recipe_is_said() -> None:
    recipe = parse_recipe(
        """
merge_method: fake_deltas
base_model: base
models:
  - model: a
    parameters: {weight: [{filter: mlp, value: [0, 1]}], density: 0.5}
  - model: b
    parameters: {weight: [{filter: norm, value: 2}, {value: 0}]}
parameters: {weight: [{filter: head, value: 3}], normalize: false}
before: [fake_filter: {share: 0.5}]
after: [fake_refiner]
only: ["*.mlp.*"]
"""
    )
    assert explain(recipe, prepare(recipe)) == (
        "fake_deltas",
        "task vectors of 'a', 'b' from 'base'",
        "before, on each task vector: fake_filter(share=0.5, exact=false)",
        "weight: 'a' 0 → 1 from the first layer to the last (0 outside the layers) where the name has 'mlp', "
        "else 3 where the name has 'head', else 1 (default); 'b' 2 where the name has 'norm', 0 for the rest",
        "density: 'a' 0.5; 'b' 1 (default)",
        "normalize: false",
        "steps: 3 (default)",
        "tie_sign: plus (default)",
        "scaling: 1 (default)",
        "embed_mismatch: error (default)",
        "after, on the merged task vector: fake_refiner(alpha=0.5)",
        "merged are only: '*.mlp.*'",
        "computed in float32, rounded once to the dtype of the input",
    )


def test_the_place_of_the_base_is_said() -> None:
    member = Recipe("fake_members", models=["a", "b"], base_model="c")
    assert "models 'a', 'b', 'c'; the base model is one of them" in explain(member, prepare(member))
    plain = Recipe("fake_weights", models=["a", {}])
    assert "models 'a', model 1" in explain(plain, prepare(plain))
