"""What the tests of this folder share: models written by the safetensors package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import WriteModel
from safetensors.torch import save_file


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Write a folder with model.safetensors and, where given, config.json."""

    def write(tensors: Mapping[str, torch.Tensor], config: dict[str, Any] | None = None, name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(dict(tensors), folder / "model.safetensors")
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write
