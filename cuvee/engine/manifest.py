"""The manifest and the model card: the lineage that travels with a published model.

`cuvee.json` holds what decides the output and what came out: recipe, inputs with content hashes, tensors with hashes,
version. It holds no times and no hosts, so that equal merges have equal manifests. Its seal is a digest of all the rest,
fields of later versions included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee._version import __version__
from cuvee.checkpoints import fs
from cuvee.checkpoints.folders import ADAPTER_WEIGHTS
from cuvee.engine.given import describe_statistics
from cuvee.engine.matching import BASE
from cuvee.engine.notes import notes_in_words
from cuvee.engine.plan import Plan, slowness
from cuvee.engine.stages import describe_stages
from cuvee.errors import CheckpointError, printable
from cuvee.tensors.digests import model_digest

__all__ = ["FORMAT", "MANIFEST_NAME", "build_manifest", "is_sealed", "manifest_json", "model_card", "read_manifest"]

MANIFEST_NAME = "cuvee.json"
FORMAT = 1
_MOST_BYTES = 256 << 20


def build_manifest(
    plan: Plan,
    outputs: Mapping[str, str],
    marks: Mapping[str, str],
    files: Mapping[str, str],
    inputs: Mapping[int, Mapping[str, str]],
    non_finite: Mapping[str, int],
    notes: Mapping[str, Mapping[str, Any]] = {},
    continual: Sequence[float] = (),
) -> dict[str, Any]:
    """Return the content of cuvee.json, without its seal.

    Args:
        outputs: digest of each output tensor.
        marks: of its leaves.
        files: digest of each other file, but for the model card, which is the user's to change.
        inputs: digest of each tensor read, by model and name.
        non_finite: output tensors that hold NaN or Inf, and how many.
        notes: what the method has noted of output tensors.
        continual: numbers that a continued merge goes on from, beside the files in the folder of that name.
    """
    shards = {name: shard.file for shard in plan.shards for name in shard.tensors}
    manifest = {
        "format": FORMAT,
        "cuvee": __version__,
        "plan": plan.plan_id,
        "profile": plan.profile,
        "recipe": plan.asked.recipe,
        "recipe_text": plan.asked.text,
        "stages": describe_stages(plan.models),
        "inputs": [
            *(_input(plan, number, inputs.get(number, {})) for number in plan.models),
            *describe_statistics(plan.statistics),
        ],
        "output": {
            "digest": model_digest(outputs),
            "tensors": {
                task.name: {
                    "file": shards[task.name],
                    "dtype": task.dtype.name,
                    "shape": list(task.layout.shape),
                    "blake3": outputs[task.name],
                    **({"leaves": marks[task.name]} if task.layout.leaves > 1 else {}),
                    **({"notes": notes[task.name]} if task.name in notes else {}),
                }
                for task in sorted(plan.tasks, key=lambda task: task.name.encode("utf-8"))
            },
            "files": dict(sorted(files.items())),
        },
        "left_out": dict(sorted(plan.left_out.items())),
        "dropped": dict(sorted(plan.dropped.items())),
        "non_finite": dict(sorted(non_finite.items())),
        "warnings": [said for said in plan.warnings if said not in slowness()],
    }
    if plan.tokens:
        manifest["tokens"] = dict(plan.tokens)
    if continual:
        manifest["continual"] = list(continual)
    return {key: value for key, value in manifest.items() if value not in ({}, [], "")}


def _input(plan: Plan, number: int, digests: Mapping[str, str]) -> dict[str, Any]:
    model = plan.models[number]
    unread = sorted(set(model.tensors) - set(digests))
    content: dict[str, Any] = {
        "model": model.label,
        "role": plan.roles.get(number) or ("base" if number == BASE else f"model {number}"),
        "digest": model_digest(digests),
        "tensors": dict(sorted(digests.items())),
    }
    if model.commits:
        content["commits"] = dict(model.commits)
    if unread:
        content["unread"] = unread
    return content


def manifest_json(manifest: Mapping[str, Any]) -> bytes:
    """Return the text of cuvee.json, sealed."""
    sealed = {**manifest, "seal": _seal(manifest)}
    return (json.dumps(sealed, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """True when nothing in a manifest was changed since it was written."""
    try:
        return manifest.get("seal") == _seal(manifest)
    except RecursionError:
        return False


def _seal(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return blake3(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a published model.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of a newer version.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(fs.read_file(path, limit=_MOST_BYTES))
    except OSError:
        raise CheckpointError(
            f"there is no {MANIFEST_NAME}", where=str(folder), right="the folder of a model that cuvee has published"
        ) from None
    except (ValueError, OverflowError, RecursionError):
        raise CheckpointError(
            "the manifest is damaged", where=str(path), right="merge again, or fetch the model again"
        ) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise CheckpointError("this is not a manifest of cuvee", where=str(path), right="a model that cuvee published")
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"the manifest has format {manifest['format']}, written by cuvee {printable(str(manifest.get('cuvee')))}; "
            f"cuvee {__version__} reads up to {FORMAT}",
            where=str(path),
            right="pip install -U cuvee",
        )
    return manifest


def _public_name(label: str) -> str:
    """A local folder is called by its name alone: where it lies is nobody else's business."""
    return Path(label).name if Path(label).is_absolute() else label


def model_card(plan: Plan, notes: Mapping[str, Mapping[str, Any]] = {}) -> bytes:
    """Return the text of README.md: what the Hugging Face hub shows.

    Args:
        notes: what the method has noted of output tensors.
    """
    names = [printable(_public_name(model.label)) for model in plan.models.values()]
    listed = "\n".join(
        f"- `{name}`{' (base)' if n == BASE else ''}" for n, name in zip(plan.models, names, strict=True)
    )
    recipe = plan.asked.text or json.dumps(plan.asked.recipe, indent=2, ensure_ascii=False)
    left_out = "\n".join(f"- `{printable(name)}`: {reason}" for name, reason in sorted(plan.left_out.items()))
    library = "peft" if any(shard.file in ADAPTER_WEIGHTS for shard in plan.shards) else "transformers"
    text = f"""---
library_name: {library}
tags:
- merge
- cuvee
base_model:
{chr(10).join(f"- {json.dumps(name, ensure_ascii=False)}" for name in dict.fromkeys(names))}
---
# A merge by Cuvée

Made of {len(set(names))} models by {plan.asked.by} with cuvee {__version__}.

{listed}

## Recipe

```yaml
{recipe.strip()}
```
"""
    said = notes_in_words(plan.tasks, notes, dict(zip(plan.models, names, strict=True)))
    if said:
        text += "\n## What the method did\n\n" + "\n".join(f"- {line}" for line in said) + "\n"
    if left_out:
        text += f"\n## Not merged\n\n{left_out}\n"
    return text.encode("utf-8", "backslashreplace")
