"""Tiny models, and the command line called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_models import Models, make_models

from cuvee.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command has done."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line; `columns` is the width of the window."""

    def call(*arguments: object, columns: int = 100) -> Outcome:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A base with two experts, and a recipe for them."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def published(models: Models, run: Run, tmp_path: Path) -> Path:
    """A merged model."""
    outcome = run("merge", models.recipe, tmp_path / "out", "--quiet")
    assert outcome.code == 0, outcome.err
    return tmp_path / "out"
