"""What all tests share: the helpers beside this file, importable by name."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # torch's threads in two test processes would wait for each other, awake
    os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("models")
sys.path.insert(0, str(Path(__file__).parent))
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell has its background jobs ignore it, and so would what they start
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder that is the current one, so that models have the same names in every test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
