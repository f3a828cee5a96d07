"""Scores of lm-evaluation-harness on a live model, item by item, kept by content.

    tasks = find_tasks(["sums"], include_path="tasks/")
    live = live_model(in_memory("models/base"))
    for merged in candidates:
        live.fill(merged)
        scores = score(live, tasks, limit=100)

Each task is run alone, so that what it gives does not depend on the others. The harness's own caches are never used: they
know neither the model nor the items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch

from cuvee.errors import CuveeError, ResourceError
from cuvee.evaluation.harness_tasks import HarnessTask, HarnessTasks, in_one_sentence, items_key
from cuvee.evaluation.kept_scores import KeptScores, code_of, key_of
from cuvee.evaluation.live_model import LiveModel
from cuvee.evaluation.lm_eval_guest import import_lm_eval, own_draws, quietly
from cuvee.evaluation.measures import standard_error

__all__ = ["HarnessScore", "score"]

_CODE = ("evaluation/harness.py", "evaluation/live_model.py", "evaluation/lm_eval_guest.py")
_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_WORDS = {
    "acc": "accuracy",
    "acc_norm": "accuracy by length",
    "bits_per_byte": "bits per byte",
    "byte_perplexity": "perplexity of bytes",
    "exact_match": "exact answers",
    "word_perplexity": "perplexity of words",
}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HarnessScore:
    """A model's score on a task, or on a group of tasks, by one metric.

    Attributes:
        task: its name.
        metric: in words, those of our suites where they have it.
        key: as the harness calls metric and filter: "acc_norm,none".
        value: as the harness computes it.
        n: number of items.
        higher_is_better: whether more is better.
        num_fewshot: solved examples before each item.
        ids: of the items, in order; empty for a group.
        items: one entry an item, where the metric has one: for means `value` is their mean.
        margins: of each item of a choice, log-probability of the best right answer − that of the best wrong one, in nats:
            above 0 where the choice is right. It moves where accuracy does not yet.
        is_cut: whether items were longer than the model's context, and lost their beginning.
    """

    task: str
    metric: str
    key: str
    value: float
    n: int
    higher_is_better: bool
    num_fewshot: int
    ids: Sequence[int] = field(default=(), repr=False)
    items: Sequence[float] | None = field(default=None, repr=False)
    margins: Sequence[float] | None = field(default=None, repr=False)
    is_cut: bool = False

    @property
    def standard_error(self) -> float:
        """Of a mean over the items; NaN where there are none, or one."""
        return standard_error(self.items)


def score(
    live: LiveModel,
    tasks: HarnessTasks,
    *,
    limit: int | None = None,
    items: Mapping[str, Sequence[int]] | None = None,
    chat_template: bool = False,
    run_unsafe_code: bool = False,
    kept: KeptScores | None = None,
    progress: Progress = lambda task, done, total: None,
) -> list[HarnessScore]:
    """Score a live model.

    Args:
        live: which one.
        tasks: on what.
        limit: only the first so many items of each task, the same for all models.
        items: only these, by task; others are left alone. In the order of the data, whatever the order here. (With few-shot
            examples, which are drawn item after item, the first items are asked as in a run over all; others may not be.)
        chat_template: ask as a chat, by the tokenizer's template, few-shot examples as turns of it.
        run_unsafe_code: let tasks run code that the model has written.
        kept: where scores are looked up and kept, by content of model, items and code.
        progress: is told the task, requests done, and all.

    Returns:
        One for each metric of each task, then of each group.

    Raises:
        ResourceError: a task runs code or fails, or memory does not hold one sequence.
        ValueError: both `limit` and `items`, or an item that there is not.
    """
    lm_eval = import_lm_eval()
    if limit is not None and items is not None:
        raise ValueError("either limit or items")
    for task in tasks.tasks.values():
        if getattr(task.task, "UNSAFE_CODE", False) and not run_unsafe_code:
            raise ResourceError(
                f"the task {task.name} runs code that the model writes", right="--confirm-run-unsafe-code, in a sandbox"
            )
    chosen = {name: _chosen(task, items) for name, task in tasks.tasks.items()}
    found: list[HarnessScore] = []
    for task in tasks.tasks.values():
        run = _Run(lm_eval, live, task, limit, chosen[task.name], chat_template, run_unsafe_code, progress)
        found += run.result(kept)
    return found + _of_groups(tasks, found)


def _chosen(task: HarnessTask, items: Mapping[str, Sequence[int]] | None) -> list[int] | None:
    if items is None or task.name not in items:
        return None
    # In any other order the harness gives its answers to the wrong items.
    chosen = sorted(set(items[task.name]))
    if not chosen or chosen[0] < 0 or chosen[-1] >= task.n:
        raise ValueError(f"items of {task.name} are 0 to {task.n - 1}")
    return chosen


@dataclass(frozen=True)
class _Run:
    """One task on one model."""

    lm_eval: Any
    live: LiveModel
    task: HarnessTask
    limit: int | None
    chosen: list[int] | None
    chat_template: bool
    run_unsafe_code: bool
    progress: Progress

    def result(self, kept: KeptScores | None) -> list[HarnessScore]:
        """Return the scores, as kept or as found now."""
        try:
            key = "" if kept is None else self._key()
            if kept is not None and (known := kept.record(key)) is not None:
                return [HarnessScore(**one) for one in known["scores"]]
            found = self._found()
        except CuveeError:
            raise
        except Exception as error:  # a task is other people's code
            raise ResourceError(
                f"the task {self.task.name} cannot be scored: {in_one_sentence(error)}",
                where=self.live.label,
                right="other settings of the task, or another model",
            ) from error
        if kept is not None:
            kept.put_record(key, {"scores": [asdict(one) for one in found]})
        return found

    def _key(self) -> str:
        """Return what the scores depend on: model, what is asked of it, and the code that asks."""
        asked = (self.limit, tuple(self.chosen or ()), self.live.key if self.chat_template else "")
        if asked not in self.task.keys:
            with quietly(), own_draws():
                self.task.rewind()
                self.task.task.build_all_requests(
                    limit=self.limit,
                    samples=self.chosen,
                    apply_chat_template=self.chat_template,
                    fewshot_as_multiturn=self.chat_template,
                    chat_template=self.live.lm.apply_chat_template if self.chat_template else None,
                )
            self.task.keys[asked] = items_key(self.task)
        versions = [version(name) for name in ("lm_eval", "transformers", "torch")]
        batch = self.live.lm.batch_size_per_gpu
        return key_of(
            "harness", versions, code_of(_CODE), self.live.key, self.live.digest, batch, self.task.keys[asked]
        )

    def _found(self) -> list[HarnessScore]:
        lm = self.live.lm
        while True:
            try:
                with quietly() as said, own_draws(), _watched(lm, self.task.name, self.progress) as watch:
                    self.task.rewind()
                    results = self.lm_eval.evaluator.evaluate(
                        lm=lm,
                        task_dict={"tasks": {self.task.name: self.task.task}},
                        limit=self.limit,
                        samples=None if self.chosen is None else {self.task.name: self.chosen},
                        bootstrap_iters=0,
                        apply_chat_template=self.chat_template,
                        fewshot_as_multiturn=self.chat_template,
                        confirm_run_unsafe_code=self.run_unsafe_code,
                    )
                return _scores(results, self.task, is_cut=watch.is_cut or any("runcat" in one for one in said))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if lm.batch_size_per_gpu == 1:
                    raise ResourceError(
                        f"memory does not hold one sequence of {self.task.name}",
                        right="a GPU with more, or --device cpu",
                    ) from None
                lm.batch_size_per_gpu //= 2


class _watched:
    """Counts answers as they come, through the place where the harness would cache them, and sees what it cuts in silence."""

    def __init__(self, lm: Any, task: str, progress: Progress) -> None:
        self._lm, self._task, self._progress = lm, task, progress
        self._done = self._total = 0
        self.is_cut = False

    def add_partial(self, kind: str, *_: object) -> None:
        """Count one answer."""
        self._done += 1
        self._progress(self._task, min(self._done, self._total), self._total)

    def __enter__(self) -> Self:
        self._hook, self._lm.cache_hook = self._lm.cache_hook, self
        for kind in _KINDS:
            setattr(self._lm, kind, self._counting(getattr(self._lm, kind)))
        self._lm._loglikelihood_tokens = self._measuring(self._lm._loglikelihood_tokens)
        return self

    def __exit__(self, *_: object) -> None:
        self._lm.cache_hook = self._hook
        for kind in (*_KINDS, "_loglikelihood_tokens"):
            delattr(self._lm, kind)

    def _counting(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def counted(requests: Sequence[Any], **options: Any) -> Any:
            self._done, self._total = 0, len(requests)
            self._progress(self._task, 0, self._total)
            return ask(requests, **options)

        return counted

    def _measuring(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def measured(requests: Sequence[Any], **options: Any) -> Any:
            most = self._lm.max_length + 1
            self.is_cut |= any(len(before or ()) + len(after) > most for _, before, after in requests)
            return ask(requests, **options)

        return measured


def _scores(results: Mapping[str, Any], task: HarnessTask, *, is_cut: bool) -> list[HarnessScore]:
    samples = results["samples"][task.name]
    found = []
    for key, value in results["results"][task.name].items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        own = [one for one in samples if one["filter"] == kind and metric in one]
        found.append(
            HarnessScore(
                task.name,
                _in_words(metric, kind),
                key,
                float(value),
                len(own),
                bool(results["higher_is_better"][task.name].get(metric, True)),
                task.num_fewshot,
                [one["doc_id"] for one in own],
                _numbers(metric, [one[metric] for one in own]),
                _margins(task, own),
                is_cut,
            )
        )
    return found


def _in_words(metric: str, kind: str) -> str:
    words = _WORDS.get(metric, metric.replace("_", " "))
    return words if kind == "none" else f"{words} ({kind})"


def _numbers(metric: str, values: Sequence[Any]) -> list[float] | None:
    """Return one number an item; bits per byte come as (log-likelihood, bytes)."""
    if metric == "bits_per_byte":
        return [-nats / size / math.log(2) for nats, size in values]
    return [float(one) for one in values] if all(isinstance(one, int | float | np.number) for one in values) else None


def _margins(task: HarnessTask, samples: Sequence[Mapping[str, Any]]) -> list[float] | None:
    if task.task.OUTPUT_TYPE != "multiple_choice":
        return None
    margins = []
    for one in samples:
        nats = [float(answer[0]) for answer in one["filtered_resps"]]
        right = _right_choices(task.task, one)
        wrong = [nats[choice] for choice in range(len(nats)) if choice not in right]
        if not right or not wrong or max(right) >= len(nats) or "acc_mutual_info" in one:
            return None
        margins.append(max(nats[choice] for choice in right) - max(wrong))
    return margins


def _right_choices(task: Any, sample: Mapping[str, Any]) -> list[int]:
    target = sample["target"]
    found = []
    for one in target if isinstance(target, list) else [target]:
        choices = task.doc_to_choice(sample["doc"]) if isinstance(one, str) else ()
        found.append(one if isinstance(one, int) else choices.index(one) if one in choices else -1)
    return [] if min(found, default=-1) < 0 else found


def _of_groups(tasks: HarnessTasks, found: Sequence[HarnessScore]) -> list[HarnessScore]:
    """Return the scores of groups, as the harness makes them of their tasks'."""
    metrics: dict[str, dict[str, Any]] = {}
    for one in found:
        metrics.setdefault(one.task, {"sample_len": 0})[one.key] = one.value
        metrics[one.task]["sample_len"] = max(metrics[one.task]["sample_len"], one.n)
    of_groups = []
    for name, group in tasks.groups.items():
        inside = {task.task_name for task in group.get_all_tasks()}
        with quietly():
            made = group.aggregate(metrics)
        for key, value in made.items():
            like = next((one for one in found if one.key == key and one.task in inside), None)
            if like is not None:
                n = made.get("sample_count", {}).get(key, like.n)
                shots = like.num_fewshot
                of_groups.append(HarnessScore(name, like.metric, key, float(value), n, like.higher_is_better, shots))
    return of_groups
