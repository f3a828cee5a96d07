"""A run of a suite as CSV, as JSON with all numbers, and as Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cuvee
from cuvee.evaluation.measures import Interval
from cuvee.evaluation.results import Bench
from cuvee.reports.bench_rows import Row, bench_rows, shifted_by
from cuvee.reports.numbers import chosen, plus_minus, signed, two_digits

__all__ = ["DEFINITIONS", "as_csv", "as_json", "as_markdown"]

DEFINITIONS = (
    (
        "normalised",
        "mean over the experts' tasks of merged / own expert, upside down where less is better; 1 is all experts",
    ),
    ("default", "the same with the method's default coefficient instead of the one chosen on the validation split"),
    ("recovered", "mean share of each expert's gain over the base that is kept; 0 is the base, 1 all experts"),
    ("forgetting", "change against the base on the base's own tasks, in the unit of the score; below 0 is forgotten"),
    ("unseen", "change against the base on tasks that nobody was trained on"),
    (
        "shifted N",
        "normalised score on data of the experts' tasks that are shifted by severity N, 1 (slight) to 5; 1 is every expert on "
        "its own task, shifted as far",
    ),
    ("merge", "processor time and memory of one merge in memory, one thread, nothing kept from before"),
)
"""What the columns mean."""


def as_csv(bench: Bench) -> str:
    """Return one line a model, numbers unrounded."""
    rows = [_flat(row, bench) for row in bench_rows(bench)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_json(bench: Bench) -> str:
    """Return all that was found: the rows, and by seed the curves over coefficient, number of experts and their training."""
    found = {
        "cuvee": cuvee.__version__,
        "suite": bench.suite,
        "quick": bench.quick,
        "limit": bench.limit,
        "severities": list(bench.severities),
        "command": bench.command,
        "seeds": [{"seed": seed.seed, "key": seed.key} for seed in bench.seeds],
        "tasks": [vars(task) for task in bench.tasks.values()],
        "definitions": dict(DEFINITIONS),
        "models": [_flat(row, bench) for row in bench_rows(bench)],
        "curves": {label: [_curves(one) for one in bench.outcomes(label)] for label in bench.variants},
    }
    return json.dumps(_plain(found), indent=1, allow_nan=False) + "\n"


def as_markdown(bench: Bench) -> str:
    """Return the table with what its columns mean."""
    columns = [
        "model",
        "normalised",
        "default",
        "coefficient",
        "recovered",
        "forgetting",
        "unseen",
        *map(shifted_by, bench.shifts),
        "merge, s",
    ]
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    rows = bench_rows(bench)
    lines += [_cells(row, bench.shifts) for row in rows if not row.failure]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    failures = "\n".join(f"* `{row.label}`: {row.failure}" for row in rows if row.failure)
    meant = "\n".join(f"* {name}: {words}" for name, words in DEFINITIONS)
    parts = [f"# {bench.title}", f"`{bench.command}`", table, "Not merged:\n\n" + failures if failures else "", meant]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(row: Row, shifts: Sequence[int]) -> list[str]:
    assert row.summary is not None
    found = row.summary
    return [
        row.name,
        plus_minus(found.normalised),
        two_digits(row.default.mean if row.default else None),
        chosen(row),
        two_digits(found.recovered.mean),
        signed(found.forgetting),
        signed(found.unseen),
        *(two_digits(found.shifted[one].mean if one in found.shifted else None) for one in shifts),
        two_digits(row.seconds),
    ]


def _flat(row: Row, bench: Bench) -> dict[str, Any]:
    found = row.summary
    line: dict[str, Any] = {"kind": row.kind, "model": row.label}
    measures = {name: getattr(found, name, None) for name in ("normalised", "recovered", "forgetting", "unseen")}
    measures |= {shifted_by(one): found.shifted.get(one) if found else None for one in bench.shifts}
    for name, measure in measures.items():
        line[name] = measure.mean if measure else None
        line[f"{name}_half"] = _known(measure)
    for metric in dict.fromkeys(bench.tasks[task].metric for task in bench.seeds[0].own):
        line[f"absolute ({metric})"] = found.absolute[metric].mean if found else None
    line |= {
        "default": row.default.mean if row.default else None,
        "coefficient": row.coefficient,
        "chosen": " ".join(f"{one:g}" for one in row.chosen),
        "seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "failure": row.failure,
    }
    return line | {f"task {name}": row.tasks.get(name) for name in bench.tasks}


def _known(measure: Interval | None) -> float | None:
    return measure.half if measure and math.isfinite(measure.half) else None


def _curves(outcome: Any) -> dict[str, Any]:
    return {
        "by_coefficient": [list(point) for point in outcome.tuned.curve] if outcome.tuned else [],
        "by_experts": dict(outcome.by_size),
        "by_share_of_training": dict(outcome.by_share),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
