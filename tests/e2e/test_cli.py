"""The command line in processes of its own: start-up, signals, pipes, and a merge from recipe to verification."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cuvee.checkpoints.safetensors_format import lay_out
from cuvee.methods.registry import ENDPOINT, REQUIRED, methods
from cuvee.tensors import kernels
from cuvee.tensors.dtypes import DTYPES

ENVIRONMENT = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def cuvee(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cuvee", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, **options)  # type: ignore[call-overload, no-any-return]


def write_model(folder: Path, seed: int, rows: int) -> Path:
    """Write a model of three matrices."""
    folder.mkdir()
    draws = np.random.default_rng(seed)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    layout = lay_out(dict.fromkeys(names, (DTYPES["F32"], (rows, 256))), {})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(layout.header)
        for _ in names:
            file.write(draws.normal(size=(rows, 256)).astype(np.float32).tobytes())
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "math", "code")):
        write_model(folder / name, seed, 64)
    path = folder / "recipe.yml"
    path.write_text(f"merge_method: ties\nbase_model: {folder}/base\nmodels: [{folder}/math, {folder}/code]\n")
    return path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["methods"], ["methods", "ties"], ["merge", "--help"], ["--version"]]
)
def test_help_and_methods_do_not_wait_for_heavy_libraries(arguments):
    code = (
        "import sys, cuvee.cli.app as app\n"
        f"code = app._run({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr


def test_help_does_not_even_load_numpy_and_fits_80_columns():
    code = "import sys, cuvee.cli.app as app\napp._run(['--help'])\nsys.exit('numpy' in sys.modules)"
    environment = {**ENVIRONMENT, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert all(len(line) <= 80 for line in done.stdout.split("\n"))
    for command in ("merge", "plan", "methods", "inspect", "compare", "verify"):
        assert f"\n  {command} " in done.stdout


NEEDED = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.1},
    "nuslerp": {"weight": 0.5},
    "multislerp": {"weight": 0.5},
    "ties": {"density": 0.4},
    "multi_krum": {"f": 0},
    "metrics_weighted_averaging": {"metric": 2.0},
} | {name: {"density": 0.5, "epsilon": 0.1} for name in ("della", "della_linear")}


WITHOUT_TORCH = """
import sys
import cuvee.cli.app as app
for path in sys.argv[1:]:
    code = app._run(["merge", path, path + ".out", "--quiet"])
    if code or "torch" in sys.modules:
        sys.exit(f"{path}: {code}, torch: {'torch' in sys.modules}")
"""


@pytest.mark.skipif(not kernels.available(), reason="the kernels are not compiled")
def test_methods_on_arrays_merge_without_torch(recipe, tmp_path):
    chosen = [method for method in methods().values() if method.arrays and not method.needs]
    assert {"linear", "ties", "dare_ties"} <= {method.name for method in chosen}
    paths = []
    for method in chosen:
        count = 1 if method.base is ENDPOINT else method.models[1] or max(2, method.models[0])
        written = {
            "merge_method": method.name,
            "models": [{"model": str(recipe.parent / name)} for name in ("math", "code", "math")[:count]],
            "parameters": NEEDED.get(method.name, {}),
        }
        if method.base in (REQUIRED, ENDPOINT):
            written["base_model"] = str(recipe.parent / "base")
        paths.append(tmp_path / f"{method.name}.yml")
        paths[-1].write_text(json.dumps(written))
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, paths)]  # in one process: it is told at which it came
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert all(Path(f"{path}.out").is_dir() for path in paths)


def test_a_merge_from_recipe_to_verification(recipe, tmp_path):
    out = tmp_path / "out"
    began = time.perf_counter()
    merged = cuvee("merge", recipe, out, "--json")
    elapsed = time.perf_counter() - began
    assert merged.returncode == 0, merged.stderr
    assert merged.stderr == ""
    found = json.loads(merged.stdout)
    seconds = found["seconds"]
    assert seconds["import"] < seconds["total"] <= elapsed + 0.02  # a process knows its age to a hundredth
    assert seconds["total"] > 0.5 * elapsed  # counted from the start of the process
    verified = cuvee("verify", out)
    assert verified.returncode == 0
    assert found["digest"] in verified.stdout
    again = cuvee("merge", recipe, out)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_pipe_that_closes_early_is_quiet():
    command = f"{sys.executable} -m cuvee methods --json | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.stdout == '{\n  "metho'
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_stdout_is_a_user_error(more):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cuvee", "methods", *more],
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "no space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_merge_leaves_no_model_and_goes_on(tmp_path, number, code):
    for seed, name in enumerate(("base", "math", "code")):
        write_model(tmp_path / name, seed, 10_000)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"merge_method: della\nbase_model: {tmp_path}/base\nmodels: [{tmp_path}/math, {tmp_path}/code]\n"
                      "parameters: {density: 0.5}\n")  # fmt: skip
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cuvee", "merge", str(recipe), str(out), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        journals = list(tmp_path.glob(".out.cuvee-*/journal.jsonl"))
        if journals and journals[0].read_bytes().count(b"\n") >= 2:  # its head and one finished tensor
            break
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert said.startswith("stopped\n")
    assert not out.exists()
    if number == signal.SIGINT:
        return  # what follows is the same
    finished = cuvee("merge", recipe, out, "--json")
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["resumed"] >= 1


def test_ascii_terminals_get_escapes_instead_of_a_crash():
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "cuvee", "methods", "ties"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "TIES-Merging" in done.stdout


def test_no_stdout_at_all_is_no_crash():
    command = f"{sys.executable} -m cuvee methods >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
