"""A run: the plan carried out as a transaction. Written beside, published by one rename, resumed where it was killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.checkpoints import fs
from cuvee.checkpoints.journal import Journal, read_journal
from cuvee.checkpoints.publishing import (
    JOURNAL_NAME,
    MODEL_NAME,
    check_target,
    give_up,
    in_words,
    leftovers,
    locked,
    os_errors,
    publish,
    staging_folder,
)
from cuvee.checkpoints.sidecars import config_json, copy_sidecars, digest_of
from cuvee.checkpoints.writing import INDEX_NAME, ShardWriter, index_json
from cuvee.engine.allocator import keep_freed_memory
from cuvee.engine.delivering import Delivery, Finished, WriteBackBeside
from cuvee.engine.keeping import KeptInFolder
from cuvee.engine.manifest import MANIFEST_NAME, build_manifest, is_sealed, manifest_json, model_card, read_manifest
from cuvee.engine.notes import notes_in_words
from cuvee.engine.plan import Plan, plan
from cuvee.engine.resuming import header, keep_what_is_true, resumable
from cuvee.engine.rounds import Tally, run_rounds
from cuvee.engine.stages import Stage, stages_of
from cuvee.errors import CheckpointError, NonFinite, RecipeError, ResourceError
from cuvee.methods.calls import CONTINUAL
from cuvee.recipes import Recipe

__all__ = ["Progress", "Report", "merge", "run"]

_SPARE_BYTES = 1 << 20
_KEPT = "kept"


@dataclass
class Progress:
    """How far a run is: bytes of output finished, of all.

    Attributes:
        done: bytes.
        total: bytes.
        stage: "resuming", "merging", "publishing".
        share: of the work that is done, from 0 to 1; in "merging" every visit of a tensor counts.
    """

    done: int
    total: int
    stage: str
    share: float


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        out: the published folder.
        seconds: by stage ("merge", "publish", "total"), wall time.
        tally: visits, rounds, and seconds of all threads by what they did.
        bytes_read: of inputs, once.
        bytes_written: of output.
        resumed: tensors that an earlier run had finished.
        non_finite: output tensors with NaN or Inf that were let through, and how many.
        warnings: for the user.
        digest: of the output model.
        notes: what the method found, chose or fell back to, in a few lines; the manifest has it of each tensor.
    """

    out: Path
    seconds: Mapping[str, float]
    tally: Tally
    bytes_read: int
    bytes_written: int
    resumed: int
    non_finite: Mapping[str, int]
    warnings: Sequence[str]
    digest: str
    notes: Sequence[str] = ()

    @property
    def bottleneck(self) -> str:
        """What the threads spent most time on: "read", "compute" or "write"."""
        spent = self.tally.seconds
        return max(spent, key=lambda what: spent[what]) if spent else "nothing"


def run(
    plan: Plan,
    out: str | PathLike[str],
    *,
    overwrite: bool = False,
    allow_nan: bool = False,
    stages: str | PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Carry out a plan and publish the model.

    Args:
        out: the folder to publish. While the run is on its way, and after it was killed, it does not exist (or is the
            old model); the same call goes on where a killed one stopped.
        overwrite: replace a folder that is there, once the new model is complete.
        allow_nan: let NaN and Inf through.
        stages: a folder in which every stage of the recipe is published under its name, and stays; a stage that is there
            already is taken as it is. None: those stages that must be written lie beside the output while it is made.
        progress: called about ten times a second.

    Raises:
        ResourceError: the folder is taken, or the disk is full.
        NonFinite: an input or the output holds NaN or Inf.
        CheckpointError: an input cannot be read, changed meanwhile, or is not what its own manifest says.
    """
    begin = time.perf_counter()
    keep_freed_memory()
    target = Path(os.path.abspath(out))
    check_target(target, overwrite=overwrite)
    with locked(target), os_errors(target):
        _check_not_an_input(plan, target)
        staging = staging_folder(target, plan.plan_id)
        staged = {stage.name: _place(stage, target, stages) for stage in stages_of(plan.models.values())}
        for other in leftovers(target):
            if other != staging and other not in staged.values():
                fs.remove_tree(other)
        check_space(plan, target, staging)
        beside = _make_stages(plan, staged, are_kept=stages is not None, allow_nan=allow_nan)
        with _kept_or_given_back(staging):
            finished, resumed, tally = _merge(plan, staging, allow_nan, progress or (lambda _: None))
            merged = time.perf_counter()
            files = _write_beside(plan, staging / MODEL_NAME, finished.notes)
            manifest = build_manifest(
                plan,
                finished.outputs,
                finished.marks,
                files,
                finished.inputs,
                finished.non_finite,
                finished.notes,
                finished.continual,
            )
            fs.write_file(staging / MODEL_NAME / MANIFEST_NAME, manifest_json(manifest))
            for file in plan.files:
                file.check_unchanged()
            check_target(target, overwrite=overwrite)
        left = publish(staging, target)
        left += [said for folder in beside for said in give_up(folder)]
    end = time.perf_counter()
    seconds = {"merge": merged - begin, "publish": end - merged, "total": end - begin}
    return Report(
        target,
        seconds,
        tally,
        plan.bytes_read,
        plan.bytes_written,
        resumed,
        finished.non_finite,
        (*plan.warnings, *left),
        manifest["output"]["digest"],
        notes_in_words(plan.tasks, finished.notes, plan.labels),
    )


def merge(
    recipe: Recipe | str | PathLike[str], out: str | PathLike[str], *, overwrite: bool = False, **options: Any
) -> Report:
    """Plan and run in one.

    Args:
        recipe: a `Recipe`, or the path of a YAML file.
        out: the folder to publish.
        overwrite: replace a folder that is there.
        options: those of `plan` and of `run`.
    """
    of_run = {name: options.pop(name) for name in ("allow_nan", "progress", "stages") if name in options}
    check_target(Path(os.path.abspath(out)), overwrite=overwrite)
    return run(plan(recipe, **options), out, overwrite=overwrite, **of_run)


def _place(stage: Stage, target: Path, folder: str | PathLike[str] | None) -> Path:
    """Return where a stage is published; beside the output under a name that changes when its inputs do."""
    if folder is not None:
        return Path(os.path.abspath(folder)) / stage.name
    files = sorted(str(asdict(file.opened)) for file in stage.plan.files)
    return staging_folder(target, blake3("\n".join([stage.plan.plan_id, *files]).encode()).hexdigest())


def _make_stages(plan: Plan, places: Mapping[str, Path], *, are_kept: bool, allow_nan: bool) -> list[Path]:
    """Publish the stages that cannot be computed as they are read; returns the folders to be removed at the end."""
    beside = []
    for stage in stages_of(plan.models.values()):
        place = places[stage.name]
        if stage.is_streamed and not are_kept:
            continue
        if not _is_published(stage.plan, place):
            run(stage.plan, place, overwrite=True, allow_nan=allow_nan)
        stage.read_from(place)
        if not are_kept:
            beside.append(place)
    return beside


def _is_published(plan: Plan, folder: Path) -> bool:
    """True when a folder holds what a plan makes of its inputs: by the manifest, which is younger than they are.

    Raises:
        ResourceError: the folder holds something else.
    """
    if not fs.exists(folder) or not fs.listdir(folder):
        return False
    try:
        manifest = read_manifest(folder)
        made = manifest["plan"] if is_sealed(manifest) else None
        written = fs.fingerprint(folder / MANIFEST_NAME).mtime_ns
    except (CheckpointError, KeyError, OSError):
        raise ResourceError(
            "the folder of a stage holds something else", where=str(folder), right="another folder for the stages"
        ) from None
    return bool(made == plan.plan_id and all(file.opened.mtime_ns < written for file in plan.files))


def _check_not_an_input(plan: Plan, out: Path) -> None:
    """Refuse to replace a folder that an input lies in."""
    for model in (*plan.models.values(), *plan.statistics.values()):
        for file in model.files:
            if plan.replaces == out and model.label == str(out):
                continue
            if fs.real_path(file.path).is_relative_to(fs.real_path(out)):
                raise ResourceError(
                    f"the output folder holds an input, {model.label!r}, and would be replaced",
                    where=str(out),
                    right="name another folder",
                )


def check_space(plan: Plan, out: Path, staging: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ResourceError: with the bytes needed and free.
    """
    written = {staging / MODEL_NAME / shard.file: shard.layout.size for shard in plan.shards}
    written |= {staging / MODEL_NAME / CONTINUAL / shard.file: shard.layout.size for shard in plan.continual}
    there = sum(map(fs.allocated_bytes, written))
    beside = sum(sidecar.size for sidecar in plan.sidecars)
    needed = sum(written.values()) + beside + _SPARE_BYTES - there
    free = fs.free_bytes(out.parent)
    if needed > free:
        raise ResourceError(
            f"no space left on the disk: the output needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            where=str(out.parent),
            right="free space, or a folder on another disk",
        )


@contextmanager
def _kept_or_given_back(staging: Path) -> Iterator[None]:
    """When a run fails, keep what it has finished and say what that holds; give the space back where that is nothing."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            # NaN stays NaN and a wrong method wrong: the same command would fail again, and has nothing to go on with
            if isinstance(error, NonFinite | RecipeError) or len(read_journal(staging / JOURNAL_NAME)) < 2:
                fs.remove_tree(staging)
            elif isinstance(error, ResourceError | OSError):
                held = sum(fs.allocated_bytes(staging / MODEL_NAME / name) for name in fs.listdir(staging / MODEL_NAME))
                said = error if isinstance(error, ResourceError) else in_words(error, staging)
                said.right += f"; finished tensors keep {held / 1e9:.2f} GB: cuvee gc {staging.parent} gives them back"
                raise said from None
        raise


def _merge(
    plan: Plan, staging: Path, allow_nan: bool, progress: Callable[[Progress], None]
) -> tuple[Finished, int, Tally]:
    """Write the shards into the staging folder, those tensors that are not there yet."""
    finished = Finished()

    def found(done: int) -> None:
        progress(Progress(done, plan.bytes_written, "resuming", done / max(1, plan.bytes_written)))

    fs.remove_tree(staging / _KEPT)
    records = resumable(plan, staging, allow_nan)
    if records is None:
        fs.remove_tree(staging)
    fs.mkdir(staging / MODEL_NAME)
    writer = ShardWriter(staging / MODEL_NAME, plan.shards, keep=records is not None)
    if plan.continual:  # all is made anew: no journal says what the disk holds of what is left beside
        fs.remove_tree(staging / MODEL_NAME / CONTINUAL)
        fs.mkdir(staging / MODEL_NAME / CONTINUAL)
    continual = ShardWriter(staging / MODEL_NAME / CONTINUAL, plan.continual, keep=False)
    journal = Journal(staging / JOURNAL_NAME)
    try:
        if records is None:
            journal.append(header(plan, allow_nan))
        elif not plan.continual:
            keep_what_is_true(plan, writer, records, finished, found)
        resumed = len(finished.outputs)
        # What is measured over the whole model needs every tensor once more.
        tasks = [task for task in plan.tasks if plan.is_wide or task.name not in finished.outputs]
        handler = Delivery(plan, writer, continual, journal, finished, staging, allow_non_finite=allow_nan)
        handler.done = plan.bytes_written - sum(t.bytes_written for t in tasks)
        visits = {t.name: 1 if t.is_copy else plan.tally.visits for t in tasks}
        work = sum(t.bytes_written * visits[t.name] for t in tasks)
        begun = handler.done / max(1, plan.bytes_written)

        def watch() -> None:
            share = begun + (1 - begun) * min(1.0, handler.visited_bytes / max(1, work))
            progress(Progress(handler.done, plan.bytes_written, "merging", share))

        with WriteBackBeside(writer, journal, handler.write_back):
            tally = run_rounds(
                tasks,
                replace(plan.formula, kept=KeptInFolder(staging / _KEPT)),
                handler,
                threads=plan.budget.threads,
                block_elements=plan.budget.block_elements,
                whole_elements=plan.budget.whole_elements,
                watch=watch,
            )
        progress(Progress(plan.bytes_written, plan.bytes_written, "publishing", 1.0))
        writer.sync()
        continual.sync()
    finally:
        journal.close()
        writer.close()
        continual.close()
    return finished, resumed, tally


def _write_beside(plan: Plan, folder: Path, notes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write what lies beside the weights, in place of all that is no weights, whoever put it there; return digests."""
    ours = {shard.file for shard in plan.shards} | {CONTINUAL for _ in plan.continual}
    for name in set(fs.listdir(folder)) - ours:
        fs.remove_tree(folder / name)
    digests = copy_sidecars(list(plan.sidecars), folder)
    for shard in plan.continual:
        digests[f"{CONTINUAL}/{shard.file}"] = digest_of(folder / CONTINUAL / shard.file)
    if plan.config is not None:
        content = config_json(plan.config)
        fs.write_file(folder / "config.json", content)
        digests["config.json"] = blake3(content).hexdigest()
    if len(plan.shards) > 1:
        fs.write_file(folder / INDEX_NAME, index_json(plan.shards))
    fs.write_file(folder / "README.md", model_card(plan, notes))
    return digests
