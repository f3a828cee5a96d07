"""Cuvée makes one model out of many: model merging, streamed, in bounded memory, with a result that can be trusted.

import cuvee

cuvee.merge("recipe.yml", "out/")
merged = cuvee.merge_tensors("ties", [math, code], base, density=0.5)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cuvee._version import __version__

if TYPE_CHECKING:
    from cuvee.checkpoints.opening import open_model
    from cuvee.engine.continuing import continue_merge
    from cuvee.engine.in_memory import merge_tensors
    from cuvee.engine.keeping import KeptDecompositions
    from cuvee.engine.plan import Plan, plan
    from cuvee.engine.run import Report, merge, run
    from cuvee.engine.transplanting import transplant
    from cuvee.errors import CuveeError
    from cuvee.methods.registry import methods
    from cuvee.moe import ExpertEntry, MoeConfig, build_moe
    from cuvee.recipes import Recipe, RecipeModel, load_recipe
    from cuvee.recipes.presets import preset

_HOMES = {
    "CuveeError": "cuvee.errors",
    "ExpertEntry": "cuvee.moe",
    "KeptDecompositions": "cuvee.engine.keeping",
    "MoeConfig": "cuvee.moe",
    "Plan": "cuvee.engine.plan",
    "Recipe": "cuvee.recipes",
    "RecipeModel": "cuvee.recipes",
    "Report": "cuvee.engine.run",
    "build_moe": "cuvee.moe",
    "continue_merge": "cuvee.engine.continuing",
    "load_recipe": "cuvee.recipes",
    "merge": "cuvee.engine.run",
    "merge_tensors": "cuvee.engine.in_memory",
    "methods": "cuvee.methods.registry",
    "open_model": "cuvee.checkpoints.opening",
    "plan": "cuvee.engine.plan",
    "preset": "cuvee.recipes.presets",
    "run": "cuvee.engine.run",
    "transplant": "cuvee.engine.transplanting",
}

__all__ = [
    "CuveeError",
    "ExpertEntry",
    "KeptDecompositions",
    "MoeConfig",
    "Plan",
    "Recipe",
    "RecipeModel",
    "Report",
    "__version__",
    "build_moe",
    "continue_merge",
    "load_recipe",
    "merge",
    "merge_tensors",
    "methods",
    "open_model",
    "plan",
    "preset",
    "run",
    "transplant",
]


def __getattr__(name: str) -> Any:
    # Names load their module at first use, so that `cuvee --help` waits for none of them.
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'cuvee' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
