"""What `benchmarks/methods.py` runs: every registered method, every edit around a method, and variants that a peer has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from synthetic import LlamaShape, Models

from cuvee.methods.registry import ADAPTERS, Edit, Method, Parameter, edits, methods
from cuvee.recipes.wrapping import INNER

# fmt: off
MERGEKIT = frozenset({
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della",
    "della_linear", "karcher", "linear", "model_stock", "multislerp", "nearswap",
    "nuslerp", "passthrough", "ram", "ramplus_tl", "sce", "slerp",
    "task_arithmetic", "ties",
})
# fmt: on
"""The methods that mergekit has too, and by the same recipe."""
FUSION_BENCH = frozenset({"consensus_ta", "doge", "iso_c", "iso_cts", "magmax", "opcm", "tsv_m", "wudi_merging"})
"""Those that FusionBench has, with Cuvée's defaults beside it."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "cabs": {"n": 4, "m": 16},
    "della": {"epsilon": 0.1},
    "della_linear": {"epsilon": 0.1},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "magmax": {"scaling": 0.5},
    "metrics_weighted_averaging": {"metric": 2.0},
    "multi_krum": {"f": 0},
    "nearswap": {"t": 0.0001},
    "output_filter": {"inner": "wudi_merging"},
    "sce": {"select_topk": 0.5},
}
"""What is said beside weights and densities, so that a method does what it is for; `inner` is what an edit wraps."""
PER_MODEL = {"weight": 0.3, "density": 0.5}


@dataclass(frozen=True)
class Case:
    """One row: a method, or an edit named as one, with its parameters, and the peers that do the same."""

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    mergekit: bool = False
    fusion_bench: str = ""

    @property
    def step(self) -> Edit | None:
        """The edit, where it is one."""
        return edits().get(self.method)

    @property
    def merged_by(self) -> Method:
        """The method, or the one that the edit wraps."""
        return methods()[self.settings.get("inner", INNER) if self.step else self.method]


VARIANTS = (
    Case(
        "ties (whole model)",
        "ties",
        {"density": 0.2, "trim_scope": "model", "merge_func": "sum", "scaling": 0.3},
        fusion_bench="ties",
    ),
    Case("wudi_merging (adam)", "wudi_merging", {"solver": "adam"}, fusion_bench="wudi_merging"),
)


def cases() -> dict[str, Case]:
    """Return the rows, by name: one for each registered method, one for each edit, then variants of those there are."""
    known = methods()
    found = [
        Case(name, name, SETTINGS.get(name, {}), name in MERGEKIT, name if name in FUSION_BENCH else "")
        for name in known
    ]
    found += [Case(name, name, SETTINGS.get(name, {})) for name in edits()]
    found += [
        one for one in VARIANTS if one.method in known and one.settings.keys() <= known[one.method].parameters.keys()
    ]
    return {one.name: one for one in found}


def recipe_of(case: Case, models: Models) -> dict[str, Any]:
    """Return the recipe of a row, over as many of the four experts as the method takes."""
    method = case.merged_by
    _, high = method.models
    folders = models.experts[: min(high or len(models.experts), len(models.experts))]
    base: Path | None = models.base if method.base.name == "REQUIRED" else None
    if method.base.name == "ENDPOINT":
        base = folders[0]
    values = _values(method) | (_values(case.step) if case.step else {}) | case.settings
    own = {
        name: value for name, value in values.items() if name in method.parameters and method.parameters[name].per_model
    }
    shared = {name: value for name, value in values.items() if name not in own}
    recipe: dict[str, Any] = {"merge_method": case.method, "dtype": "bfloat16"}
    if base is not None:
        recipe["base_model"] = str(base)
    names = [f"{one}-adapter" if method.on is ADAPTERS else str(one) for one in folders]
    recipe["models"] = [{"model": one, **({"parameters": dict(own)} if own else {})} for one in names]
    if method.needs:
        for one, folder in zip(recipe["models"], folders, strict=True):
            one["statistics"] = f"{folder}-statistics.safetensors"
    return recipe | ({"parameters": shared} if shared else {})


def write_statistics(recipe: Mapping[str, Any], shape: LlamaShape) -> None:
    """Write what a recipe's models are said to have as statistics: random hidden states of twenty texts."""
    for number, one in enumerate(recipe["models"]):
        draws = np.random.Generator(np.random.SFC64([7, number]))
        layers = {f"hidden/model.layers.{layer}": (20, shape.hidden) for layer in range(shape.layers)}
        states = {name: draws.standard_normal(size, np.float32) for name, size in layers.items()}
        if "statistics" in one:
            save_file(states, one["statistics"])


def write_adapters(recipe: Mapping[str, Any], shape: LlamaShape, rank: int = 16) -> None:
    """Write the adapters that a recipe names: random factors of every matrix in the layers."""
    maps = {name: size for name, size in shape.tensors().items() if len(size) == 2 and ".layers." in name}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "down_proj"]}
    for number, one in enumerate(recipe["models"]):
        folder = Path(one["model"])
        if not folder.name.endswith("-adapter"):
            continue
        draws = np.random.Generator(np.random.SFC64([8, number]))
        factors = {}
        for name, (rows, columns) in maps.items():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{module}.lora_A.weight"] = draws.standard_normal((rank, columns), np.float32)
            factors[f"{module}.lora_B.weight"] = draws.standard_normal((rows, rank), np.float32)
        folder.mkdir(exist_ok=True)
        save_file(factors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))


def inputs_of(recipe: Mapping[str, Any]) -> list[Path]:
    """Return the weight files that a recipe reads, the base's first."""
    named = [recipe.get("base_model"), *(one["model"] for one in recipe["models"])]
    files = [Path(one) / "model.safetensors" for one in dict.fromkeys(filter(None, named))]
    return [
        one.with_name("adapter_model.safetensors") if one.parent.name.endswith("-adapter") else one for one in files
    ]


def _values(method: Method | Edit) -> dict[str, Any]:
    return {
        one.name: _value(one)
        for one in method.parameters.values()
        if one.required or (one.name in PER_MODEL and one.per_model)
    }


def _value(parameter: Parameter) -> Any:
    return parameter.choices[0] if parameter.choices else PER_MODEL.get(parameter.name, 0.5)
