"""What killed runs leave: found, kept while it may be of use, and nothing else touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cuvee.checkpoints import fs
from cuvee.checkpoints.garbage import collect, find_leftovers
from cuvee.errors import CheckpointError

DAY = 86_400


def leave(name: str, *, age_s: float = 3 * DAY, also: str = "") -> Path:
    """Make what a killed run towards NAME has left."""
    folder = Path(f".{name}.cuvee-0123456789ab")
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_bytes(bytes(10_000))
    (folder / "journal.jsonl").write_text("")
    if also:
        (folder / also).write_text("mine")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


def kept(folder: str = ".") -> dict[str, str]:
    return {one.path.name: one.kept for one in find_leftovers(Path(folder))}


def test_what_is_old_and_ours_may_go_and_its_bytes_are_counted(workplace):
    folder = leave("out")
    (found,) = find_leftovers(Path("."))
    assert (found.path, found.out, found.kept) == (folder, Path("out"), "")
    assert found.size >= 10_000 and found.age_s > 2 * DAY
    assert collect(found)
    assert os.listdir() == []


def test_what_a_run_may_go_on_with_is_kept_for_a_day(workplace):
    leave("out", age_s=3600)
    assert kept()[".out.cuvee-0123456789ab"].startswith("too young")
    assert [one.kept for one in find_leftovers(Path("."), older_than_s=60)] == [""]
    journal = Path(".out.cuvee-0123456789ab/journal.jsonl")
    os.utime(journal, (time.time() + DAY,) * 2)  # the clock was set back since
    assert [one.kept != "" for one in find_leftovers(Path("."), older_than_s=60)] == [True]


def test_what_is_in_use_is_kept_though_it_is_old(workplace):
    leave("out")
    before = find_leftovers(Path("."))
    with fs.lock(Path(".out.cuvee.lock")):
        assert kept()[".out.cuvee-0123456789ab"] == "in use by a run"
        assert not collect(before[0])  # a run has begun since we looked
    assert Path(".out.cuvee-0123456789ab/model").exists()


@pytest.mark.parametrize("stranger", ["notes.txt", "link", "short name", "file"])
def test_what_only_looks_like_ours_is_left_alone(workplace, stranger):
    if stranger == "notes.txt":
        leave("out", also="notes.txt")
    elif stranger == "link":
        Path("elsewhere").mkdir()
        Path(".out.cuvee-0123456789ab").symlink_to("elsewhere")
    elif stranger == "short name":
        Path(".out.cuvee-0123").mkdir()
    else:
        Path(".out.cuvee.lock").write_text("a file with something in it")
    before = sorted(os.listdir())
    assert not any(collect(one) for one in find_leftovers(Path("."), older_than_s=0))
    assert sorted(os.listdir()) == before


def test_a_stage_that_was_published_beside_goes_with_the_run_that_needed_it(workplace):
    stage = Path(".out.cuvee-0123456789ab")
    stage.mkdir()
    (stage / "cuvee.json").write_text("{}")
    (stage / "model.safetensors").write_bytes(bytes(100))
    (found,) = find_leftovers(Path("."), older_than_s=0)
    assert collect(found) and os.listdir() == []


def test_a_stale_lock_file_goes(workplace):
    Path(".out.cuvee.lock").touch()
    (found,) = find_leftovers(Path("."), older_than_s=0)
    assert collect(found) and os.listdir() == []


def test_a_model_may_be_named_instead_of_its_folder(workplace):
    folder = leave("out")
    leave("other")
    Path("out").mkdir()
    assert [one.path.name for one in find_leftovers(Path("out"))] == [folder.name]


def test_the_folder_that_one_stands_in_may_be_named_by_a_dot(workplace):
    leave("out")
    Path("empty").mkdir()
    Path("model").mkdir()
    assert [one.path.name for one in find_leftovers(Path("."), older_than_s=0)] == [".out.cuvee-0123456789ab"]


def test_a_folder_that_is_not_there_is_said(workplace):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        find_leftovers(Path("no/such"))
