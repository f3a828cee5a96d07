"""A recipe as plain values, for records and hashes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cuvee.recipes.recipe import Recipe, RecipeModel, Slice
from cuvee.tokenizers.request import TokenizerRequest, ZeroRow

__all__ = ["describe_recipe"]


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, for records and hashes."""
    plain = {
        "merge_method": recipe.merge_method,
        "models": [_described(one) for one in recipe.models],
        "slices": [_described_slice(one) for one in recipe.slices],
        "modules": {
            name: {
                "models": [_described(one) for one in module.models],
                "slices": [_described_slice(one) for one in module.slices],
                "parameters": dict(module.parameters),
            }
            for name, module in recipe.modules.items()
        },
        "base_model": None if recipe.base_model is None else _name(recipe.base_model),
        "parameters": dict(recipe.parameters),
        "dtype": recipe.dtype,
        "out_dtype": recipe.out_dtype,
        "compute_dtype": recipe.compute_dtype,
        "seed": recipe.seed,
        "exclude": list(recipe.exclude),
        "only": None if recipe.only is None else list(recipe.only),
        "compat": recipe.compat,
        "before": [_described_edit(step) for step in recipe.before],
        "after": [_described_edit(step) for step in recipe.after],
        "tokenizer": None if recipe.tokenizer is None else _described_tokenizer(recipe.tokenizer),
        "chat_template": recipe.chat_template,
    }
    return {key: value for key, value in plain.items() if value not in (None, [], {})}


def _described(entry: RecipeModel) -> dict[str, Any]:
    said: dict[str, Any] = {"model": _name(entry.model), "parameters": dict(entry.parameters)}
    if entry.statistics is not None:
        said["statistics"] = _name(entry.statistics)
    return said if entry.layer_range is None else {**said, "layer_range": list(entry.layer_range)}


def _described_edit(step: Any) -> dict[str, Any]:
    return {step: None} if isinstance(step, str) else dict(step)


def _described_slice(one: Slice) -> dict[str, Any]:
    said: dict[str, Any] = {"sources": [_described(entry) for entry in one.sources], "parameters": dict(one.parameters)}
    return said if one.base_model is None else {**said, "base_model": _name(one.base_model)}


def _described_tokenizer(request: TokenizerRequest) -> dict[str, Any]:
    said = dataclasses.asdict(request) | {"source": _name(request.source)}
    for token, rule in request.tokens.items():
        said["tokens"][token]["source"] = (
            "zero" if isinstance(rule.source, ZeroRow) else said["tokens"][token]["source"]
        )
    return said


def _name(reference: Any) -> Any:
    if isinstance(reference, Recipe):
        return {"name": reference.name, **describe_recipe(reference)}
    return str(reference) if isinstance(reference, str | Path) else f"<{type(reference).__name__} in memory>"
