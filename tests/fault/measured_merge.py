"""Merge in a process that watches its own anonymous memory: `python measured_merge.py FOLDER REQUEST`, REQUEST as JSON.

Prints the peak of RssAnon in bytes, sampled every few milliseconds from the start of the process, and the bytes merged.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

PEAK = [0]


def anonymous_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def watch() -> None:
    while True:
        PEAK[0] = max(PEAK[0], anonymous_bytes())
        time.sleep(0.004)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    os.chdir(sys.argv[1])
    request = json.loads(sys.argv[2])

    import cuvee
    from cuvee.recipes import Recipe, RecipeModel

    models = request["models"]
    if request.get("statistics"):
        models = [RecipeModel(one, statistics=told) for one, told in zip(models, request["statistics"], strict=True)]
    recipe = Recipe(request["method"], models=models, base_model=request.get("base"),
                    parameters=request.get("parameters", {}))  # fmt: skip
    report = cuvee.merge(recipe, Path(request["out"]), **request.get("options", {}))
    PEAK[0] = max(PEAK[0], anonymous_bytes())
    print(json.dumps({"peak": PEAK[0], "read": report.bytes_read, "written": report.bytes_written}))
