"""What a search pays for a candidate: the merge, filling a live model with it, and scoring it on a task of the harness.

    taskset -c 1 python benchmarks/scores_in_a_search.py [--merges 100]

Two tiny language models of bytes are merged by task arithmetic with another weight each time, and scored on 32 items of three
choices (`pip install "cuvee[eval]"`). Prints milliseconds of processor time, the median of all merges but the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from speed_report import machine_in_words

import cuvee
from cuvee.evaluation.harness import score
from cuvee.evaluation.harness_tasks import find_tasks
from cuvee.evaluation.in_memory import in_memory
from cuvee.evaluation.live_model import live_model
from cuvee.evaluation.model_folders import save_model
from cuvee.evaluation.tiny_llama import Shape, TinyLlama

SHAPE = Shape(hidden=32, intermediate=48, layers=2, heads=4, key_value_heads=2, context=48)
TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: right
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
Result = TypeVar("Result")


def main() -> None:
    """Merge, fill and score, and print what each takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merges", type=int, default=100)
    merges = parser.parse_args().merges
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = search(Path(folder), merges)
    print(f"{merges} merges on {machine_in_words()}, one thread; ms of processor time")
    for part, seconds in parts.items():
        print(f"  {part}: {1000 * statistics.median(seconds[1:]):.2f}")
    print(f"  all of it: {sum(map(sum, parts.values())):.1f} s")


def search(folder: Path, merges: int) -> dict[str, list[float]]:
    """Return the seconds of each part of each candidate."""
    for seed, name in enumerate(("base", "one", "two")):
        save_model(TinyLlama(SHAPE, seed=seed), folder / name)
    tasks = find_tasks(["sums"], include_path=str(write_task(folder / "tasks")))
    live = live_model(in_memory(folder / "base"))
    base, *experts = (in_memory(folder / name).tensors for name in ("base", "one", "two"))
    seconds: dict[str, list[float]] = {"merge": [], "fill": [], "score": []}

    def timed(part: str, work: Callable[[], Result]) -> Result:
        begin = time.process_time()
        result = work()
        seconds[part].append(time.process_time() - begin)
        return result

    for place in range(merges):
        weight = (place + 1) / merges
        merged = timed("merge", lambda: cuvee.merge_tensors("task_arithmetic", experts, base, weight=weight))  # noqa: B023
        timed("fill", lambda: live.fill(merged))  # noqa: B023
        timed("score", lambda: score(live, tasks))
    return seconds


def write_task(folder: Path) -> Path:
    """Write 32 sums, each with three answers to choose from."""
    folder.mkdir()
    rows = [
        {"question": f"{a}+{b}=", "choices": [str(a + b + more) for more in range(3)], "right": 0}
        for a in range(8)
        for b in range(4)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(TASK.format(data=folder / "sums.jsonl"))
    return folder


if __name__ == "__main__":
    main()
