"""Special ids: the numbers in config.json and generation_config.json that name tokens, said in the output's vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

__all__ = ["renumbered"]

_KEYS = ("_token_id", "_token_index", "_token_ids")


def renumbered(
    config: Mapping[str, Any],
    before: Mapping[str, int],
    after: Mapping[str, int],
    owner: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Return a config whose special ids mean, in the vocabulary `after`, what they meant in `before`.

    A string that the output lacks is looked up in the config of the tokenizer's owner, whose ids are the output's; where
    that says nothing either, the key goes.

    Args:
        owner: of the model whose tokenizer the output has; None where the output keeps the reference's ids.

    Returns:
        The config, and notes on what was dropped.
    """
    result = copy.deepcopy(dict(config))
    notes: list[str] = []
    if owner is None:
        return result, notes
    strings = {number: token for token, number in before.items()}
    parts = [(result, owner)]
    parts += [
        (part, owner.get(key, {}) if isinstance(owner.get(key), Mapping) else {})
        for key, part in result.items()
        if isinstance(part, dict) and key.endswith("_config")
    ]
    for part, theirs in parts:
        for key in [key for key in part if key.endswith(_KEYS)]:
            value = part[key]
            if value is None or isinstance(value, bool) or not isinstance(value, int | list):
                continue
            if theirs.get(key) is not None:
                part[key] = theirs[key]
                continue
            found = _translated(value, strings, after)
            if found is None:
                notes.append(f"{key} {value} is no token of the output, and left out")
                del part[key]
            else:
                part[key] = found
    return result, notes


def _translated(value: int | list[Any], strings: Mapping[int, str], after: Mapping[str, int]) -> int | list[int] | None:
    if isinstance(value, list):
        found = [after[strings[one]] for one in value if isinstance(one, int) and strings.get(one) in after]
        return found or None
    return after.get(strings.get(value, ""), None)
