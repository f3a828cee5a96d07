"""What is published in a new vocabulary loads in transformers: tokenizer, template, config and model."""

from __future__ import annotations

import json

import pytest
import torch
from models import read_folder
from safetensors.torch import save_file
from token_models import bpe, tokens_of, write_token_model, write_tokenizer

import cuvee
from cuvee.tokenizers.transplant import Approximation

transformers = pytest.importorskip("transformers")

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PIECES = [*"abcdefgh", "Ġ", "ab"]
BASE = bpe(PIECES, ["a b"], {"</s>": 10})
CHAT = bpe([*PIECES, "cd"], ["a b", "c d"], {"</s>": 11, "<|im_start|>": 12, "<|im_end|>": 13})
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def loaded(folder):
    """Return tokenizer and model, after checking that every weight was found."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, said = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size >= len(tokenizer)
    ids = tokenizer("ab cd<|im_start|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids).logits).all()
    return tokenizer, model


@pytest.fixture
def pair(workplace):
    for seed, (name, content) in enumerate((("base", BASE), ("chat", CHAT))):
        write_token_model(workplace / name, content, seed=seed, eos_token_id=tokens_of(content)["</s>"])
        write_tokenizer(workplace / name, content, FAST)
    return workplace


def test_a_union_loads_and_chats(pair):
    recipe = "merge_method: linear\nbase_model: base\nmodels: [base, chat]\nparameters: {weight: 0.5}\n"
    (pair / "recipe.yml").write_text(recipe + "tokenizer_source: union\nchat_template: chatml\n")
    cuvee.merge("recipe.yml", "out")
    tokenizer, model = loaded(pair / "out")
    assert tokenizer.get_vocab() == {**tokens_of(BASE), "cd": 11, "<|im_start|>": 12, "<|im_end|>": 13}
    assert tokenizer.tokenize("ab cd<|im_end|>") == ["ab", "Ġ", "cd", "<|im_end|>"]
    said = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert said == "<|im_start|>user\nab<|im_end|>\n"
    assert model.config.eos_token_id == tokenizer.eos_token_id == 10


def test_a_transplant_loads(pair):
    cuvee.transplant("base", "chat", "out", how=Approximation(k=4))
    tokenizer, model = loaded(pair / "out")
    assert tokenizer.get_vocab() == tokens_of(CHAT)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 11


def test_an_adapter_that_taught_new_tokens_brings_its_tokenizer(pair):
    chat = read_folder(pair / "chat")
    adapter = pair / "adapter"
    adapter.mkdir()
    prefix = "base_model.model."
    save_file({prefix + n: chat[n] for n in (EMBED, HEAD)}, adapter / "adapter_model.safetensors", {"format": "pt"})
    saved = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}
    config = saved | {"modules_to_save": ["embed_tokens", "lm_head"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    write_tokenizer(adapter, CHAT, FAST)
    recipe = "merge_method: linear\nbase_model: base\nmodels: [base, base+adapter]\nparameters: {weight: 0.5}\n"
    (pair / "recipe.yml").write_text(recipe + "tokenizer_source: union\n")
    cuvee.merge("recipe.yml", "out")
    tokenizer, _ = loaded(pair / "out")
    ids = tokenizer.get_vocab()
    assert {"<|im_start|>", "cd"} <= set(ids)
    merged = read_folder(pair / "out")
    for token, number in tokens_of(CHAT).items():
        if token not in tokens_of(BASE):
            assert torch.equal(merged[EMBED][ids[token]], chat[EMBED][number])
