"""Runs a corpus of recipes through mergekit and through Cuvée, and compares every tensor.

    make bench-mergekit, or python benchmarks/against_mergekit.py [--folder DIR] [--peer DIR] [--only GROUP] [--json FILE]

Under `compat: mergekit` nothing may differ beyond rounding. Without it, each difference must have a name in `EXPECTED`: the
line of the method reference that says where mergekit's behaviour is not taken over. Exit code 1 when either fails.

mergekit 0.1.4 (0.1.5 for methods that 0.1.4 lacks) runs in an environment of its own (`peers.py` makes it), in one process;
masks that it draws are given to Cuvée. Elements that lie exactly on a threshold, where either choice is right, are counted
and not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mergekit_corpus import Case, cases, write_models
from peers import install_peer
from safetensors.torch import load_file

import cuvee
from cuvee.errors import CuveeError
from cuvee.recipes import everywhere, parse_recipe

HERE = Path(__file__).parent
VERSION = "0.1.4"
"""The version that the method reference describes; 0.1.5 has since mended some of what it names."""
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-22}

ENDS = ("lm_head.weight", "model.embed_tokens.weight")

Tensors = dict[str, torch.Tensor]


@dataclass
class Outcome:
    """What came of one recipe.

    Attributes:
        error: why there is no model, "" where there is one.
        tensors: of the model.
        layers: that config.json speaks of.
        ids: of the tokens, where there is a tokenizer.
    """

    error: str = ""
    tensors: Tensors = field(default_factory=dict)
    layers: int = 0
    ids: dict[str, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """How both compare.

    Attributes:
        differences: tensor -> what differs.
        on_threshold: elements that lie exactly on a threshold and differ.
        tensors: that were compared.
        made_here_alone: why mergekit fails on what Cuvée merges.
    """

    made_here_alone: str = ""
    differences: dict[str, str] = field(default_factory=dict)
    on_threshold: int = 0
    tensors: int = 0


# ---- running both


def run_mergekit(folder: Path, corpus: Sequence[Case], peer: Path) -> dict[str, Outcome]:
    """Run the corpus through mergekit in one process."""
    jobs = []
    for case in corpus:
        path = folder / "recipes" / f"{case.name}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(case.text(folder / "models"))
        jobs.append({"recipe": str(path), "out": str(folder / "mergekit" / case.name)})
    python = install_peer(peer).folder / "bin" / "python"
    older = peer.parent / f"mergekit-{VERSION}"
    if not (older / "mergekit").is_dir():
        asked = ["--quiet", "--no-deps", "--target", str(older), f"mergekit=={VERSION}"]
        subprocess.run([str(python), "-m", "pip", "install", *asked], check=True)
    found = _run_jobs(folder, jobs, python, {"PYTHONPATH": str(older)})
    newer = [job for job in jobs if "Unimplemented merge method" in found[Path(job["out"]).name].error]
    return found | (_run_jobs(folder, newer, python, {}) if newer else {})


def _run_jobs(folder: Path, jobs: Sequence[dict[str, str]], python: Path, more: dict[str, str]) -> dict[str, Outcome]:
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}
    command = [str(python), str(HERE / "mergekit_runner.py"), str(listed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mergekit did not run: {done.stderr[-2000:]}")
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {Path(one["out"]).name: _read(Path(one["out"]), one["error"]) for one in said}


def _read(folder: Path, error: str) -> Outcome:
    if error:
        return Outcome(error)
    tensors = {n: t for path in sorted(folder.glob("model*.safetensors")) for n, t in load_file(path).items()}
    config = json.loads((folder / "config.json").read_text())
    layers = config.get("num_hidden_layers", 0) + config.get("num_layers", 0) + config.get("num_decoder_layers", 0)
    return Outcome("", tensors, layers, _ids(folder / "tokenizer.json"))


def _ids(file: Path) -> dict[str, int]:
    if not file.exists():
        return {}
    said = json.loads(file.read_text())
    return said["model"]["vocab"] | {one["content"]: one["id"] for one in said["added_tokens"]}


def run_cuvee(folder: Path, case: Case, compat: str | None) -> Outcome:
    """Run one recipe through Cuvée, with the masks that mergekit has drawn."""
    recipe = everywhere(parse_recipe(case.text(folder / "models"), name=case.name), compat=compat)
    out = folder / ("compat" if compat else "default") / case.name
    masks = folder / "mergekit" / case.name / "masks.safetensors"
    try:
        plan = cuvee.plan(recipe, threads=1)
        if masks.exists():
            plan = replace(plan, formula=replace(plan.formula, statistics=load_file(masks)))
        cuvee.run(plan, out, overwrite=True)
    except CuveeError as error:
        return Outcome(str(error))
    return _read(out, "")


# ---- comparing


def compare(case: Case, ours: Outcome, theirs: Outcome, models: Path) -> Verdict:
    """Compare two outcomes tensor by tensor."""
    verdict = Verdict()
    if theirs.error:
        verdict.made_here_alone = "" if ours.error else theirs.error
        return verdict
    if ours.error:
        verdict.differences["(no model)"] = ours.error
        return verdict
    if ours.ids and theirs.ids and ours.ids.keys() != theirs.ids.keys():
        verdict.differences["tokenizer.json"] = f"tokens {sorted(ours.ids.keys() ^ theirs.ids.keys())} in one only"
    if ours.layers != theirs.layers:
        verdict.differences["config.json"] = f"{theirs.layers} layers in mergekit, {ours.layers} in cuvee"
    for name in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        verdict.tensors += 1
        if name not in ours.tensors or name not in theirs.tensors:
            verdict.differences[name] = f"only in {'mergekit' if name in theirs.tensors else 'cuvee'}"
            continue
        want = theirs.tensors[name]
        if name in ENDS:
            want = _in_our_order(want, ours.ids, theirs.ids)
        _compare(case, name, ours.tensors[name], want, verdict, models)
    return verdict


def _in_our_order(rows: torch.Tensor, ours: dict[str, int], theirs: dict[str, int]) -> torch.Tensor:
    """Return rows in the order of our ids: without a base model, which model's ids come first is chance in mergekit."""
    if ours == theirs or ours.keys() != theirs.keys():
        return rows
    order = torch.arange(len(rows))
    for token, place in theirs.items():
        order[ours[token]] = place
    return rows[order]


def _compare(case: Case, name: str, got: torch.Tensor, want: torch.Tensor, verdict: Verdict, models: Path) -> None:
    if got.shape != want.shape or got.dtype != want.dtype:
        verdict.differences[name] = (
            f"{want.dtype} {tuple(want.shape)} in mergekit, {got.dtype} {tuple(got.shape)} in cuvee"
        )
        return
    scale = max(1.0, want.double().abs().max().item())
    error = (got.double() - want.double()).abs()
    allowed = _allowed(case, want) * scale
    off = error > allowed
    if case.group == "dtypes" and bool(off.any()):
        on_threshold = off & _on_threshold(case, name, models, got.shape)
        verdict.on_threshold += int(on_threshold.sum())
        off &= ~on_threshold
    if bool(off.any()) or not bool(torch.isfinite(got).all()):
        verdict.differences[name] = f"{int(off.sum())} of {off.numel()} elements, by {error.max().item():.3g}"


def _allowed(case: Case, want: torch.Tensor) -> float:
    """Return the rounding that is allowed, relative to the largest magnitude.

    mergekit computes in the dtype that tensors have; in 16 bits each of its steps rounds.
    """
    stored = "16" in str(case.recipe.get("dtype")) or (
        case.recipe.get("dtype") is None and want.dtype is not torch.float32
    )
    mixed = case.recipe.get("dtype") is None
    dtype = want.dtype if want.dtype in ULP else torch.float32
    if stored or (mixed and "16" in json.dumps(case.recipe)):
        return 8 * ULP[torch.bfloat16 if dtype is torch.float32 else dtype]
    return max(1e-5, 1.01 * ULP[dtype])


def _on_threshold(case: Case, name: str, models: Path, shape: torch.Size) -> torch.Tensor:
    """Say which elements of a tensor lie exactly on a threshold that some of their equals pass and others do not.

    The variances of sce are equal where they are so in float32, in which mergekit takes them.
    """
    found = torch.zeros(shape, dtype=torch.bool)
    base = case.recipe.get("base_model")
    if base is None:
        return found
    held = load_file(models / base / "model.safetensors")[name].float()
    entries = case.recipe.get("models", [])
    deltas = torch.stack([load_file(models / e["model"] / "model.safetensors")[name].float() - held for e in entries])
    settings, n, rounding = case.recipe.get("parameters", {}), held.numel(), 0.0
    if method(case) == "sce":
        measured = deltas.double().var(0, unbiased=False)[None]
        cuts = [int(settings["select_topk"] * int(measured.count_nonzero()))]
        rounding = 4e-7
    else:
        kept, largest = int(settings.get("density", 1) * n), int(settings.get("gamma", 0) * n)
        measured, cuts = deltas.abs(), [largest, largest + kept]
    for values in measured:
        ordered = values.reshape(-1).sort(descending=True).values
        for cut in cuts:
            if 0 < cut < n and torch.isclose(ordered[cut - 1], ordered[cut], rtol=rounding, atol=0):
                found |= torch.isclose(values.reshape(shape), ordered[cut], rtol=2 * rounding, atol=0)
    return found


# ---- what is expected to differ without compat


@dataclass(frozen=True)
class Expected:
    """A named line of the method reference, and the differences that it accounts for."""

    line: str
    accounts: Callable[[Case, str, str, Outcome], bool]


def method(case: Case) -> str:
    return str(case.recipe["merge_method"])


def slices(case: Case) -> list[Any]:
    return list(case.recipe.get("slices", []))


def _is_small(name: str, theirs: Outcome, most: int) -> bool:
    return name in theirs.tensors and theirs.tensors[name].numel() <= most


def _has_repeats(case: Case) -> bool:
    return any(len({s["model"] for s in one["sources"]}) < len(one["sources"]) for one in slices(case))


EXPECTED = (
    Expected(
        "structural.md, mergekit_slices, grammar of modules: what belongs to none is carried over; mergekit loses it",
        lambda case, name, said, theirs: "modules" in case.recipe and said == "only in cuvee",
    ),
    Expected(
        "structural.md, vocab_mismatch 1: rows of padding stay; mergekit cuts the matrix to the tokens",
        lambda case, name, said, theirs: case.group == "tokenizers" and name in ENDS and "in mergekit, " in said,
    ),
    Expected(
        "structural.md, tokenizer_merge: new padding is the mean of the model's own rows",
        lambda case, name, said, theirs: "pad_to_multiple_of" in json.dumps(case.recipe) and name in ENDS,
    ),
    Expected(
        "structural.md, mergekit_slices 7: post-layer tensors have the number of sources of the first slice",
        lambda case, name, said, theirs: (
            name in ("model.norm.weight", "lm_head.weight")
            and bool(slices(case))
            and len(slices(case)[0]["sources"]) < len(slices(case)[-1]["sources"])
        ),
    ),
    Expected(
        "structural.md, mergekit_slices 8: the same model twice in a slice collides",
        lambda case, name, said, theirs: _has_repeats(case),
    ),
    Expected(
        "task_vector.md, breadcrumbs: int(gamma·n) = 0 empties the task vector",
        lambda case, name, said, theirs: method(case).startswith("breadcrumbs") and _is_small(name, theirs, 100),
    ),
    Expected(
        "structural.md, mergekit_slices 7: post-layer tensors are the last slice's, also where its model ties the head",
        lambda case, name, said, theirs: case.group == "tied" and bool(slices(case)) and name == "lm_head.weight",
    ),
    Expected(
        "task_vector.md §1: an unknown parameter is ignored by mergekit, and named here",
        lambda case, name, said, theirs: "has no parameter" in said,
    ),
    Expected(
        "task_vector.md §1, vocabulary mismatch: cropped by mergekit, refused here unless embed_mismatch says so",
        lambda case, name, said, theirs: case.group == "vocabularies" and "embed_mismatch: common_submatrix" in said,
    ),
    Expected(
        "task_vector.md, model_stock: t is not kept within [0, 1], and small norms are clamped in the cosine",
        lambda case, name, said, theirs: method(case) == "model_stock",
    ),
    Expected(
        "task_vector.md, sce: energies below 1e-6 count as equal",
        lambda case, name, said, theirs: method(case) == "sce",
    ),
)


def explain(case: Case, verdict: Verdict, theirs: Outcome) -> tuple[list[str], list[str]]:
    """Return the lines that account for differences, and the differences that no line accounts for."""
    lines, unmapped = [], []
    for name, said in verdict.differences.items():
        line = next((one.line for one in EXPECTED if one.accounts(case, name, said, theirs)), None)
        if line is None:
            unmapped.append(f"{case.name} {name}: {said}")
        else:
            lines.append(line)
    return lines, unmapped


# ---- reporting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="where models and outputs lie; a temporary one if not given")
    home = Path(os.environ.get("CUVEE_HOME") or Path.home() / ".cache" / "cuvee")
    parser.add_argument("--peer", type=Path, default=home / "bench" / "peer-venv", help="mergekit's environment")
    parser.add_argument("--only", help="the groups of recipes to run, separated by commas")
    parser.add_argument("--json", type=Path, help="write the result here too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(_report(asked.folder or Path(temporary), asked.peer, asked.only, asked.json))


def _report(folder: Path, peer: Path, only: str | None, target: Path | None) -> int:
    torch.set_num_threads(1)
    corpus = [case for case in cases() if only is None or case.group in only.split(",")]
    if not (folder / "models").exists():
        write_models(folder / "models")
    theirs = run_mergekit(folder, corpus, peer)
    wrong, unmapped, lines = [], [], Counter[str]()
    tensors = on_threshold = refused = 0
    failures: dict[str, str] = {}
    for case in corpus:
        outcome = theirs[case.name]
        exact = compare(case, run_cuvee(folder, case, "mergekit"), outcome, folder / "models")
        tensors, on_threshold = tensors + exact.tensors, on_threshold + exact.on_threshold
        refused += bool(outcome.error) and not exact.made_here_alone
        wrong += [f"{case.name} {name}: {said}" for name, said in exact.differences.items()]
        loose = compare(case, run_cuvee(folder, case, None), outcome, folder / "models")
        mended, strange = explain(case, loose, outcome)
        if loose.made_here_alone:
            failures[case.name] = loose.made_here_alone
        lines.update(set(mended))
        unmapped += strange
    print(f"{len(corpus)} recipes, {tensors} tensors; mergekit {VERSION} and cuvee {cuvee.__version__}")
    print(f"refused by both: {refused}; elements exactly on a threshold: {on_threshold}")
    print(f"mergekit fails, cuvee merges: {len(failures)}")
    print("".join(f"  {name}: {said}\n" for name, said in failures.items()), end="")
    print(f"under compat: mergekit, differences beyond rounding: {len(wrong)}")
    print("".join(f"  {line}\n" for line in wrong), end="")
    print(f"without compat, recipes with differences: {sum(lines.values())}, by line of the reference:")
    print("".join(f"  {count:3d}  {line}\n" for line, count in lines.most_common()), end="")
    print(f"without compat, differences without a line: {len(unmapped)}")
    print("".join(f"  {line}\n" for line in unmapped), end="")
    if target:
        said = {
            "recipes": len(corpus),
            "tensors": tensors,
            "wrong": wrong,
            "unmapped": unmapped,
            "lines": dict(lines),
            "failures": failures,
        }
        target.write_text(json.dumps(said, indent=1))
    return 1 if wrong or unmapped else 0


if __name__ == "__main__":
    main()
