"""A second process, with another PYTHONHASHSEED, that makes the same merge: `python -m cuvee.testing.second_process`.

It is started once and asked over its pipes, one JSON value a line, because importing torch takes longer than the merge.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

__all__ = ["digests_elsewhere", "digests_of"]


def digests_of(method: str, parameters: Mapping[str, Any], count: int, base: bool) -> dict[str, str]:
    """Merge specimens and return a digest of each tensor's bytes, by name."""
    import torch

    from cuvee.engine.in_memory import merge_tensors
    from cuvee.methods.registry import ADAPTERS, methods
    from cuvee.testing.specimens import FACTORS, LARGE, LARGE_FACTORS, SMALL, by_place, specimens, statistics_of

    found = {}
    is_adapter = method in methods() and methods()[method].on is ADAPTERS
    for shapes in (SMALL | FACTORS, LARGE | LARGE_FACTORS) if is_adapter else (SMALL, LARGE):
        given = specimens(count, shapes, seed=1)
        told = by_place(statistics_of(methods()[method].needs if method in methods() else (), count))
        merged = merge_tensors(method, given.models, given.base if base else None, statistics=told, **parameters)
        for name, tensor in merged.items():
            found[name] = blake3(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    return found


def digests_elsewhere(
    method: str, parameters: Mapping[str, Any], count: int, base: bool, *, module: str
) -> dict[str, str]:
    """As `digests_of`, in the second process, which imports `module` first.

    Raises:
        RuntimeError: the merge failed there.
    """
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    request = {"method": method, "parameters": dict(parameters), "count": count, "base": base, "module": module}
    process.stdin.write(json.dumps({**request, "path": sys.path}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
    if "error" in answer:
        raise RuntimeError(f"the second process: {answer['error']}")
    return {str(name): str(digest) for name, digest in answer["digests"].items()}


@functools.cache
def _process() -> subprocess.Popen[str]:
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    process = subprocess.Popen(
        [sys.executable, "-m", "cuvee.testing.second_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )

    def end() -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait()

    atexit.register(end)
    return process


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    sys.path[:] = request["path"]
    try:
        importlib.import_module(request["module"])
        return {"digests": digests_of(request["method"], request["parameters"], request["count"], request["base"])}
    except Exception as error:  # told to the one who asked
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # what a method prints is no answer
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)
