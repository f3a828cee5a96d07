"""Tasks of lm-evaluation-harness, found by name: its own, and those of folders of YAML files.

What the cache holds is not looked up on the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cuvee.errors import CuveeError, ResourceError, nearest, printable
from cuvee.evaluation.kept_scores import key_of
from cuvee.evaluation.lm_eval_guest import SEED, hub_answers, import_lm_eval, own_draws, quietly, without_hub
from cuvee.evaluation.suites import SUITES

__all__ = ["HarnessTask", "HarnessTasks", "find_tasks", "in_one_sentence", "items_key"]


@dataclass
class HarnessTask:
    """One task.

    Attributes:
        name: as the harness calls it.
        task: the harness's own object.
        num_fewshot: solved examples that stand before each item.
        keys: digests of what it has asked, by the items that were chosen.
    """

    name: str
    task: Any = field(repr=False)
    num_fewshot: int
    keys: dict[Any, str] = field(default_factory=dict, repr=False)

    def rewind(self) -> None:
        """Let the draws of few-shot examples begin anew: they go on from call to call otherwise."""
        self.task.set_fewshot_seed(seed=SEED)

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.task.eval_docs)

    @cached_property
    def described(self) -> str:
        """The task's settings, with the source of its functions, and not where they lie."""
        said = dict(self.task.dump_config())
        metadata = {key: value for key, value in (said.pop("metadata", None) or {}).items() if key != "config_source"}
        said.pop("dataset_kwargs", None)  # what data there are is told by the items
        return json.dumps([said, metadata], sort_keys=True, default=str)


@dataclass(frozen=True)
class HarnessTasks:
    """What was asked for.

    Attributes:
        tasks: by name; those of groups too, each once.
        groups: the harness's objects by name, those inside others after them.
    """

    tasks: Mapping[str, HarnessTask]
    groups: Mapping[str, Any] = field(default_factory=dict, repr=False)


def find_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    offline: bool = False,
) -> HarnessTasks:
    """Return tasks, groups and tags of the harness, with their data.

    Args:
        names: of the harness's own, or of `include_path`'s, which come first; `*` stands for anything.
        include_path: a folder of YAML files. Functions that they name are run.
        num_fewshot: solved examples before each item, instead of the task's number; one that forbids them keeps 0.
        offline: never ask the hub for data that the cache lacks.

    Raises:
        ResourceError: lm_eval is not installed, there is no such task, or its data cannot be had.
    """
    lm_eval = import_lm_eval()
    if include_path is not None and not Path(include_path).is_dir():
        raise ResourceError("there is no such folder of tasks", where=str(include_path), right="--include-path FOLDER")
    with quietly(), own_draws():
        manager, found = _manager(lm_eval.tasks.TaskManager, names, include_path)
        tasks: dict[str, HarnessTask] = {}
        groups: dict[str, Any] = {}
        for name in found:
            loaded = _loaded(manager, name, offline=offline)
            groups |= loaded["groups"]
            tasks |= {key: _with_examples(key, task, num_fewshot) for key, task in loaded["tasks"].items()}
    return HarnessTasks(tasks, groups)


def _manager(make: Any, names: Sequence[str], include_path: str | Path | None) -> tuple[Any, list[str]]:
    """Return what knows the tasks, and their names without patterns."""
    if include_path is not None:
        # Reading the harness's own 14,000 tasks takes ten seconds: only where they are asked for, or may be.
        own = make(include_path=str(include_path), include_defaults=False)
        if all(_is_own(name, own.task_index) for name in names):
            return own, list(dict.fromkeys(names))
    manager = make(include_path=None if include_path is None else str(include_path))
    found: list[str] = []
    for name in names:
        matches = manager.match_tasks([name]) if set("*?[") & set(name) else [name] if name in manager.all_tasks else []
        if not matches:
            _check_files(include_path)
            close = nearest(name, [*manager.all_tasks, *SUITES])
            known = "a task that lm_eval has, one of --include-path FOLDER, or a suite: " + ", ".join(SUITES)
            right = close if close.startswith("did you mean") else known
            raise ResourceError(f"lm-evaluation-harness has no task {printable(name)[:100]!r}", right=right)
        found += matches
    return manager, list(dict.fromkeys(found))


def _is_own(name: str, index: Mapping[str, Any]) -> bool:
    """True for a task of the index, and for a group whose members are all in it; a tag may have more elsewhere."""
    entry = index.get(name)
    if entry is None or entry.kind.name not in ("TASK", "PY_TASK", "GROUP"):
        return False
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else []
    named = [one.get("group", one.get("task")) if isinstance(one, dict) else one for one in members or ()]
    return all(isinstance(one, str) and _is_own(one, index) for one in named)


def _check_files(include_path: str | Path | None) -> None:
    """Name a YAML file that the harness passes over in silence."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(Path(include_path).rglob("*.yaml")) if include_path is not None else ():
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # of any kind that a YAML file can raise
            raise ResourceError(
                f"the file of a task cannot be read: {in_one_sentence(error)}", where=str(path), right="mend it"
            ) from None


def _loaded(manager: Any, name: str, *, offline: bool) -> Any:
    """Load a task with its data: from the cache, else from the hub."""

    def load() -> Any:
        return manager.load([name])

    try:
        with without_hub():
            return load()
    except Exception as error:  # a task is other people's code
        if offline or not hub_answers():
            how = "was not asked (--offline)" if offline else "cannot be reached"
            raise _in_words(error, name, manager, how) from None
    return _on_the_hub(load, name, manager)


def _on_the_hub(load: Callable[[], Any], name: str, manager: Any) -> Any:
    try:
        return load()
    except Exception as error:
        raise _in_words(error, name, manager, "does not give it") from None


def _in_words(error: Exception, name: str, manager: Any, how: str) -> CuveeError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if kinds & {"ConnectionError", "OfflineModeIsEnabled", "DatasetNotFoundError"} or "find cache for" in text:
        named = re.search(r"'([^'\s]+)'", text)
        data = f"the data set {named[1]!r}" if named else "its data set"
        return ResourceError(
            f"the task {name} needs {data}, which is not in the cache, and the hub {how}",
            right="run it once where there is a network and copy HF_HOME from there, or tasks of your own: --include-path",
        )
    entry = manager.task_index.get(name)
    where = str(getattr(entry, "yaml_path", None) or "")
    return ResourceError(
        f"the task {name} cannot be made: {in_one_sentence(error)}", where=where, right="mend the task"
    )


def in_one_sentence(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)[:300]


def _with_examples(name: str, task: Any, num_fewshot: int | None) -> HarnessTask:
    """Set the number of few-shot examples as the harness does: a task that forbids them is left alone."""
    said = task.get_config("num_fewshot")
    wanted = said if num_fewshot is None or said == 0 else num_fewshot
    task.set_config(key="num_fewshot", value=wanted or 0)
    return HarnessTask(name, task, wanted or 0)


def items_key(task: HarnessTask) -> str:
    """Return a digest of what a built task asks, of what, and how it judges the answers."""
    asked = [(one.request_type, one.args, one.doc_id, one.doc) for one in task.task.instances]
    return key_of(task.described, task.num_fewshot, asked)
