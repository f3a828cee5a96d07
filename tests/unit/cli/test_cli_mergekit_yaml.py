"""mergekit's command line: every flag is mapped, is named in a note, or is refused with a reason."""

from __future__ import annotations

import json

import pytest

from cuvee.cli.mergekit_yaml import translate
from cuvee.errors import RecipeError

OPTIONS_OF_MERGEKIT = (
    *("allow-crimes", "unsafe-truncate-embeddings", "cuda", "low-cpu-memory", "copy-tokenizer", "clone-tensors"),
    *("trust-remote-code", "lazy-unpickle", "write-model-card", "safe-serialization", "quiet", "read-to-gpu"),
    *("multi-gpu", "async-write"),
)
"""The switches of mergekit 0.1.5; each has a `--no-` form."""
VALUES_OF_MERGEKIT = {
    "transformers-cache": "x",
    "lora-merge-cache": "x",
    "lora-merge-dtype": "float16",
    "device": "cuda",
    "out-shard-size": "5B",
    "random-seed": "3",
    "num-threads": "2",
    "write-threads": "2",
}


@pytest.mark.parametrize("name", OPTIONS_OF_MERGEKIT)
def test_every_switch_is_understood_in_both_forms(name):
    for form in (f"--{name}", f"--no-{name}"):
        if form == "--no-safe-serialization":
            with pytest.raises(RecipeError, match="pickles are not written"):
                translate([form])
        else:
            translate([form])


@pytest.mark.parametrize(("name", "value"), VALUES_OF_MERGEKIT.items())
def test_every_value_is_understood_in_both_forms(name, value):
    assert translate([f"--{name}", value]) == translate([f"--{name}={value}"])


def test_what_changes_the_work_is_mapped():
    said = translate(
        ["a.yml", "--cuda", "out", "-j", "4", "-vv", "--random-seed", "7", "--out-shard-size", "1B", "--quiet"]
    )
    assert said.paths == ["a.yml", "out"]
    assert said.plan == {"device": "cuda", "threads": 4, "seed": 7, "shard_size": "1B"}
    assert said.merge == {"quiet": True}
    assert said.notes == []


def test_a_flag_without_effect_is_named_with_the_reason():
    (note,) = translate(["--lazy-unpickle"]).notes
    assert note == "--lazy-unpickle has no effect: pickles are always read tensor by tensor"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--lazy-unpikle"], "unknown flag '--lazy-unpikle'"),
        (["--random-seed"], "--random-seed has no value"),
        (["--random-seed", "x"], "--random-seed is 'x'"),
        (["--device", "xpu"], "there is no device 'xpu' here"),
    ],
)
def test_what_is_not_understood_is_refused(words, found):
    with pytest.raises(RecipeError) as raised:
        translate(words)
    assert raised.value.found == found


def test_a_command_line_of_mergekit_makes_the_model_that_merge_makes(run, models, tmp_path):
    flags = ["--lazy-unpickle", "--allow-crimes", "--out-shard-size", "500", "-j", "1"]
    outcome = run("mergekit-yaml", models.recipe, tmp_path / "out", *flags)
    assert outcome.code == 0, outcome.err
    assert "note: --lazy-unpickle has no effect" in outcome.err
    assert run("merge", models.recipe, tmp_path / "again", "--quiet").code == 0
    digests = [
        json.loads((tmp_path / name / "cuvee.json").read_text())["output"]["digest"] for name in ("out", "again")
    ]
    assert digests[0] == digests[1]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_without_paths_the_command_says_how_it_is_called(run):
    outcome = run("mergekit-yaml", "--cuda")
    assert outcome.code == 2
    assert "there are 0 paths, not CONFIG and OUT" in outcome.err


def test_truncated_embeddings_are_asked_for_by_mergekits_flag(run, models, tmp_path):
    recipe = models.write_recipe(
        "truncating.yml", "merge_method: linear\nmodels: [MATH, CODE]\nparameters: {weight: 1}\n"
    )
    assert run("mergekit-yaml", recipe, tmp_path / "out", "--unsafe-truncate-embeddings", "--quiet").code == 0
    assert json.loads((tmp_path / "out" / "cuvee.json").read_text())["recipe"]["parameters"]["embed_mismatch"] == (
        "common_submatrix"
    )
