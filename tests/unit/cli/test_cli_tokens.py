"""`cuvee tokens`, and what `merge` and `plan` say of vocabularies."""

from __future__ import annotations

import json

import pytest
from token_models import bpe, write_token_model

BASE = bpe(["a", "b", "c", "Ġ"], [], {"</s>": 4})
CHAT = bpe(["b", "a", "c", "Ġ", "bc"], [], {"</s>": 5, "<|im_start|>": 6})


@pytest.fixture
def pair(workplace):
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "chat", CHAT, seed=1)
    recipe = "merge_method: linear\nbase_model: base\nmodels: [base, chat]\nparameters: {weight: 0.5}\n"
    (workplace / "recipe.yml").write_text(recipe + "tokenizer_source: union\n")
    return workplace


def test_a_transplant_says_what_was_matched_and_made(run, pair):
    outcome = run("tokens", "base", "chat", "out", "--k", "2", columns=160)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("out is published\n")
    for said in (
        "chat's",
        "7 tokens in 7 rows",
        "4 by the same text, 1 by the same role",
        "2 made by omp",
        "5 the base's own rows",
    ):
        assert said in " ".join(outcome.out.split())
    assert run("verify", "out").code == 0


def test_a_transplant_in_json(run, pair):
    found = run("tokens", "base", "chat", "out", "--approximation-method", "mean", "--json").json
    assert found["tokens"]["matched"] == {"same text": 4, "same role": 1} and found["tokens"]["rows"] == 7


def test_an_unknown_way_and_a_taken_folder_are_refused(run, pair):
    assert run("tokens", "base", "chat", "out", "--approximation-method", "opm").code == 2
    assert run("tokens", "base", "chat", "base").code == 2
    outcome = run("tokens", "base", "nowhere", "out")
    assert outcome.code == 2 and "nowhere" in outcome.err and not (pair / "out").exists()


def test_a_merge_says_where_rows_came_from(run, pair):
    outcome = run("merge", "recipe.yml", "out", columns=160)
    text = " ".join(outcome.out.split())
    assert outcome.code == 0
    for said in ("base's, extended", "7 tokens in 7 rows", "2: bc, <|im_start|>", "2 from chat, which alone has it"):
        assert said in text
    planned = run("plan", "recipe.yml", columns=160)
    assert planned.code == 0 and "2 from chat, which alone has it" in " ".join(planned.out.split())
    tokens = run("plan", "recipe.yml", "--json").json["tokens"]
    assert tokens == json.loads((pair / "out/cuvee.json").read_text())["tokens"]
