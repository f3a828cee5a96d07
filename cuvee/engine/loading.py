"""The smoke check: does transformers find in a folder exactly the tensors that its config.json promises?

The model is built on the meta device, so that no weight is read and no memory taken. No code of the folder is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cuvee.checkpoints.folders import read_config
from cuvee.errors import CheckpointError, CuveeError, ResourceError, printable

__all__ = ["check_loads"]

_MOST_NAMES = 6


def check_loads(folder: Path) -> list[CuveeError]:
    """Return what transformers would miss, find in excess, or find in another shape.

    Raises:
        ResourceError: transformers is not installed.
        CheckpointError: config.json names no architecture that transformers has.
    """
    transformers = _import()
    names = (read_config(folder) or {}).get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    if name is None:
        raise CheckpointError("config.json names no architecture", where=str(folder), right='"architectures": ["…"]')
    model_class = getattr(transformers, name, None)
    if model_class is None or not hasattr(model_class, "from_pretrained"):
        raise CheckpointError(
            f"transformers {transformers.__version__} has no {printable(name)[:100]}",
            where=str(folder / "config.json"),
            right="another version of transformers; code that comes with a model is not run",
        )
    try:
        _, said = model_class.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [CheckpointError(f"transformers cannot build it: {printable(first)[:300]}", where=str(folder))]
    return list(_problems(said, folder))


def _import() -> Any:
    try:
        import accelerate  # noqa: F401  the meta device of transformers needs it
        import transformers
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed", right="pip install transformers accelerate") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _problems(said: Any, folder: Path) -> list[CuveeError]:
    errors: list[CuveeError] = []
    words = {"missing_keys": "are missing", "unexpected_keys": "belong to no part of the architecture"}
    for key, found in words.items():
        names = sorted(said.get(key) or ())
        if names:
            errors.append(CheckpointError(f"{len(names)} tensors {found}: {_some(names)}", where=str(folder)))
    for name, stored, wanted in sorted(said.get("mismatched_keys") or (), key=str):
        errors.append(
            CheckpointError(
                f"tensor {printable(name)!r} is {tuple(stored)}, and config.json makes it {tuple(wanted)}",
                where=str(folder / "config.json"),
            )
        )
    return errors


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(repr(printable(name)) for name in names[:_MOST_NAMES]) + more
