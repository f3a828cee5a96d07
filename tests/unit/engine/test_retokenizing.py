"""Recipes with a tokenizer: models of different vocabularies merged, end to end."""

from __future__ import annotations

import json

import pytest
import torch
from models import LLAMA, assert_equal, contents, read_folder, write_model
from token_models import SPECIAL, bpe, tokens_of, unigram, write_token_model, write_tokenizer

import cuvee
from cuvee.engine.estimating import estimate
from cuvee.engine.stages import stages_of
from cuvee.errors import CuveeError, IncompatibleModels, Problems, RecipeError, ResourceError
from cuvee.tokenizers.request import TokenizerRequest

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BASE = bpe(["a", "b", "c", "d", "Ġ"], [], {"</s>": 5})
CHAT = bpe(["a", "b", "c", "d", "Ġ"], [], {"</s>": 5, "<|im_start|>": 6})
SHUFFLED = bpe(["d", "Ġ", "b", "a", "c"], [], {"</s>": 5})


def merge(workplace, recipe: str, out: str = "out", **options) -> dict[str, torch.Tensor]:
    (workplace / "recipe.yml").write_text(recipe)
    cuvee.merge("recipe.yml", out, **options)
    return read_folder(workplace / out)


def config_of(workplace, out: str = "out") -> dict:
    return json.loads((workplace / out / "config.json").read_text())


def test_one_model_with_its_own_tokenizer_is_unchanged(workplace):
    tensors = write_token_model(workplace / "m", BASE, rows=9)
    merged = merge(workplace, "merge_method: passthrough\nmodels: [m]\ntokenizer_source: base\n")
    assert_equal(merged, tensors)
    got, given = contents(workplace / "out"), contents(workplace / "m")
    assert got["tokenizer.json"] == given["tokenizer.json"]
    assert got["tokenizer_config.json"] == given["tokenizer_config.json"]
    assert config_of(workplace)["vocab_size"] == 9


def test_a_union_of_equal_vocabularies_changes_nothing(workplace):
    for seed, name in enumerate("xy"):
        write_token_model(workplace / name, BASE, rows=9, seed=seed)
    plain = merge(workplace, "merge_method: linear\nmodels: [x, y]\nparameters: {weight: 0.5}\n", "plain")
    recipe = "merge_method: linear\nmodels: [x, y]\nparameters: {weight: 0.5}\ntokenizer_source: union\n"
    assert_equal(merge(workplace, recipe), plain)
    assert (workplace / "out/tokenizer.json").read_bytes() == (workplace / "x/tokenizer.json").read_bytes()


def test_a_permuted_vocabulary_is_merged_by_string(workplace):
    base = write_token_model(workplace / "base", BASE)
    order = [tokens_of(SHUFFLED)[t] for t, _ in sorted(tokens_of(BASE).items(), key=lambda pair: pair[1])]
    permuted = {n: t.clone() for n, t in base.items()}
    for name in (EMBED, HEAD):
        permuted[name][order] = base[name]
    write_model(workplace / "other", permuted, {**LLAMA, "vocab_size": 6})
    write_tokenizer(workplace / "other", SHUFFLED)
    recipe = "merge_method: linear\nbase_model: base\nmodels: [base, other]\n"
    merged = merge(workplace, recipe + "parameters: {weight: 0.5}\ntokenizer_source: union\n")
    assert_equal(merged, base)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "della", "linear"])
def test_a_token_that_one_expert_has_comes_out_with_its_row(workplace, method):
    base = write_token_model(workplace / "base", BASE)
    chat = write_token_model(workplace / "chat", CHAT, seed=1)
    recipe = f"merge_method: {method}\nbase_model: base\nmodels: [{{model: chat, parameters: {{weight: 0.5}}}}"
    recipe += ", {model: base, parameters: {weight: 0.5}}]\ntokenizer_source: union\n"
    merged = merge(workplace, recipe)
    for name in (EMBED, HEAD):
        assert merged[name].shape == (7, 16)
        assert torch.allclose(merged[name][6], chat[name][6], atol=1e-7)
    if method == "linear":
        assert torch.allclose(merged[EMBED][:6], (base[EMBED] + chat[EMBED][:6]) / 2)
    assert config_of(workplace)["vocab_size"] == 7
    assert tokens_of(json.loads((workplace / "out/tokenizer.json").read_text())) == tokens_of(CHAT)


def test_padding_stays_and_new_tokens_take_its_place(workplace):
    base = write_token_model(workplace / "base", BASE, rows=10)
    chat = write_token_model(workplace / "chat", CHAT, rows=8, seed=1)
    recipe = "merge_method: linear\nbase_model: base\nmodels: [base, chat]\nparameters: {weight: 0.5}\n"
    merged = merge(workplace, recipe + "tokenizer_source: union\n")
    assert merged[EMBED].shape == (10, 16) and config_of(workplace)["vocab_size"] == 10
    assert torch.equal(merged[EMBED][6], chat[EMBED][6])  # the base's row 6 is padding: never averaged with a token
    assert torch.allclose(merged[EMBED][7], (base[EMBED][7] + chat[EMBED][7]) / 2)
    assert torch.equal(merged[EMBED][8:], base[EMBED][8:])


def test_rows_are_added_up_to_a_multiple_as_means(workplace):
    base = write_token_model(workplace / "base", BASE)
    recipe = "merge_method: passthrough\nmodels: [base]\ntokenizer: {source: base, pad_to_multiple_of: 8}\n"
    merged = merge(workplace, recipe)
    assert merged[EMBED].shape == (8, 16)
    assert torch.allclose(merged[EMBED][6:], base[EMBED].mean(0).expand(2, 16), atol=1e-6)


def test_mergekit_drops_padding_and_the_default_does_not(workplace):
    write_token_model(workplace / "base", BASE, rows=10)
    recipe = "merge_method: passthrough\nmodels: [base]\ntokenizer_source: base\n"
    assert merge(workplace, recipe)[EMBED].shape == (10, 16)
    assert merge(workplace, recipe + "compat: mergekit\n", "theirs")[EMBED].shape == (6, 16)


def test_rules_for_single_tokens(workplace):
    write_token_model(workplace / "base", BASE)
    chat = write_token_model(workplace / "chat", CHAT, seed=1)
    merged = merge(
        workplace,
        """
merge_method: linear
base_model: base
models: [base, chat]
parameters: {weight: 0.5}
tokenizer:
  source: union
  tokens:
    "a": {source: chat, force: true}
    "<|im_start|>": {source: {kind: model_token, model: chat, token: "</s>"}}
    "<|new|>": {source: {kind: zero}}
    "<|by id|>": {source: {kind: model_token, model: chat, token_id: 2}, force: true}
""",
    )
    ids = tokens_of(json.loads((workplace / "out/tokenizer.json").read_text()))
    assert set(ids) - set(tokens_of(CHAT)) == {"<|new|>", "<|by id|>"}
    assert torch.equal(merged[EMBED][ids["a"]], chat[EMBED][0])
    # the base takes the rule's row, the chat model keeps its own
    assert torch.allclose(merged[EMBED][ids["<|im_start|>"]], (chat[EMBED][5] + chat[EMBED][6]) / 2)
    assert not merged[EMBED][ids["<|new|>"]].any()
    assert torch.equal(merged[HEAD][ids["<|by id|>"]], chat[HEAD][2])


def test_another_models_tokenizer_brings_its_files_and_special_ids(workplace):
    base = write_token_model(workplace / "base", BASE, eos_token_id=5, pad_token_id=5, bos_token_id=4)
    write_token_model(workplace / "other", SHUFFLED, seed=1, eos_token_id=5)
    (workplace / "base/generation_config.json").write_text('{"eos_token_id": [5], "bos_token_id": 0, "top_k": 5}')
    (workplace / "base/merges.txt").write_text("old")
    recipe = "merge_method: passthrough\nmodels: [base]\ntokenizer_source: other\n"
    merged = merge(workplace, recipe)
    order = [tokens_of(BASE)[t] for t, _ in sorted(tokens_of(SHUFFLED).items(), key=lambda pair: pair[1])]
    assert torch.equal(merged[EMBED], base[EMBED][order])
    assert (workplace / "out/tokenizer.json").read_bytes() == (workplace / "other/tokenizer.json").read_bytes()
    assert not (workplace / "out/merges.txt").exists()
    config = config_of(workplace)
    assert (config["eos_token_id"], config["pad_token_id"], config["bos_token_id"]) == (5, 5, 1)
    generation = json.loads((workplace / "out/generation_config.json").read_text())
    assert generation == {"eos_token_id": 5, "bos_token_id": 3, "top_k": 5}


def test_a_tied_and_an_untied_model_have_one_vocabulary(workplace):
    tied = write_token_model(workplace / "tied", BASE, tie_word_embeddings=True)
    chat = write_token_model(workplace / "chat", CHAT, seed=1)
    recipe = "merge_method: linear\nmodels: [tied, chat]\nparameters: {weight: 0.5}\ntokenizer_source: union\n"
    merged = merge(workplace, recipe)
    assert HEAD not in tied and config_of(workplace)["tie_word_embeddings"] is False
    assert torch.allclose(merged[HEAD][:6], (tied[EMBED] + chat[HEAD][:6]) / 2)
    assert torch.equal(merged[HEAD][6], chat[HEAD][6])


def test_blocks_and_threads_do_not_change_the_bytes(workplace):
    write_token_model(workplace / "base", BASE, rows=9)
    write_token_model(workplace / "chat", CHAT, seed=1)
    write_token_model(workplace / "third", SHUFFLED, seed=2)
    recipe = "merge_method: ties\nbase_model: base\nmodels: [chat, third]\nparameters: {density: 0.5}\n"
    recipe += "tokenizer: {source: union, pad_to_multiple_of: 16}\n"
    one = merge(workplace, recipe, "one", threads=1, shard_size=2000)
    assert_equal(one, merge(workplace, recipe, "four", threads=4))


def test_tokenizers_that_take_more_memory_than_was_promised_are_refused(workplace):
    write_token_model(workplace / "base", BASE)
    (workplace / "base/merges.txt").write_text("#" * 3_000_000)
    recipe = "merge_method: passthrough\nmodels: [base]\ntokenizer_source: base\n"
    with pytest.raises(ResourceError, match="tokenizers needs 326 MB"):
        merge(workplace, recipe, memory=300_000_000)
    merge(workplace, recipe, memory=400_000_000)


def test_the_manifest_says_what_was_done(workplace):
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "chat", CHAT, seed=1)
    merge(workplace, "merge_method: linear\nmodels: [base, chat]\nparameters: {weight: 1}\ntokenizer_source: union\n")
    said = json.loads((workplace / "out/cuvee.json").read_text())["tokens"]
    assert (said["tokens"], said["rows"], said["appended"], said["owner"]) == (7, 7, {"<|im_start|>": 6}, "base")
    base, chat = said["models"]
    assert base["filled"][EMBED] == {"from chat, which alone has it": 1}
    assert chat["filled"][EMBED] == {} and chat["ids"] == [[0, 0, 7]]


def test_different_widths_are_refused(workplace):
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "wide", CHAT, hidden_size=32)
    with pytest.raises(IncompatibleModels, match="a row of one model does not fit"):
        merge(
            workplace, "merge_method: linear\nmodels: [base, wide]\nparameters: {weight: 1}\ntokenizer_source: union\n"
        )


def test_a_model_without_a_tokenizer_is_asked_for_one_unless_its_rows_fit(workplace):
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "same", BASE, seed=1)
    write_token_model(workplace / "more", CHAT, seed=1)
    recipe = "merge_method: linear\nmodels: [base, {}]\nparameters: {{weight: 1}}\ntokenizer_source: union\n"
    for name in ("same", "more"):
        (workplace / name / "tokenizer.json").unlink()
    merge(workplace, recipe.format("same"))
    said = json.loads((workplace / "out/cuvee.json").read_text())["warnings"]
    assert any("same has no tokenizer: that of base is taken for it" in warning for warning in said)
    with pytest.raises(IncompatibleModels, match="'more' has no tokenizer, and 7 rows where 'base' has 6 tokens"):
        merge(workplace, recipe.format("more"), "other")


def test_pieces_of_another_alphabet_are_warned_of(workplace):
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "other", unigram([("<unk>", 0.0), ("▁new", -1.0)]), seed=1)
    merge(workplace, "merge_method: linear\nmodels: [base, other]\nparameters: {weight: 1}\ntokenizer_source: union\n")
    said = json.loads((workplace / "out/cuvee.json").read_text())["warnings"]
    assert any("few texts lead to them" in warning and "cuvee tokens" in warning for warning in said)


def test_a_chat_template_alone_changes_only_the_tokenizers_config(workplace):
    tensors = write_token_model(workplace / "base", CHAT)
    (workplace / "base/chat_template.jinja").write_text("old")
    merged = merge(workplace, "merge_method: passthrough\nmodels: [base]\nchat_template: chatml\n")
    assert_equal(merged, tensors)
    config = json.loads((workplace / "out/tokenizer_config.json").read_text())
    assert "<|im_start|>" in config["chat_template"]
    assert (workplace / "out/chat_template.jinja").read_text() == config["chat_template"]
    assert (workplace / "out/tokenizer.json").read_bytes() == (workplace / "base/tokenizer.json").read_bytes()
    warnings = json.loads((workplace / "out/cuvee.json").read_text())["warnings"]
    assert any("'<|im_end|>', which is no token" in warning for warning in warnings)


def test_auto_takes_the_template_of_most_models(workplace):
    for name, template in (("x", None), ("y", "{{ one }}"), ("z", " {{ one }}\n"), ("w", "{{ two }}")):
        write_token_model(workplace / name, BASE)
        if template:
            write_tokenizer(workplace / name, BASE, {"chat_template": template})
    merge(workplace, "merge_method: linear\nmodels: [x, w, y, z]\nparameters: {weight: 1}\nchat_template: auto\n")
    assert json.loads((workplace / "out/tokenizer_config.json").read_text())["chat_template"] == "{{ one }}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokenizer: union", "not a mapping"),
        ("tokenizer: {sauce: union}", "unknown key 'sauce'"),
        ("tokenizer: {source: base}\ntokenizer_source: base", "both given"),
        ('tokenizer: {tokens: ["<x>"]}', "not a mapping from tokens"),
        ("tokenizer: {tokens: {x: base}}", "rule of a token"),
        ("tokenizer: {tokens: {x: {source: {kind: zeros}}}}", "kind is 'zeros'"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: base}}}}", "neither token nor token_id"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: base, token: a, token_id: 1}}}}", "both token"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: base, token_id: -1}}}}", "token_id is no id"),
        ("tokenizer: {tokens: {x: {source: base, force: 3}}}", "force is true or false"),
        ("tokenizer: {pad_to_multiple_of: 0}", "no positive number"),
        ("tokenizer: {tokens: {x: {source: nowhere}}}", "not a model of the recipe"),
        ("tokenizer: {tokens: {x: {source: base}}}", "has no row for token 'x'"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: base, token_id: 99}}}}", "no row for id 99"),
        ("tokenizer: {tokens: {x: {force: true}}}", "forced to no source"),
        ("tokenizer_source: nowhere", "nowhere"),
        ("chat_template: chatlm", "neither a template nor the name"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(workplace, text, said):
    write_token_model(workplace / "base", BASE)
    with pytest.raises((RecipeError, Problems, CuveeError)) as failed:
        merge(workplace, f"merge_method: passthrough\nmodels: [base]\n{text}\n")
    assert said in str(failed.value)
    assert not (workplace / "out").exists()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (5, "source is 5"),
        ("", "source is ''"),
        (TokenizerRequest("union", pad_to_multiple_of=0), "pad_to_multiple_of is 0"),
        (TokenizerRequest("union", {"<x>": "base"}), "rule of token '<x>'"),
    ],
)
def test_what_is_wrong_with_a_request_in_python_is_said(request_, said):
    with pytest.raises(RecipeError, match=said):
        cuvee.plan(cuvee.Recipe("passthrough", models=["base"], tokenizer=request_))


def test_added_tokens_of_the_config_grow_too(workplace):
    write_token_model(workplace / "base", BASE)
    write_tokenizer(workplace / "base", BASE, {"added_tokens_decoder": {"5": {"content": "</s>", **SPECIAL}}})
    write_token_model(workplace / "chat", CHAT, seed=1)
    merge(workplace, "merge_method: linear\nmodels: [base, chat]\nparameters: {weight: 1}\ntokenizer_source: union\n")
    decoder = json.loads((workplace / "out/tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {number: entry["content"] for number, entry in decoder.items()} == {"5": "</s>", "6": "<|im_start|>"}


@pytest.mark.parametrize("source", ["base", "chat"])
def test_the_base_may_be_listed_and_named_as_the_source(workplace, source):
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "chat", CHAT, seed=1)
    recipe = "merge_method: linear\nbase_model: base\nmodels: [base, chat]\nparameters: {weight: 0.5}\n"
    recipe += f"tokenizer: {{source: {source}, tokens: {{a: {{source: base, force: true}}}}}}\n"
    assert merge(workplace, recipe)[EMBED].shape[0] == {"base": 6, "chat": 7}[source]


def test_a_stage_passes_its_vocabulary_on(workplace):
    write_token_model(workplace / "base", BASE)
    chat = write_token_model(workplace / "chat", CHAT, seed=1)
    stages = """
name: first
merge_method: linear
models: [base, chat]
parameters: {weight: 0.5}
tokenizer_source: union
---
merge_method: passthrough
models: [first]
"""
    merged = merge(workplace, stages)
    assert torch.equal(merged[EMBED][6], chat[EMBED][6])
    written = json.loads((workplace / "out/tokenizer.json").read_text())
    assert tokens_of(written) == tokens_of(CHAT) and config_of(workplace)["vocab_size"] == 7
    for out, source in (("again", "chat"), ("named", "first")):
        given = stages.replace("models: [first]", f"models: [first]\ntokenizer_source: {source}")
        assert_equal(merge(workplace, given, out), merged)


def test_a_slice_has_the_vocabulary_too(workplace):
    base = write_token_model(workplace / "base", BASE)
    chat = write_token_model(workplace / "chat", CHAT, seed=1)
    merged = merge(
        workplace,
        """
merge_method: passthrough
slices:
  - sources: [{model: base, layer_range: [0, 1]}]
  - sources: [{model: chat, layer_range: [1, 2]}]
tokenizer_source: union
""",
    )
    assert torch.equal(merged[EMBED][:6], base[EMBED]) and torch.equal(merged[EMBED][6], chat[EMBED][6])
    assert torch.equal(merged[HEAD], chat[HEAD])


def test_rows_may_come_from_a_stage_that_is_yet_to_be_made(workplace):
    other = bpe(["d", "Ġ", "b", "a", "c"], [], {"<|im_start|>": 5, "</s>": 6})
    write_token_model(workplace / "base", BASE)
    write_token_model(workplace / "chat", other, seed=1)
    write_token_model(workplace / "more", other, seed=2)
    stages = """
name: first
merge_method: ties
base_model: chat
models: [{model: more, parameters: {weight: 1.0, density: 0.5}}]
---
merge_method: task_arithmetic
base_model: base
models: [{model: plain, parameters: {weight: 0.5}}, {model: first, parameters: {weight: 0.5}}]
tokenizer_source: union
"""
    write_token_model(workplace / "plain", BASE, seed=3)
    merged = merge(workplace, stages)
    first = merge(workplace, stages.split("---")[0], "first")
    assert torch.allclose(merged[EMBED][6], first[EMBED][5], atol=1e-7)
    assert merged[EMBED].shape == (7, 16)
    (workplace / "recipe.yml").write_text(stages)
    planned = cuvee.plan("recipe.yml")
    estimate(planned)
    assert [stage.name for stage in stages_of(planned.models.values())] == ["first"]
