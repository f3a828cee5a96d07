"""Running a suite: every variant merged in memory, tuned on validation data with one budget, scored on test data.

All candidates see the same items in the same order. What was merged or scored before is not computed again.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.checkpoints.opening import open_model
from cuvee.engine.comparing import Comparison, compare
from cuvee.engine.keeping import KeptDecompositions
from cuvee.errors import CuveeError, Problems, ResourceError
from cuvee.evaluation.in_memory import first_non_finite
from cuvee.evaluation.kept_scores import MERGING, KeptScores, code_of, digest_of, kept_score, key_of
from cuvee.evaluation.measures import nested_subsets, normalised
from cuvee.evaluation.parallel import each_on_a_core
from cuvee.evaluation.results import Choice, Cost, Outcome, SeedResult
from cuvee.evaluation.suites.suite import BASE, Built, Corruption, Score, Split
from cuvee.evaluation.variants import GRIDS, Variant, merged, merged_adapters
from cuvee.methods.registry import ADAPTERS, find_method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Lineup", "Runner", "sizes_between"]

Tensors = Mapping[str, "Tensor"]
Shifted = dict[int, dict[str, dict[str, "Score"]]]
Check = Callable[[], None]


@dataclass(frozen=True)
class Lineup:
    """The experts that are merged.

    Attributes:
        experts: their names.
        share: of their training, in (0, 1].
    """

    experts: tuple[str, ...]
    share: float = 1.0


class NoMerge(Exception):  # noqa: N818 - becomes a row of the table
    """There is no merge to score, and why.

    Attributes:
        lasts: the same experts and code would give the same answer again.
    """

    def __init__(self, why: str, *, lasts: bool = True) -> None:
        super().__init__(why)
        self.lasts = lasts


class Runner:
    """Scores variants on one seed of a suite.

    Args:
        built: the suite.
        kept: what was found before.
        limit: the most items of a task; None: all.
        severities: of the shifts, each 1 to 5.
        sizes: numbers of experts to merge beside all of them.
    """

    def __init__(
        self,
        built: Built,
        kept: KeptScores,
        *,
        limit: int | None = None,
        severities: Sequence[int] = (3,),
        sizes: Sequence[int] = (),
    ) -> None:
        self._built = built
        self._kept = kept
        self._limit = limit
        self._severities = severities
        self._sizes = sizes
        self._decompositions = KeptDecompositions()
        self._base = built.tensors(built.base)
        self._experts = {(name, 1.0): built.tensors(one) for name, one in built.experts.items()}
        for share, experts in built.weaker.items():
            self._experts |= {(name, share): built.tensors(one) for name, one in experts.items()}
        self._digests = {place: digest_of(tensors) for place, tensors in self._experts.items()}
        self._base_digest = digest_of(self._base)
        self._all = Lineup(tuple(built.experts))

    def run(self, variants: Sequence[Variant], progress: Callable[[int, int, str], None]) -> SeedResult:
        """Score all variants; one that fails becomes an outcome that says why.

        Args:
            progress: is told how many of all candidates are done, and what is at work.
        """
        total, done = len(variants) + 1, 0
        progress(0, total, "the base and the experts")
        scores, shifted = self._references()
        costs = {one.label: self._cost(one) for one in variants}

        def score(variant: Variant, check: Check) -> Outcome:
            nonlocal done
            outcome = self._outcome(variant, costs[variant.label], check)
            done += 1
            progress(done, total, variant.label)
            return outcome

        outcomes = each_on_a_core(score, variants)
        progress(total, total, "")
        return SeedResult(
            self._built.seed,
            self._built.key,
            self._built.tasks,
            scores.pop(BASE),
            scores,
            shifted,
            {variant.label: outcome for variant, outcome in zip(variants, outcomes, strict=True)},
            self._compared(),
        )

    # --- References ---

    def _references(self) -> tuple[dict[str, dict[str, Score]], dict[str, Shifted]]:
        """Return the scores of `BASE` and of each expert on all tasks, and on shifted data of the experts' tasks."""

        def score(name: str, check: Check) -> tuple[dict[str, Score], Shifted]:
            tensors, digest = self._model(name)
            scores = self._scores(digest, lambda: tensors, list(self._built.tasks), check)
            return scores, self._shifted(digest, lambda: tensors, check)

        names = [BASE, *self._built.experts]
        found = dict(zip(names, each_on_a_core(score, names), strict=True))
        return {name: scores for name, (scores, _) in found.items()}, {name: one for name, (_, one) in found.items()}

    def _shifted(self, digest: str, tensors: Callable[[], Tensors], check: Check) -> Shifted:
        """Return scores on the experts' tasks by severity, corruption and task; none where nothing can be shifted."""
        tasks, names = self._tasks(self._all), self._built.corruptions

        def scores(shift: Corruption) -> dict[str, Score]:
            return self._scores(digest, tensors, tasks, check, corruption=shift)

        return {one: {name: scores(Corruption(name, one)) for name in names} for one in self._severities if names}

    def _model(self, name: str) -> tuple[Tensors, str]:
        if name == BASE:
            return self._base, self._base_digest
        return self._experts[name, 1.0], self._digests[name, 1.0]

    def _own(self, task: str, share: float, split: Split) -> Score:
        """Return the score of a task's own expert."""
        place = (self._built.tasks[task].expert or "", share)
        return self._score(self._digests[place], lambda: self._experts[place], task, split, None)

    def _tasks(self, lineup: Lineup) -> list[str]:
        return [task.name for task in self._built.tasks_of("expert") if task.expert in lineup.experts]

    def _compared(self) -> Comparison | None:
        models = [open_model(one) for one in (self._built.base, *self._built.experts.values())]
        try:
            if len(models) < 3:
                return None
            return replace(compare(models[0], models[1:]), experts=list(self._built.experts))
        finally:
            for model in models:
                model.close()

    # --- One variant ---

    def _outcome(self, variant: Variant, cost: Cost | None, check: Check) -> Outcome:
        by_size = self._by_size(variant, check)
        try:
            default = self._test(variant, self._all, variant.default, list(self._built.tasks), check)
            tuned = self._chosen(variant, self._all, list(self._built.tasks), check)
            for task, score in tuned.scores.items():
                if not math.isfinite(score.value):
                    raise NoMerge(f"its score at {task!r} is {score.value}: the weights are beyond all bounds")
            digest, again = self._merge(variant, self._all, tuned.best)
            shifted = self._shifted(digest, again, check)
        except NoMerge as problem:
            return Outcome(variant, str(problem), by_size=by_size)
        by_size[len(self._all.experts)] = self._normalised(tuned.scores, self._fewest, "test")
        by_share = {1.0: self._normalised(tuned.scores, self._all, "test")}
        for share in self._built.weaker:
            with suppress(NoMerge):
                weaker = replace(self._all, share=share)
                by_share[share] = self._reached(variant, weaker, weaker, check)
        return Outcome(variant, "", default, tuned, shifted, by_size, dict(sorted(by_share.items())), cost)

    @property
    def _fewest(self) -> Lineup:
        """The fewest experts that are merged: on their tasks merges of any number are compared."""
        return Lineup(self._all.experts[: min(self._sizes, default=len(self._all.experts))])

    def _by_size(self, variant: Variant, check: Check) -> dict[int, float]:
        found = {}
        for names in nested_subsets(self._all.experts):
            if len(names) in self._sizes and len(names) < len(self._all.experts):
                with suppress(NoMerge):
                    found[len(names)] = self._reached(variant, Lineup(tuple(names)), self._fewest, check)
        return found

    def _reached(self, variant: Variant, lineup: Lineup, judged: Lineup, check: Check) -> float:
        """Return the normalised test score on the tasks of `judged`, with the coefficient chosen for the whole line-up."""
        return self._normalised(self._chosen(variant, lineup, self._tasks(lineup), check).scores, judged, "test")

    def _chosen(self, variant: Variant, lineup: Lineup, tasks: Sequence[str], check: Check) -> Choice:
        """Choose the coefficient on the validation split and score the merge on the test split."""
        if variant.coefficient is None:
            return Choice((), None, self._test(variant, lineup, None, tasks, check))
        curve = []
        for coefficient in GRIDS[variant.coefficient]:
            digest, again = self._merge(variant, lineup, coefficient)
            scores = self._scores(digest, again, self._tasks(lineup), check, split="validation")
            curve.append((coefficient, self._normalised(scores, lineup, "validation")))
        best = max(curve, key=lambda point: -math.inf if math.isnan(point[1]) else point[1])[0]
        return Choice(curve, best, self._test(variant, lineup, best, tasks, check))

    def _test(
        self, variant: Variant, lineup: Lineup, coefficient: float | None, tasks: Sequence[str], check: Check
    ) -> dict[str, Score]:
        return self._scores(*self._merge(variant, lineup, coefficient), tasks, check)

    def _normalised(self, scores: Mapping[str, Score], lineup: Lineup, split: Split) -> float:
        return normalised(scores, {task: self._own(task, lineup.share, split) for task in self._tasks(lineup)})

    # --- Merging ---

    def _merge(self, variant: Variant, lineup: Lineup, coefficient: float | None) -> tuple[str, Callable[[], Tensors]]:
        """Return the digest of a merge and what gives its tensors: it is merged only where somebody needs them.

        Raises:
            NoMerge: the method refuses these experts, or gives NaN.
        """
        digests = [self._digests[name, lineup.share] for name in lineup.experts]
        settings = {name: str(value) for name, value in variant.settings(coefficient).items()}
        key = key_of("merge", code_of(MERGING), self._base_digest, digests, variant.method, settings)
        held: list[Tensors] = []

        def again() -> Tensors:
            if not held:
                held.append(self._made(variant, lineup, coefficient))
            return held[0]

        record = self._kept.record(key)
        if record is None:
            try:
                record = {"digest": digest_of(again())}
            except NoMerge as problem:
                if not problem.lasts:
                    raise
                record = {"failure": str(problem)}
            self._kept.put_record(key, record)
        if "failure" in record:
            raise NoMerge(record["failure"])
        return record["digest"], again

    def _made(self, variant: Variant, lineup: Lineup, coefficient: float | None) -> Tensors:
        try:
            made = self._merged(variant, lineup, coefficient, self._decompositions)
        except CuveeError as problem:
            raise NoMerge(_in_a_line(problem), lasts=not isinstance(problem, ResourceError)) from None
        except MemoryError:
            raise NoMerge("memory was too little", lasts=False) from None
        except Exception as problem:
            # A defect of one method must not cost the others their scores; the row says that it is one.
            raise NoMerge(f"{type(problem).__name__}: {problem} (a defect of Cuvée)", lasts=False) from problem
        broken = first_non_finite(made)
        if broken is not None:
            raise NoMerge(f"tensor {broken!r} of the merge holds NaN or Inf")
        return made

    def _merged(self, variant: Variant, lineup: Lineup, coefficient: float | None, kept: KeptDecompositions) -> Tensors:
        if find_method(variant.method).on is ADAPTERS and self._built.adapters:
            folders = [self._built.adapters[lineup.share][name] for name in lineup.experts]
            return merged_adapters(variant, coefficient, folders, self._built.base)
        experts = [self._experts[name, lineup.share] for name in lineup.experts]
        return merged(variant, coefficient, experts, self._base, kept)

    def _cost(self, variant: Variant) -> Cost | None:
        """Measure one merge of all experts, alone in the process; None where there is none."""
        parts = ("cost", code_of(MERGING), self._base_digest, sorted(self._digests.values()), variant.label)
        record = self._kept.record(key_of(*parts))
        if record is None:
            try:
                found = _measured(lambda: self._merged(variant, self._all, variant.default, KeptDecompositions()))
            except Exception:  # the outcome says why
                return None
            record = {"seconds": found.seconds, "peak_bytes": found.peak_bytes}
            self._kept.put_record(key_of(*parts), record)
        return Cost(record["seconds"], record["peak_bytes"])

    # --- Scoring ---

    def _scores(
        self,
        digest: str,
        tensors: Callable[[], Tensors],
        tasks: Sequence[str],
        check: Check,
        *,
        split: Split = "test",
        corruption: Corruption | None = None,
    ) -> dict[str, Score]:
        found = {}
        for task in tasks:
            check()
            found[task] = self._score(digest, tensors, task, split, corruption)
        return found

    def _score(
        self, digest: str, tensors: Callable[[], Tensors], task: str, split: Split, corruption: Corruption | None
    ) -> Score:
        how = {"split": split, "limit": self._limit, "corruption": corruption}
        return kept_score(self._kept, self._built, digest, tensors, task, **how)  # type: ignore[arg-type]


def sizes_between(experts: int, at_most: int) -> list[int]:
    """Return numbers of experts from 2 to all, evenly spread, at most so many."""
    count = min(at_most, experts - 1)
    if count < 2:
        return [experts] if experts >= 2 else []
    return sorted({round(2 + place * (experts - 2) / (count - 1)) for place in range(count)})


def _in_a_line(problem: CuveeError) -> str:
    first, *others = problem.errors if isinstance(problem, Problems) else (problem,)
    # What would be right is told to authors of recipes, and here is none.
    return f"{first.found} (and {len(others)} more like it)" if others else first.found


def _measured(work: Callable[[], object]) -> Cost:
    """Run work and say what it took, warmed up by one run of it."""
    work()
    before = _settled_memory()
    begin = time.process_time()
    held = work()
    seconds = time.process_time() - begin
    peak = _status("VmHWM") if before is not None else None
    del held
    return Cost(seconds, max(0, peak - before) if peak is not None and before is not None else None)


def _settled_memory() -> int | None:
    """Give freed memory back, forget the peak so far, and return what is held, in bytes; None where Linux is not."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(name: str) -> int | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
