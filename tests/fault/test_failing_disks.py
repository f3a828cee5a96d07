"""A disk that is full, failing, slow to give or take bytes, or changing under the merge: an error in words, nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from models import assert_equal, assert_same_bytes, contents, family, read_folder, write_family, write_model

import cuvee
from cuvee.checkpoints import fs
from cuvee.checkpoints.journal import read_journal
from cuvee.checkpoints.publishing import JOURNAL_NAME
from cuvee.engine import delivering
from cuvee.errors import CheckpointError, CuveeError, ResourceError
from cuvee.recipes import Recipe

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 16}
SMALL |= {
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "architectures": ["LlamaForCausalLM"],
}


@pytest.fixture
def place(workplace):
    """Models in the current folder, and what merging them gives in `reference`."""
    write_family(workplace, 2, config=SMALL, others={"tokenizer.json": "{}", "extra/notes.txt": "carried"})
    merge("reference")
    return workplace


def merge(out: str = "out", **options):
    recipe = Recipe("ties", models=["math", "code"], base_model="base", parameters={"density": 0.5})
    return cuvee.merge(recipe, out, threads=1, shard_size=1500, **options)


def staging() -> list[Path]:
    return sorted(Path().glob(".out.cuvee-*"))


def fail_at(monkeypatch, name: str, number: int, error: BaseException) -> list[int]:
    """Have the nth call of a function of the seam raise; returns the growing list of calls."""
    plain, calls = getattr(fs, name), []

    def failing(*arguments, **options):
        calls.append(len(calls) + 1)
        if calls[-1] == number:
            raise error
        return plain(*arguments, **options)

    monkeypatch.setattr(fs, name, failing)
    return calls


def calls_of(name: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = fail_at(patch, name, 0, OSError())
        merge()
    shutil.rmtree("out")
    return len(calls)


def check_goes_on(*, all_of_it: bool = True) -> None:
    """The same command finishes what the failed run began."""
    promised = sum(max(0, len(read_journal(folder / JOURNAL_NAME)) - 1) for folder in staging())
    resumed = merge().resumed
    assert resumed == promised if all_of_it else resumed < promised
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))
    assert not staging()
    shutil.rmtree("out")


WORDS = {errno.ENOSPC: "no space left on the disk", errno.EIO: "Input/output error", errno.EDQUOT: "quota"}


@pytest.mark.parametrize(
    "code",
    [errno.ENOSPC, *(pytest.param(code, marks=pytest.mark.slow) for code in (errno.EIO, errno.EDQUOT))],
    ids=map(errno.errorcode.get, WORDS),
)
@pytest.mark.parametrize(
    "name",
    ["create", "fallocate", "truncate", "pwrite", "append", "fsync", "write_file", "open_append", "fsync_folder"],
)
def test_any_write_that_fails_is_said_and_the_next_run_goes_on(name, code, place, monkeypatch):
    count = calls_of(name)
    assert count > 0
    for number in range(1, count + 1):
        if name == "fsync_folder" and number > 1:
            continue  # the model is published by then
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, name, number, OSError(code, os.strerror(code)))
            with pytest.raises(ResourceError, match=WORDS[code]) as caught:
                merge()
        assert "out" in caught.value.where
        assert not Path("out").exists()
        # what a failed sync may have dropped is not taken from memory, where it still is: it is computed again
        check_goes_on(all_of_it=name != "fsync" or number > len(list(Path("reference").glob("*.safetensors"))))


def test_a_write_back_that_fails_ends_the_run_though_the_last_sync_would_succeed(place, monkeypatch):
    """The system tells a failed write-back once, and may have dropped the bytes: the next sync says that all is well."""
    monkeypatch.setattr(delivering, "_WRITE_BACK_BYTES", 1)
    tried = threading.Event()
    sync, leave = fs.fdatasync, delivering.WriteBackBeside.__exit__

    def fail_once(fd: int) -> None:
        if tried.is_set():
            return sync(fd)
        tried.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def leave_after_a_try(self, *said) -> None:
        assert tried.wait(60)  # a small merge may be over before the thread beside it has begun
        leave(self, *said)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "fdatasync", fail_once)
        patch.setattr(delivering.WriteBackBeside, "__exit__", leave_after_a_try)
        with pytest.raises(ResourceError, match="Input/output error") as caught:
            merge()
    assert caught.value.where.endswith(".safetensors") and not Path(caught.value.where).exists()
    assert not Path("out").exists()
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_a_run_that_has_finished_nothing_leaves_nothing_and_one_that_has_says_what_it_keeps(place, monkeypatch):
    for finished in (0, 3):
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, "append", finished + 2, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            with pytest.raises(ResourceError, match="no space left on the disk") as caught:
                merge()
        assert bool(staging()) == bool(finished)
        assert ("finished tensors keep 0.00 GB: cuvee gc" in caught.value.right) == bool(finished)
    check_goes_on()


def test_what_lies_about_in_a_staging_folder_is_not_published(place, monkeypatch):
    interrupt(monkeypatch, 4)
    (folder,) = staging()
    first, second, *_ = sorted(folder.glob("model/*.safetensors"))
    Path("victim").write_bytes(b"not to be written")
    Path("victims").mkdir()
    os.link("victim", folder / "twin")
    first.unlink()
    first.symlink_to(Path("victim").absolute())
    second.unlink()
    os.link("victim", second)
    (folder / "model/stray.py").write_text("print('run me')")
    (folder / "model/extra").symlink_to(Path("victims").absolute())
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))
    assert Path("victim").read_bytes() == b"not to be written" and not list(Path("victims").iterdir())


def test_runs_towards_names_that_begin_alike_leave_each_other_alone(place, monkeypatch):
    interrupt(monkeypatch, 4)
    (folder,) = staging()
    other = Path(".out.cuvee-abc.cuvee-0123456789ab")  # a run towards `out.cuvee-abc`
    other.mkdir()
    merge()
    assert other.exists() and not folder.exists()


def test_a_rename_that_fails_leaves_a_finished_model_for_the_next_run(place, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "rename", 1, OSError(errno.EACCES, os.strerror(errno.EACCES)))
        with pytest.raises(ResourceError, match="permission denied"):
            merge()
    assert not Path("out").exists()
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


@pytest.mark.slow
def test_any_read_that_fails_is_said_with_its_file(place, monkeypatch):
    count = calls_of("pread_into")
    sources = {str(p) for folder in ("base", "math", "code") for p in Path(folder).rglob("*") if p.is_file()}
    kinds = set()
    for number in range(1, count + 1):
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, "pread_into", number, OSError(errno.EIO, os.strerror(errno.EIO)))
            with pytest.raises(CuveeError, match="Input/output error|cannot be read|cannot read") as caught:
                merge()
        assert not Path("out").exists()
        kinds.add(type(caught.value))
        if "tensor" in caught.value.found:
            assert caught.value.where in sources
        check_goes_on()
    assert CheckpointError in kinds


def test_reads_and_writes_that_give_a_few_bytes_at_a_time_change_nothing(place, monkeypatch):
    preadv, pwrite, write = os.preadv, os.pwrite, os.write
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:97]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:61], at))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:13]))
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_every_file_is_durable_before_the_model_gets_its_name(place, monkeypatch):
    paths: dict[int, str] = {}
    unsynced: set[str] = set()
    synced_folders: list[str] = []
    at_rename: list[set[str]] = []

    def path_of(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    plain = {name: getattr(fs, name) for name in ("pwrite", "append", "truncate", "fsync", "rename", "fsync_folder")}

    def writing(name):
        def write(fd, *rest):
            unsynced.add(path_of(fd))
            paths[fd] = path_of(fd)
            return plain[name](fd, *rest)

        return write

    for name in ("pwrite", "append", "truncate"):
        monkeypatch.setattr(fs, name, writing(name))

    def fsync(fd):
        plain["fsync"](fd)
        unsynced.discard(path_of(fd))

    def fsync_folder(path):
        plain["fsync_folder"](path)
        synced_folders.append(str(path))

    def rename(source, target):
        at_rename.append({path for path in unsynced if os.path.exists(path) and Path(path).is_relative_to(source)})
        assert str(source) in synced_folders
        plain["rename"](source, target)

    monkeypatch.setattr(fs, "fsync", fsync)
    monkeypatch.setattr(fs, "fsync_folder", fsync_folder)
    monkeypatch.setattr(fs, "rename", rename)
    merge()
    assert len(paths) > 3 and at_rename == [set()]
    assert synced_folders[-1] == str(place)


def on_read(monkeypatch, number: int, action) -> None:
    plain, calls = fs.pread_into, []

    def reading(*arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return plain(*arguments)

    monkeypatch.setattr(fs, "pread_into", reading)


def rewrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_by_a_copy(path: Path) -> None:
    shutil.copy(path, "copy")
    os.utime("copy", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace("copy", path)


CHANGES = {
    "rewritten": (rewrite, "changed while it was being read"),
    "grown": (lambda path: path.open("ab").write(b"x"), "changed while it was being read"),
    "replaced": (replace_by_a_copy, "changed while it was being read"),
    "removed": (lambda path: path.unlink(), "changed while it was being read"),
    "cut short": (lambda path: os.truncate(path, 700), "cut short|changed while"),
}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_an_input_cut_short_is_named_also_where_a_kernel_reads_it(method, place):
    parameters = {"base_model": "base"} if method == "task_arithmetic" else {}
    planned = cuvee.plan(Recipe(method, models=["math", "code"], **parameters), threads=1)
    path = Path("math/model.safetensors")
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(CheckpointError, match=r"tensor '.*' ends after \d+ of \d+ bytes .*cut short") as caught:
        cuvee.run(planned, "out")
    assert caught.value.where.endswith(str(path))
    assert not Path("out").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changes_during_the_merge_is_refused_by_name(change, place, monkeypatch):
    action, words = CHANGES[change]
    path = Path("math/model.safetensors")
    shutil.copytree("math", "kept")
    before = calls_of("pread_into")
    for number in (12, before // 2, before - 2):
        shutil.rmtree("math")
        shutil.copytree("kept", "math")
        with pytest.MonkeyPatch.context() as patch:
            on_read(patch, number, lambda: action(path))
            with pytest.raises(CheckpointError, match=words) as caught:
                merge()
        assert str(path) in caught.value.where
        assert not Path("out").exists()


def interrupt(monkeypatch, tensors: int) -> None:
    """Stop a merge when some tensors are finished."""
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "append", tensors + 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            merge()
    assert not Path("out").exists() and staging()


def test_an_interrupted_merge_is_resumed(place, monkeypatch):
    interrupt(monkeypatch, 4)
    seen = []
    assert merge(progress=seen.append).resumed == 4
    assert [p.stage for p in seen][:4] == ["resuming"] * 4
    assert [p.done for p in seen] == sorted(p.done for p in seen) and seen[-1].done == seen[-1].total
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_a_changed_input_is_merged_anew(place, monkeypatch):
    interrupt(monkeypatch, 4)
    rewrite(Path("code/model.safetensors"))
    assert merge().resumed == 0
    assert contents(Path("out"))["cuvee.json"] != contents(Path("reference"))["cuvee.json"]


def test_another_recipe_is_merged_anew_and_removes_the_leftovers(place, monkeypatch):
    interrupt(monkeypatch, 4)
    other = Recipe("ties", models=["math", "code"], base_model="base", parameters={"density": 0.6})
    assert cuvee.merge(other, "out", shard_size=1500).resumed == 0
    assert not staging()


def test_finished_tensors_are_read_again_before_they_are_trusted(place, monkeypatch):
    interrupt(monkeypatch, 6)
    (folder,) = staging()
    for path in folder.glob("model/*.safetensors"):
        rewrite(path)
    assert merge().resumed < 6
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_a_missing_or_short_shard_of_an_interrupted_merge_is_written_again(place, monkeypatch):
    interrupt(monkeypatch, 6)
    (folder,) = staging()
    first, second, *_ = sorted(folder.glob("model/*.safetensors"))
    first.unlink()
    os.truncate(second, 10)
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_a_foreign_folder_of_the_staging_name_is_not_taken_for_a_merge(place, monkeypatch):
    interrupt(monkeypatch, 3)
    (folder,) = staging()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"not ours")
    (folder / JOURNAL_NAME).write_bytes(b"not a journal\n")
    assert merge().resumed == 0
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_a_whole_model_method_resumes_to_the_same_bytes(place, monkeypatch):
    recipe = Recipe(
        "ties",
        models=["math", "code"],
        base_model="base",
        parameters={"density": 0.4, "trim_scope": "model", "tie_sign": "global_majority"},
    )
    cuvee.merge(recipe, "wide", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "append", 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            cuvee.merge(recipe, "out", threads=1)
    cuvee.merge(recipe, "out", threads=1)
    assert_same_bytes(contents(Path("out")), contents(Path("wide")))


def test_too_little_space_is_known_before_anything_is_written(place, monkeypatch):
    monkeypatch.setattr(fs, "free_bytes", lambda path: 1000)
    with pytest.raises(
        ResourceError, match=r"no space left on the disk: the output needs .* GB, .* are free"
    ) as caught:
        merge()
    assert caught.value.where == str(place)
    assert not staging() and not Path("out").exists()


def test_space_that_an_interrupted_run_holds_counts_as_there(place, monkeypatch):
    interrupt(monkeypatch, 4)
    needed = sum(path.stat().st_size for path in staging()[0].glob("model/*.safetensors"))
    monkeypatch.setattr(fs, "free_bytes", lambda path: (1 << 20) + needed // 2)
    assert merge().resumed == 4


def test_a_folder_that_exists_is_refused_and_left_alone(place):
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(ResourceError, match="the output folder exists and is not empty") as caught:
        merge()
    assert "--overwrite" in caught.value.right
    assert contents(Path("out")) == {"notes.txt": b"mine"}


def test_an_empty_folder_is_taken(place):
    Path("out").mkdir()
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_output_that_is_no_folder_is_refused(place, kind):
    if kind == "file":
        Path("out").write_text("mine")
    else:
        Path("elsewhere").mkdir()
        Path("out").symlink_to("elsewhere")
    for overwrite in (False, True):
        with pytest.raises(ResourceError, match="not a folder"):
            merge(overwrite=overwrite)
    assert Path("out").is_file() or not list(Path("elsewhere").iterdir())


def test_overwriting_replaces_an_old_model_only_on_success(place, monkeypatch):
    Path("out").mkdir()
    Path("out/old.txt").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "pwrite", 9, OSError(errno.ENOSPC, "full"))
        with pytest.raises(ResourceError):
            merge(overwrite=True)
    assert contents(Path("out")) == {"old.txt": b"old"}
    merge(overwrite=True)
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_a_file_system_that_cannot_swap_keeps_both_and_says_where(place, monkeypatch):
    Path("out").mkdir()
    Path("out/old.txt").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "exchange", 1, OSError(errno.EINVAL, "no"))
        with pytest.raises(ResourceError, match="cannot replace a folder in one step") as caught:
            merge(overwrite=True)
    assert contents(Path("out")) == {"old.txt": b"old"}
    (folder,) = staging()
    assert str(folder) in caught.value.right
    assert_same_bytes(contents(folder / "model"), contents(Path("reference")))
    assert merge(overwrite=True).resumed == len(read_folder(Path("reference")))  # nothing is computed again


def test_an_output_that_holds_an_input_is_refused(place):
    for out in ("math", "."):
        with pytest.raises(CuveeError):
            merge(out, overwrite=True)
    assert Path("math/model.safetensors").exists()


HOLD = """
import sys
from pathlib import Path
from cuvee.checkpoints import fs
with fs.lock(Path(".out.cuvee.lock")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_on_one_target_is_refused(place):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ResourceError, match="another cuvee is writing to this folder"):
        merge()
    merge("elsewhere")
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_the_parents_of_the_output_are_made(place):
    merge("new/folders/out")
    assert_same_bytes(contents(Path("new/folders/out")), contents(Path("reference")))
    assert os.listdir("new/folders") == ["out"]


def test_a_parent_that_cannot_be_written_is_said(place):
    Path("file").write_text("")
    with pytest.raises(ResourceError):
        merge("file/out")


def test_progress_counts_up_to_everything(place):
    seen = []
    recipe = Recipe("linear", models=["math", "code"])
    report = cuvee.merge(recipe, "out", progress=lambda p: seen.append((p.done, p.total, p.stage)))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1] == (report.bytes_written, report.bytes_written, "publishing")


def test_models_in_memory_are_merged_to_files(place):
    base, experts = family(2, {"w": (30, 20), "v": (7,)})
    recipe = Recipe("ties", models=experts, base_model=base, parameters={"density": 0.5})
    cuvee.merge(recipe, "out")
    assert_equal(read_folder(Path("out")), cuvee.merge_tensors("ties", experts, base, density=0.5))


def test_output_may_lie_beside_its_inputs_and_be_an_input_again(place):
    write_model(Path("again"), read_folder(Path("reference")), SMALL)
    cuvee.merge(Recipe("linear", models=["reference", "again"]), "out")
    assert_equal(read_folder(Path("out")), read_folder(Path("reference")))
    assert torch.isfinite(read_folder(Path("out"))["model.norm.weight"]).all()
