"""Chat templates: chosen from the models, by name, or written out; held against the vocabulary, never executed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

__all__ = ["BUILT_IN", "check_template", "choose_template", "most_common"]


BUILT_IN: Mapping[str, str] = {
    "alpaca": (
        "{{- bos_token }}{%- for message in messages %}"
        "{%- if message['role'] == 'system' %}{{- message['content'] | trim + '\\n\\n' }}"
        "{%- elif message['role'] == 'user' %}{{- '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}"
        "{%- elif message['role'] == 'assistant' %}"
        "{{- '### Response:\\n' + message['content'] | trim + eos_token + '\\n\\n' }}"
        "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}"
    ),
    "chatml": (
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "exaone": (
        "{%- if messages[0]['role'] != 'system' %}{{- '[|system|][|endofturn|]\\n' }}{%- endif %}"
        "{%- for message in messages %}"
        "{{- '[|' + message['role'] + '|]' + message['content'] }}"
        "{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '[|assistant|]' }}{%- endif %}"
    ),
    "llama3": (
        "{{- bos_token }}{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{- message['content'] | trim + '<|eot_id|>' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
    ),
    "mistral": (
        "{{- bos_token }}{%- set held = namespace(system='') %}"
        "{%- for message in messages %}"
        "{%- if message['role'] == 'system' %}{%- set held.system = message['content'] | trim + '\\n\\n' %}"
        "{%- elif message['role'] == 'user' %}"
        "{{- '[INST] ' + held.system + message['content'] | trim + ' [/INST]' }}{%- set held.system = '' %}"
        "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}"
        "{%- endif %}{%- endfor %}"
    ),
}
"""Templates that a recipe may name, in the formats of these families."""

_SHORTEST = 20
_LITERAL = re.compile(r"<\|[A-Za-z0-9_▁-]+\|>|\[\|[a-z]+\|\]|</?s>|<(?:start|end)_of_turn>")
"""What a template writes out as a special token, in the families' spellings."""
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "[|endofturn|]", "<end_of_turn>", "<|end_of_turn|>")


def choose_template(spoken: str, held: Iterable[str | None]) -> str | None:
    """Return the template that a recipe means: a built-in one's name, "auto", or the text itself.

    Args:
        spoken: what the recipe says.
        held: the models' own templates, in the order of the models.

    Returns:
        None where "auto" finds no template.

    Raises:
        ValueError: it is neither a name nor a template.
    """
    if spoken == "auto":
        return most_common(held)
    if spoken in BUILT_IN:
        return BUILT_IN[spoken]
    if len(spoken) < _SHORTEST or "{" not in spoken:
        raise ValueError(f"{spoken!r} is neither a template nor the name of one")
    return spoken


def most_common(held: Iterable[str | None]) -> str | None:
    """Return the template that most models have, the first among equals; None when none has one."""
    counts = Counter(text.strip() for text in held if text and text.strip())
    return max(counts, key=lambda text: counts[text]) if counts else None


def check_template(template: str, vocabulary: Mapping[str, int], ends: Iterable[str]) -> list[str]:
    """Return what does not fit: special tokens that the vocabulary lacks, and an end of turn that stops nothing.

    Args:
        vocabulary: of the output.
        ends: the tokens that stop generation.
    """
    written = dict.fromkeys(_LITERAL.findall(template))
    missing = [token for token in written if token not in vocabulary]
    notes = [f"the chat template writes {token!r}, which is no token of the output" for token in missing]
    ends = list(ends)
    closing = [token for token in written if token in _ENDS and token in vocabulary]
    if ends and closing and not set(closing) & set(ends):
        notes.append(
            f"the chat template ends a turn with {closing[0]!r}, and generation stops at {', '.join(map(repr, ends))}"
        )
    return notes
