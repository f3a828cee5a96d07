"""Tiny models of transformers on the meta device, as names and shapes, each built once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Described:
    """What a checkpoint of a model would say: names with shapes, and config.json as written by `save_pretrained`."""

    shapes: Shapes
    config: dict[str, Any]


Build = Callable[..., Described]


@pytest.fixture(scope="session")
def build() -> Build:
    """Return a function that builds a model from its class, its config's class and settings."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install cuvee[dev])")
    torch = pytest.importorskip("torch")
    built: dict[tuple[str, str], Described] = {}

    def make(config_class: Any, settings: dict[str, Any]) -> Any:
        nested = {key: make_part(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return config_class(**nested)

    def make_part(part: tuple[str, dict[str, Any]]) -> Any:
        return make(config_class_of(part[0]), part[1])

    def config_class_of(name: str) -> Any:
        found = getattr(transformers, name, None)
        if found is None:
            pytest.skip(f"transformers {transformers.__version__} has no {name}")
        return found

    def describe_model(config_name: str, model_name: str, settings: dict[str, Any]) -> Described:
        key = config_name, model_name
        if key not in built:
            config = make(config_class_of(config_name), settings)
            with torch.device("meta"):
                model = config_class_of(model_name)(config)
            shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            built[key] = Described(shapes, {**config.to_diff_dict(), "architectures": [model_name]})
        return built[key]

    return describe_model
