"""Hostile files: refused at once, in words that say where and what to do; nothing in them runs, or is taken for a path.

`attacks/make.py` makes them, `attacks/files` holds them, `attacks/said.json` holds what the user reads: what was found, where
(HERE is the attack's folder), and the beginning of what would be right.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from attacks.make import ATTACKS, FACTORS, dump, make
from safetensors import SafetensorError, safe_open

import cuvee
from cuvee.checkpoints.opening import open_model
from cuvee.checkpoints.safetensors_format import open_safetensors
from cuvee.cli import main
from cuvee.errors import CheckpointError, CuveeError, Problems
from cuvee.recipes import Recipe, load_recipe, prepare

HERE = Path(__file__).parent / "attacks"
SAID = json.loads((HERE / "said.json").read_text())
NAMED = sorted(name for name in ATTACKS if name.startswith("named_"))
HARMLESS = {*NAMED, "sidecar_link_out_of_the_folder", "recipe_of_a_pattern_that_never_ends"}
OF_ONE_FILE = sorted(name for name in ATTACKS if (HERE / "files" / name / "model.safetensors").is_file())
# more is refused here than by the reference reader
STRICTER = {"name_written_twice"}


@pytest.fixture
def attacks(workplace):
    """All attacks, in the current folder."""
    make(workplace)
    return workplace


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All attacks, made once for those who only read."""
    folder = tmp_path_factory.mktemp("attacks")
    make(folder)
    return folder


def read(name: str) -> None:
    """Have an attack read as a user would."""
    if Path(name, "recipe.yml").exists():
        prepare(load_recipe(f"{name}/recipe.yml"))
    else:
        open_model(f"{name}/base+{name}/adapter" if Path(name, "adapter").exists() else name).close()


def listed(folder: Path) -> dict[str, bytes | str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in paths}


def test_the_script_makes_these_files(attacks):
    assert listed(attacks) == listed(HERE / "files")
    assert set(SAID) | HARMLESS == set(ATTACKS) and not set(SAID) & HARMLESS


@pytest.mark.parametrize("name", SAID)
def test_an_attack_is_refused_at_once_and_in_words(name, made, monkeypatch):
    monkeypatch.chdir(made)
    before = sorted(os.listdir())
    size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file() and not path.is_symlink())
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(CuveeError) as caught:
            read(name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 5
    assert peak < 10_000_000 + 10 * size
    found, where, right = SAID[name]
    error = caught.value.errors[-1] if isinstance(caught.value, Problems) else caught.value
    assert error.found.startswith(found)
    assert error.where == where.replace("HERE", name)
    assert right and error.right.startswith(right)
    assert all(c.isprintable() or c == "\n" for c in str(caught.value))
    assert sorted(os.listdir()) == before and not Path("cuvee-was-here").exists()


@pytest.mark.parametrize("name", OF_ONE_FILE)
def test_what_the_reference_reader_refuses_is_refused(name):
    path = HERE / "files" / name / "model.safetensors"
    try:
        with safe_open(path, "np"):
            refused_there = False
    except (SafetensorError, UnicodeDecodeError):
        refused_there = True
    try:
        file, _, _ = open_safetensors(path)
        file.close()
        refused_here = False
    except CheckpointError:
        refused_here = True
    assert refused_here == (refused_there or name in STRICTER)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_nothing_but_a_name(name, attacks, capsys):
    """It is written again as it was, and drives no terminal in what any command prints."""
    before = set(os.listdir())
    Path("recipe.yml").write_text(f"merge_method: linear\nmodels: [{name}, {name}]\n")
    printed = ""
    for command in (
        ["merge", "recipe.yml", "out"],
        ["verify", "out"],
        ["inspect", name, "--tensors"],
        ["compare", name, name],
        ["merge", "recipe.yml", "out", "--overwrite", "--json"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured.err
        printed += captured.out + captured.err
    assert set(os.listdir()) - before == {"recipe.yml", "out"}
    assert all(c.isprintable() or c == "\n" for c in printed.replace("\r", "").replace("\x1b[?25h", ""))
    wanted, _, _ = open_safetensors(Path(name, "model.safetensors"))
    file, tensors, _ = open_safetensors(Path("out/model.safetensors"))
    wanted.close()
    file.close()
    header = Path(name, "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", header[:8])
    assert set(tensors) == set(json.loads(header[8 : 8 + length]))


def test_names_that_drive_a_terminal_do_not_in_errors(attacks):
    with pytest.raises(CuveeError) as caught:
        cuvee.plan(Recipe("linear", models=["named_to_drive_a_terminal", "named_right_to_left"]))
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)
    assert "\\x1b]0;owned" in str(caught.value)


def test_folders_named_to_drive_a_terminal_do_not_in_errors(workplace, capsys):
    folder = Path("\x1b]0;owned\x07\x1b[2J")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert "\x1b" in caught.value.where and "\x1b" not in str(caught.value)
    with pytest.raises(SystemExit):
        main(["inspect", str(folder)])
    printed = "".join(capsys.readouterr())
    assert "\\x1b]0;owned" in printed and "\x1b" not in printed


def test_links_that_lead_out_are_not_carried_over_and_said(attacks):
    name = "sidecar_link_out_of_the_folder"
    report = cuvee.merge(Recipe("linear", models=[name, name]), "out")
    assert sorted(os.listdir("out")) == ["README.md", "cuvee.json", "model.safetensors"]
    for link in ("extra", "tokenizer.json"):
        assert f"{link} was not carried over: it is a link that leads out of its folder" in report.warnings


def test_a_link_to_itself_is_no_file(workplace):
    Path("model").mkdir()
    Path("model/model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_model("model")


def test_a_pattern_of_many_stars_matches_in_no_time(attacks):
    name = "named_with_10000_letters"
    recipe = Recipe("linear", models=[name, name], exclude=["*w" * 40 + "*v"])
    begin = time.process_time()
    cuvee.plan(recipe)
    assert time.process_time() - begin < 20


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json", "adapter_config.json"])
def test_pipes_and_devices_are_refused_and_not_waited_for(file, attacks):
    folder = Path("folder")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((attacks / "named_by_nothing/model.safetensors").read_bytes())
    if file == "adapter_config.json":
        (folder / "adapter_model.safetensors").write_bytes(
            struct.pack("<Q", len(dump(FACTORS))) + dump(FACTORS).encode() + bytes(16)
        )
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    reference = "named_by_nothing+folder" if file == "adapter_config.json" else "folder"
    code = f"from cuvee.checkpoints.opening import open_model; open_model({reference!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert "CheckpointError" in done.stderr and "is not a regular file" in done.stderr


def many_tensors(count: int) -> int:
    """Write big.safetensors with so many tensors; returns the bytes of its header."""
    entries = (f'"model.layers.{i}.w":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(count))
    text = ("{" + ",".join(entries) + "}").encode()
    Path("big.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(count))
    return len(text)


@pytest.mark.slow
def test_a_header_of_25_megabytes_is_read_in_seconds(workplace):
    assert many_tensors(310_000) > 25_000_000
    begin = time.process_time()
    file, tensors, _ = open_safetensors(Path("big.safetensors"))
    file.close()
    assert len(tensors) == 310_000 and time.process_time() - begin < 5


def test_a_header_takes_less_than_ten_times_its_size(workplace):
    size = many_tensors(20_000)
    tracemalloc.start()
    try:
        file, tensors, _ = open_safetensors(Path("big.safetensors"))
        assert tracemalloc.get_traced_memory()[1] < 10 * size
    finally:
        tracemalloc.stop()
    file.close()
    assert len(tensors) == 20_000


def test_a_pickle_that_asks_for_a_terabyte_gets_no_memory(workplace):
    """4 GB of zeros in a text of 20 bytes: pickletools reads lengths before it reads."""
    from attacks.make import archive, model_records

    Path("model").mkdir()
    archive(Path("model"), model_records(b"\x80\x02\x8e" + struct.pack("<Q", 1 << 42) + b"x."))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="malformed"):
            open_model("model")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
