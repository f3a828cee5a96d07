"""The recipes that the speed benchmark runs, in mergekit's YAML, and the bar each has to meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from synthetic import Models

Recipe = dict[str, object]


@dataclass(frozen=True)
class SpeedCase:
    """One merge method in the benchmark.

    Attributes:
        recipe: Makes the recipe for the models.
        input_files: Chooses the weight files that the recipe reads.
        floor_bar: Merge phase at most this many times the copy floor; None where no bar was set.
        peer_bar: Whole process at least this many times faster than the peer's.
    """

    method: str
    recipe: Callable[[Models], Recipe]
    input_files: Callable[[Models], list[Path]]
    floor_bar: float | None
    peer_bar: float


def write_recipe(path: Path, recipe: Recipe) -> None:
    with path.open("w") as stream:
        YAML().dump(recipe, stream)


def _all_files(models: Models) -> list[Path]:
    return models.weight_files()


def _average(models: Models) -> Recipe:
    folders = (models.base, *models.experts)
    return {
        "merge_method": "linear",
        "models": [_model(folder, weight=1 / len(folders)) for folder in folders],
        "dtype": "bfloat16",
    }


def _interpolation(models: Models) -> Recipe:
    first, second = models.experts[:2]
    return {
        "merge_method": "slerp",
        "base_model": str(first),
        "models": [_model(first), _model(second)],
        "parameters": {"t": 0.5},
        "dtype": "bfloat16",
    }


def _of_deltas(method: str, *, shared: dict[str, object] | None = None, **each: float) -> Callable[[Models], Recipe]:
    """A recipe over a base model and its experts, every expert with the parameters `each`."""

    def recipe(models: Models) -> Recipe:
        made: Recipe = {
            "merge_method": method,
            "base_model": str(models.base),
            "models": [_model(folder, **each) for folder in models.experts],
            "dtype": "bfloat16",
        }
        return made | ({"parameters": shared} if shared else {})

    return recipe


def _model(folder: Path, **parameters: float) -> Recipe:
    return {"model": str(folder)} | ({"parameters": parameters} if parameters else {})


CASES: dict[str, SpeedCase] = {
    case.method: case
    for case in (
        SpeedCase("linear", _average, _all_files, floor_bar=2, peer_bar=5),
        SpeedCase("task_arithmetic", _of_deltas("task_arithmetic", weight=0.3), _all_files, 2, 5),
        SpeedCase("slerp", _interpolation, lambda models: models.weight_files()[1:3], 3, 3.5),
        SpeedCase("model_stock", _of_deltas("model_stock"), _all_files, 3, 3.5),
        SpeedCase("dare_ties", _of_deltas("dare_ties", weight=0.3, density=0.5), _all_files, None, 6),
        SpeedCase("ties", _of_deltas("ties", weight=1.0, density=0.5), _all_files, None, 15),
        SpeedCase("della", _of_deltas("della", weight=0.3, density=0.5, epsilon=0.1), _all_files, None, 15),
        SpeedCase("sce", _of_deltas("sce", shared={"select_topk": 0.5}), _all_files, None, 15),
    )
}
