"""What surrounds a merge: signals, other processes, umask, locale, clock, slow disks, workers that fail, little memory."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from models import assert_same_bytes, contents, family, read_folder, write_family, write_model

import cuvee
from cuvee.checkpoints import fs
from cuvee.engine import delivering
from cuvee.errors import CheckpointError, ResourceError
from cuvee.recipes import Recipe

ROOT = Path(__file__).parents[2]
MERGE = "from test_surroundings import merge; merge()"


def merge(out: str = "out", **options):
    recipe = Recipe("ties", models=["math", "code"], base_model="base", parameters={"density": 0.5})
    return cuvee.merge(recipe, out, **options)


@pytest.fixture
def place(workplace):
    """Models in the current folder, and what merging them gives in `reference`."""
    write_family(workplace, 2, others={"tokenizer.json": "{}"})
    merge("reference")
    return workplace


def start(code: str, *, environment: dict[str, str] | None = None, **options) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fault")])
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    env = {**os.environ, "PYTHONPATH": path, "CUVEE_KERNELS": "0", **(environment or {})}
    return subprocess.Popen([sys.executable, "-c", code], env=env, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "surroundings",
    [
        {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C"},
        {"TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8", "PYTHONUTF8": "0"},
        {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "PYTHONHASHSEED": "7"},
    ],
    ids=["east, C", "west, Turkish", "homeless"],
)
def test_time_zone_locale_and_home_leave_no_trace_in_the_bytes(surroundings, place):
    process = start(MERGE, environment=surroundings)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000, 0o027])
def test_files_have_the_modes_that_the_umask_leaves(umask, place):
    before = os.umask(umask)
    try:
        merge()
    finally:
        os.umask(before)
    for path in (Path("out"), *Path("out").rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


def test_a_clock_that_jumps_leaves_no_trace(place, monkeypatch):
    for name, moves in {"time": [2e9, 0.0, 1e9, -5.0], "perf_counter": [0.0, 10.0]}.items():
        jumps = iter(moves * 100_000)
        monkeypatch.setattr(time, name, lambda jumps=jumps: next(jumps))
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


@pytest.mark.slow
def test_a_folder_that_one_cannot_write_into_may_be_the_current_one(place):
    target = place / "target"
    target.mkdir()
    here = place / "here"
    here.mkdir()
    code = (
        f"import os, cuvee; from cuvee.recipes import Recipe; r = Recipe('ties', models=[{str(place / 'math')!r}, "
        f"{str(place / 'code')!r}], base_model={str(place / 'base')!r}, parameters={{'density': 0.5}})\n"
        f"os.chmod('.', 0o555); cuvee.merge(r, {str(target / 'out')!r})"
    )
    process = start(code, cwd=here)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert os.listdir(here) == []
    assert contents(target / "out")["model.safetensors"] == contents(Path("reference"))["model.safetensors"]


@pytest.mark.slow
def test_some_processes_towards_one_target_give_one_model_and_refusals_in_words(place):
    processes = [start(MERGE) for _ in range(3)]
    said = [process.communicate(timeout=180)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or "another cuvee is writing to this folder" in text or "exists and is not empty" in text, text
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))
    assert [name for name in os.listdir() if name.startswith(".out")] == []


COMMAND = "import sys; from cuvee.cli import main; sys.argv = ['cuvee', 'merge', 'recipe.yml', 'out']; main()"
SLOW = """
import threading, time
from cuvee.checkpoints import fs
plain = fs.pwrite
def pwrite(*arguments):
    if threading.current_thread() is not threading.main_thread():
        print("writing", flush=True)
        time.sleep(20)
    plain(*arguments)
fs.pwrite = pwrite
"""


@pytest.mark.slow
def test_a_second_signal_kills_at_once(place):
    Path("recipe.yml").write_text("merge_method: linear\nmodels: [math, code]\n")
    process = start(SLOW + COMMAND)
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("writing")
        process.send_signal(signal.SIGINT)  # the first waits for the block that is being written
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert not Path("out").exists()


def test_a_worker_that_fails_stops_all_and_is_said_with_its_tensor(place, monkeypatch):
    plain, reads = fs.pread_into, []

    def reading(fd, buffer, offset):
        if threading.current_thread().name.startswith("cuvee-"):
            reads.append(1)
            if len(reads) == 20:
                raise OSError(5, "Input/output error")
        return plain(fd, buffer, offset)

    monkeypatch.setattr(fs, "pread_into", reading)
    with pytest.raises(CheckpointError, match=r"cannot read tensor '.*' at byte \d+: Input/output error") as caught:
        merge(threads=4)
    assert caught.value.where.endswith("model.safetensors")
    assert len(reads) < 20 + 4 * 4  # the others end with the block that they have in hand
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cuvee-")]
    assert not Path("out").exists()


def test_a_bug_in_a_worker_is_not_taken_for_success(place, monkeypatch):
    monkeypatch.setattr(delivering.Delivery, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(threads=3)
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_slow_disk_is_waited_for_and_progress_goes_on(place, monkeypatch):
    plain = fs.pread_into
    monkeypatch.setattr(fs, "pread_into", lambda *a: (time.sleep(0.02), plain(*a))[1])
    seen = []
    merge(threads=2, progress=lambda now: seen.append((time.perf_counter(), now.done)))
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))
    gaps = [later - one for (one, _), (later, _) in zip(seen, seen[1:], strict=False)]
    assert len(seen) > 5 and max(gaps) < 1.5
    assert len({done for _, done in seen}) > 3


@pytest.mark.parametrize("number", [1, 8, 20])
def test_memory_that_runs_out_in_a_worker_ends_the_run_and_the_next_one_goes_on(number, place, monkeypatch):
    plain, calls = fs.pwrite, []

    def pwrite(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise MemoryError
        return plain(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "pwrite", pwrite)
        with pytest.raises(MemoryError):
            merge(threads=2)
    assert not Path("out").exists()
    merge()
    assert_same_bytes(contents(Path("out")), contents(Path("reference")))


@pytest.mark.slow
def test_memory_that_runs_out_is_a_sentence_on_the_command_line(place):
    Path("recipe.yml").write_text("merge_method: linear\nmodels: [math, code]\n")
    code = "import cuvee.engine.run as r\ndef run(*a, **o): raise MemoryError\nr.run = run\n" + COMMAND
    process = start(code)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("memory ran out\n") and "--memory" in said and "Traceback" not in said


def test_numbers_below_the_normal_ones_are_kept(workplace):
    base, experts = family(2, {"w": (40,)})
    for tensors in (base, *experts):
        tensors["w"][:4] = torch.tensor([1e-45, -1e-45, 1.17e-38, 3e-40])
    for name, tensors in zip(("base", "math", "code"), (base, *experts), strict=True):
        write_model(Path(name), tensors)
    cuvee.merge(Recipe("linear", models=["math", "code"]), "out")
    kept = read_folder(Path("out"))["w"][:4]
    assert torch.equal(kept, base["w"][:4]) and (kept != 0).all()


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_said_with_the_operation(place):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"  # Python ignores SIGXFSZ
    code += "sys.dont_write_bytecode = True\n"  # which would be cut, and be taken for whole ever after
    Path("recipe.yml").write_text("merge_method: linear\nmodels: [math, code]\n")
    process = start(code + COMMAND)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert said.startswith("the file would be larger than is allowed here\n  where: ")
    assert not Path("out").exists() and not list(Path().glob(".out.cuvee-*"))


def test_a_full_file_system_is_known_beforehand_with_what_is_needed_and_free(place, monkeypatch):
    monkeypatch.setattr(fs, "free_bytes", lambda path: 12_345)
    with pytest.raises(ResourceError, match=r"the output needs 0\.00 GB, 0\.00 GB are free"):
        merge()
    assert json.loads(Path("reference/config.json").read_text())
