"""What methods have noted of tensors: of each for the manifest, and of all in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cuvee.engine.tasks import Task

__all__ = ["notes_in_words", "notes_of_tensor"]


def notes_of_tensor(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is noted of one tensor; where it holds several experts, a list of theirs under each name."""
    if len(notes) == 1:
        return dict(notes[0])
    names = dict.fromkeys(name for one in notes for name in one)
    return {name: [one.get(name) for one in notes] for name in names}


def notes_in_words(
    tasks: Sequence[Task], notes: Mapping[str, Mapping[str, Any]], labels: Mapping[int, str]
) -> list[str]:
    """Return lines: numbers as the range that they have in each role of tensors, how often each model was chosen, fallbacks.

    Args:
        tasks: all of the plan.
        notes: of those tensors that have any, see `methods.calls.noted`.
        labels: of the models, by number.
    """
    ranges: dict[str, dict[str, list[int]]] = {}
    chosen: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()
    nouns: dict[str, str] = {}
    for task in sorted(tasks, key=lambda task: (task.role, task.name)):
        for what, fact in notes.get(task.name, {}).items():
            found = list(_flat(fact))
            if what == "fallback":
                fallbacks.update(found)
                if len(task.layout.shape) < 2:
                    nouns |= dict.fromkeys(found, "tensor")
            elif what == "chosen":
                choices = 1 if fact == found else sum(one is not None for one in fact)  # or one an expert
                offered.update([labels[one.model] for one in task.inputs] * choices)
                chosen.update(labels[task.inputs[k].model] for k in found)
            else:
                ranges.setdefault(what, {}).setdefault(task.role, []).extend(found)
    lines = [
        f"{what.replace('_', ' ')}: " + ", ".join(f"{role} {_range(found)}" for role, found in by_role.items() if found)
        for what, by_role in ranges.items()
    ]
    if offered:
        lines.append("chosen: " + ", ".join(f"{label} in {chosen[label]} of {offered[label]}" for label in offered))
    many = {"matrix": "matrices", "tensor": "tensors"}
    for what, count in fallbacks.items():
        noun = nouns.get(what, "matrix")
        lines.append(f"{count} {noun if count == 1 else many[noun]} became {what}")
    return lines


def _flat(fact: Any) -> Iterator[Any]:
    """Yield the numbers or words of a fact, by model and by expert as it may be."""
    if isinstance(fact, Mapping):
        fact = list(fact.values())
    if isinstance(fact, list):
        for one in fact:
            yield from _flat(one)
    elif fact is not None:
        yield fact


def _range(found: Sequence[int]) -> str:
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low} to {high}"
