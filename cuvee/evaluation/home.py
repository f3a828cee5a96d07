"""Where Cuvée keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cuvee_home"]


def cuvee_home() -> Path:
    """Return `CUVEE_HOME`, or ~/.cache/cuvee."""
    return Path(os.environ.get("CUVEE_HOME") or Path.home() / ".cache" / "cuvee")
