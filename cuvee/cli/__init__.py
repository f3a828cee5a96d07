"""The command line: one file a command; parsing and printing only."""

import os

# A merge has threads of its own, and one matrix is one thread's: NumPy's pool would only wait, awake, beside them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from cuvee.cli.app import main  # noqa: E402

__all__ = ["main"]
