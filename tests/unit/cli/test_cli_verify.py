"""`cuvee verify`."""

from __future__ import annotations

import json

import pytest


def test_a_published_model_is_what_it_was(run, published):
    outcome = run("verify", published)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{published} is what was published\n")
    found = run("verify", published, "--json").json
    assert found["ok"]
    assert found["digest"] == json.loads((published / "cuvee.json").read_text())["output"]["digest"]


def test_an_altered_tensor_is_named_with_its_file(run, published):
    path = published / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    outcome = run("verify", published, "--json")
    assert outcome.code == 2
    error = outcome.json["error"]
    assert error["where"] == str(path)
    assert error["found"].endswith("does not have the values that were published")
    assert error["found"].startswith("tensor '")
    assert error["found"] in outcome.err


def test_a_folder_without_a_manifest_is_refused(run, models):
    outcome = run("verify", models.base)
    assert outcome.code == 2
    assert "there is no cuvee.json" in outcome.err


def test_a_sample_is_said_to_be_one(run, published):
    outcome = run("verify", published, "--sample", "50%")
    assert outcome.code == 0, outcome.err
    assert "is what was published, as far as was read" in " ".join(outcome.out.split())
    assert run("verify", published, "--sample", "0.5", "--json").json["sample"] == 0.5


@pytest.mark.parametrize("text", ["0", "120%", "five", "5%%", "nan"])
def test_a_share_that_is_none_is_refused(run, published, text):
    outcome = run("verify", published, "--sample", text)
    assert outcome.code == 2 and "is not a share" in outcome.err
