"""A coverage-guided fuzz target: `python fuzz_target.py CORPUS -atheris_runs=100000` (pip install cuvee[fuzz]).

The first byte chooses the kind of file. A wrong acceptance, an error that is not in words, or a hang ends it with the input.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch  # noqa: F401  first: after atheris it does not load

import atheris  # isort: skip

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

with atheris.instrument_imports(include=["cuvee"]):
    import fuzzing

KINDS = list(fuzzing.JUDGES)
FOLDER = Path(os.environ.get("CUVEE_FUZZ_FOLDER") or fuzzing.scratch_folder())


def test_one_input(data: bytes) -> None:
    if data:
        fuzzing.judge(KINDS[data[0] % len(KINDS)], data[1:], FOLDER)


if __name__ == "__main__":
    fuzzing.watch_for_code()
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
