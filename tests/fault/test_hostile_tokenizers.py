"""Tokenizer files with anything in them: united, transplanted, or refused in words; never a traceback, never a huge output."""

from __future__ import annotations

import copy
import json
import random

import pytest
from token_models import SPECIAL, bpe, unigram, write_token_model, write_tokenizer

import cuvee
from cuvee.engine.transplanting import plan_transplant
from cuvee.errors import CuveeError
from cuvee.tokenizers.transplant import Approximation

KINDS = {
    "bpe": (
        bpe(["a", "b", "Ġ", "ab"], ["a b"], {"</s>": 4}),
        bpe(["a", "b", "Ġ", "ab", "bb", "Ġab"], ["a b", "b b", "Ġ ab"], {"</s>": 6, "<x>": 7}),
    ),
    "unigram": (
        unigram([("<unk>", 0.0), ("▁", -2.0), ("a", -2.0)], {"</s>": 3}),
        unigram([("<unk>", 0.0), ("▁", -2.0), ("a", -2.0), ("▁a", -1.0)], {"</s>": 4, "<x>": 5}),
    ),
}
CONFIG = {
    "eos_token": "</s>",
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "added_tokens_decoder": {"4": {"content": "</s>", **SPECIAL}},
}
STRANGE = [
    None,
    True,
    -1,
    0,
    1e300,
    2**70,
    16_000_000,
    "",
    "x",
    "a b",
    "\0",
    [],
    [[]],
    ["a"],
    [1, 2, 3],
    {},
    {"a": {}},
    "٣" * 5000,
]


def places(tree, path=()):
    """Return the paths of all nodes of a tree."""
    found = [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def mutated(tree, draws: random.Random):
    """Return a tree with one or two nodes replaced, removed, doubled or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(draws.choice([1, 1, 2])):
        path = draws.choice([path for path in places(tree) if path])
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        what = draws.random()
        if what < 0.6:
            parent[path[-1]] = copy.deepcopy(draws.choice(STRANGE))
        elif what < 0.8:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(draws.choice(parent)))
        else:
            parent[draws.choice(["", "a", "vocab", "4", "٣" * 9])] = parent.pop(path[-1])
    return tree


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request, tmp_path_factory):
    """Two models whose tokenizers the test writes anew."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed, (name, content) in enumerate(zip(("x", "y"), KINDS[request.param], strict=True)):
        write_token_model(folder / name, content, rows=10, seed=seed, eos_token_id=4)
    (folder / "x/generation_config.json").write_text('{"eos_token_id": [4]}')
    return folder, KINDS[request.param]


@pytest.mark.slow
def test_any_tokenizer_is_planned_or_refused_in_words(pair):
    folder, contents = pair
    draws = random.Random(7)
    planned = refused = 0
    for number in range(150):
        names = [draws.choice("xy")]
        for name, content in zip("xy", contents, strict=True):
            config = {**CONFIG}
            if name in names and draws.random() < 0.75:
                content = mutated(content, draws)
            elif name in names:
                config = mutated(config, draws)
            write_tokenizer(folder / name, content, config)
        models = [str(folder / "x"), str(folder / "y")]
        for source in ("union", models[1]):
            recipe = cuvee.Recipe(
                "linear", models=models, parameters={"weight": 1.0}, tokenizer=source, chat_template="auto"
            )
            try:
                found = cuvee.plan(recipe)
                assert found.bytes_written < 1e7, number
                planned += 1
            except CuveeError as error:
                assert error.found and len(str(error)) < 3000, number
                refused += 1
        try:
            method = draws.choice(["subword", "omp", "mean"])
            found = plan_transplant(*models, Approximation(method, k=2))
            assert found.bytes_written < 1e7, number
        except CuveeError as error:
            assert error.found, number
    assert planned > 60 and refused > 30


def test_ids_far_beyond_the_tokens_are_refused(pair):
    folder, (first, _) = pair
    content = copy.deepcopy(first)
    content["added_tokens"].append({"id": 9_000_000, "content": "<far>", **SPECIAL})
    write_tokenizer(folder / "x", content)
    with pytest.raises(CuveeError, match="ids up to 9000000"):
        cuvee.plan(cuvee.Recipe("passthrough", models=[str(folder / "x")], tokenizer="base"))


def test_json_that_is_nested_too_deep_is_refused(pair):
    folder, _ = pair
    (folder / "x/tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0}}})[:-1] + ', "pre_tokenizer": ' + '{"a":' * 5000
    )
    with pytest.raises(CuveeError):
        cuvee.plan(cuvee.Recipe("passthrough", models=[str(folder / "x")], tokenizer="base"))
