"""Chat templates: the built-in ones say what their families say; what does not fit the vocabulary is named."""

from __future__ import annotations

import jinja2
import pytest

from cuvee.tokenizers.templates import BUILT_IN, check_template, choose_template, most_common

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
]
SAID = {
    "alpaca": "<s>Be kind.\n\n### Instruction:\nHello\n\n### Response:\nHi</s>\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi[|endofturn|]\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be kind.\n\nHello [/INST] Hi</s>",
}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_template_says(name):
    made = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(BUILT_IN[name])
    text = made.render(messages=TALK, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert text == SAID[name]


def test_a_template_is_a_name_auto_or_itself():
    assert choose_template("chatml", ()) == BUILT_IN["chatml"]
    assert choose_template("{{ messages[0].content }}", ()) == "{{ messages[0].content }}"
    assert choose_template("auto", [None, "b", " a ", "a", "b", "a\n"]) == "a"
    assert choose_template("auto", [None, ""]) is None
    assert most_common(["b", "a"]) == "b"
    for spoken in ("chatlm", "twenty letters and more of text"):
        with pytest.raises(ValueError, match="neither"):
            choose_template(spoken, ())


def test_tokens_that_the_vocabulary_lacks_are_named():
    missing = check_template(BUILT_IN["chatml"], {"<|im_start|>": 0}, [])
    assert missing == ["the chat template writes '<|im_end|>', which is no token of the output"]


def test_an_end_of_turn_that_stops_nothing_is_named():
    vocabulary = {"<|im_start|>": 0, "<|im_end|>": 1, "</s>": 2}
    assert check_template(BUILT_IN["chatml"], vocabulary, ["<|im_end|>"]) == []
    (note,) = check_template(BUILT_IN["chatml"], vocabulary, ["</s>"])
    assert "ends a turn with '<|im_end|>'" in note
