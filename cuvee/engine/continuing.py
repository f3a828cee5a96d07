"""Continuing: one more expert into a published model, from what it has kept of its merge, without the earlier experts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.checkpoints import fs
from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.sidecars import digest_of
from cuvee.checkpoints.sources import Model
from cuvee.engine.manifest import MANIFEST_NAME, is_sealed, read_manifest
from cuvee.engine.matching import BASE
from cuvee.engine.plan import MergePlan, plan
from cuvee.engine.run import Report, run
from cuvee.errors import CheckpointError, RecipeError, printable
from cuvee.methods.calls import CONTINUAL
from cuvee.methods.registry import methods
from cuvee.recipes import Recipe, RecipeModel

__all__ = ["continue_merge", "plan_continued"]

_KEPT_OF_RECIPE = ("dtype", "out_dtype", "compute_dtype", "seed", "exclude", "only")
_HINDRANCES = ("slices", "modules", "before", "after", "tokenizer", "chat_template")


def continue_merge(
    out: str | PathLike[str], add: Sequence[Any] | PathLike[str], *, allow_nan: bool = False, **options: Any
) -> Report:
    """Merge further experts into a published model, which is replaced in one step when the new one is complete.

    Args:
        out: its folder.
        add: the experts, in order; or one.
        allow_nan: let NaN and Inf through.
        options: those of `plan`.

    Raises:
        CheckpointError: the model was not merged by a method that can be continued, or its kept state is damaged.
        RecipeError: an expert is in it already, or its recipe cannot be continued.
    """
    return run(plan_continued(out, add, **options), out, overwrite=True, allow_nan=allow_nan)


def plan_continued(out: str | PathLike[str], add: Sequence[Any] | PathLike[str], **options: Any) -> MergePlan:
    """Plan to merge further experts into a published model; see `continue_merge`.

    The accumulation that it has kept stands for the models merged before; with it go their norms.
    """
    if isinstance(add, str | PathLike):
        add = [add]
    folder = Path(os.path.abspath(out))
    manifest = read_manifest(folder)
    described = _recipe_of(manifest, folder)
    _check_new(add, described, folder)
    accumulated = _accumulation(manifest, folder)
    recipe = Recipe(
        str(described["merge_method"]),
        models=[RecipeModel(accumulated), *add],
        base_model=described["base_model"],
        parameters={name: value for name, value in described.get("parameters", {}).items() if name != "order"},
        **{key: described[key] for key in _KEPT_OF_RECIPE if key in described},
    )
    planned = plan(recipe, **options)
    return replace(
        planned,
        asked=replace(planned.asked, recipe=_with(add, described), text=""),
        formula=replace(planned.formula, statistics={CONTINUAL: manifest["continual"]}),
        plan_id=blake3(f"{planned.plan_id} {manifest['seal']}".encode()).hexdigest(),
        roles={0: "accumulation of the models merged before"},
        expected=_digests_of_base(manifest),
        replaces=folder,
    )


def _recipe_of(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the recipe of a model that can be continued, as plain values."""
    described = manifest.get("recipe")
    if not is_sealed(manifest) or not isinstance(described, dict):
        raise CheckpointError(
            "the manifest does not have the digest that it was written with: it was changed",
            where=str(folder / MANIFEST_NAME),
            right="merge again, or fetch the model again",
        )
    if "continual" not in manifest:
        method = str(described.get("merge_method", "no method"))
        able = [name for name, one in methods().items() if one.continual]
        kept = "with continual: false" if method in able else "which keeps nothing to go on from"
        raise CheckpointError(
            f"this model was merged by {printable(method)}, {kept}",
            where=str(folder),
            right=f"a model merged by {', '.join(able)}, or one merge of all experts"
            if method not in able
            else "one merge of all experts, without continual: false",
        )
    for key in _HINDRANCES:
        if key in described:
            raise RecipeError(
                f"a merge with {key} cannot be continued", where=str(folder), right="one merge of all experts"
            )
    if str(described["base_model"]).startswith("<"):
        raise RecipeError(
            "the base of this merge was in memory",
            where=str(folder),
            right="a merge whose base is a folder or a hub id",
        )
    return described


def _check_new(add: Sequence[Any], described: Mapping[str, Any], folder: Path) -> None:
    """Refuse an expert that is in the model: the command was given twice, or was killed just after it had published."""
    if not add:
        raise RecipeError("no expert is named", where=str(folder), right="--add EXPERT")
    there = {_place(str(entry["model"])): "merged into this model already" for entry in described["models"]}
    there[_place(str(described["base_model"]))] = "the base of this model, and adds nothing"
    for one in (str(model) for model in add if isinstance(model, str | Path)):
        if _place(one) in there:
            raise RecipeError(f"{one!r} is {there[_place(one)]}", where=str(folder), right="another expert, if any")
        there[_place(one)] = "to be added twice"


def _place(model: str) -> str:
    """Return what two references to one model have in common: the paths of model and adapter without detours and links."""
    return "+".join(str(fs.real_path(Path(part))) for part in model.split("+"))


def _spoken(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else f"<{type(model).__name__} in memory>"


def _with(add: Sequence[Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe that merges all experts at once; those added come last, in an order that is given too."""
    models, parameters = list(described["models"]), dict(described.get("parameters", {}))
    is_ordered = any("order" in one["parameters"] for one in models)
    for one in add:
        if "order" in parameters:
            parameters["order"] = [*parameters["order"], len(models)]
        models.append({"model": _spoken(one), "parameters": {"order": len(models)} if is_ordered else {}})
    return {**described, "models": models, **({"parameters": parameters} if parameters else {})}


def _accumulation(manifest: Mapping[str, Any], folder: Path) -> Model:
    """Open what the model has kept, after holding it against the manifest."""
    for name, digest in manifest["output"].get("files", {}).items():
        if name.startswith(f"{CONTINUAL}/") and digest_of(folder / name) != digest:
            raise CheckpointError(
                "the file is not what was published", where=str(folder / name), right="one merge of all experts"
            )
    if not fs.is_folder(folder / CONTINUAL):
        raise CheckpointError(
            "what the merge would go on from is not there",
            where=str(folder / CONTINUAL),
            right="one merge of all experts",
        )
    return replace(open_model(str(folder / CONTINUAL)), label=str(folder), is_delta=True)


def _digests_of_base(manifest: Mapping[str, Any]) -> dict[tuple[int, str], str]:
    """Return what the base's tensors must be: on another one the accumulation means nothing."""
    base: Mapping[str, Any] = next((one for one in manifest["inputs"] if one["role"] == "base"), {})
    return {(BASE, str(name)): str(digest) for name, digest in base.get("tensors", {}).items()}
