"""The tokenizer of a recipe in YAML: mergekit's `tokenizer` and `tokenizer_source`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from cuvee.errors import nearest
from cuvee.recipes.findings import Findings, KeyPath
from cuvee.recipes.yaml_tree import Entries, Node, Scalar
from cuvee.tokenizers.request import RowOf, TokenizerRequest, TokenRule, ZeroRow

__all__ = ["read_request"]

Reference: TypeAlias = Callable[[Node, KeyPath], str | None]
"""Reads a model's reference."""

_KEYS = ("source", "tokens", "pad_to_multiple_of")
_KINDS = ("model_token", "zero")


def read_request(node: Node, path: KeyPath, reference: Reference, findings: Findings) -> TokenizerRequest | None:
    """Return what `tokenizer:` asks for; what is wrong with it goes into `findings`."""
    if not isinstance(node, Entries):
        findings.error(
            "tokenizer is not a mapping", path, right="tokenizer: {source: union}, or tokenizer_source: union"
        )
        return None
    _check_keys(node, _KEYS, path, findings)
    source = _value(node, "source", path, reference)
    pad = _pad(node, path, findings)
    tokens: dict[str, TokenRule] = {}
    listed = node.entries["tokens"][1] if "tokens" in node.entries else None
    if isinstance(listed, Entries):
        for token, (_, rule) in listed.entries.items():
            found = _rule(rule, (*path, "tokens", token), reference, findings)
            if found is not None:
                tokens[token] = found
    elif listed is not None and not _is_empty(listed):
        right = 'tokens: {"<|im_start|>": {source: MODEL}}'
        findings.error("tokens is not a mapping from tokens to their sources", (*path, "tokens"), right=right)
    return TokenizerRequest("union" if source is None else source, tokens, pad)


def _pad(node: Entries, path: KeyPath, findings: Findings) -> int | None:
    if "pad_to_multiple_of" not in node.entries or _is_empty(node.entries["pad_to_multiple_of"][1]):
        return None
    spoken = node.entries["pad_to_multiple_of"][1]
    value = spoken.value if isinstance(spoken, Scalar) else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 20:
        return value
    findings.error("pad_to_multiple_of is no positive number", (*path, "pad_to_multiple_of"), right="such as 64")
    return None


def _rule(node: Node, path: KeyPath, reference: Reference, findings: Findings) -> TokenRule | None:
    if _is_empty(node):
        return TokenRule()
    if not isinstance(node, Entries):
        findings.error("the rule of a token is a mapping", path, right="{source: MODEL}, or {source: {kind: zero}}")
        return None
    _check_keys(node, ("source", "force"), path, findings)
    force = False
    if "force" in node.entries:
        spoken = node.entries["force"][1]
        force = isinstance(spoken, Scalar) and spoken.value is True
        if not (isinstance(spoken, Scalar) and isinstance(spoken.value, bool)):
            findings.error("force is true or false", (*path, "force"), right="force: true")
    if "source" not in node.entries or _is_empty(node.entries["source"][1]):
        return TokenRule(None, force)
    source = _row(node.entries["source"][1], (*path, "source"), reference, findings)
    return None if source is None else TokenRule(source, force)


def _row(node: Node, path: KeyPath, reference: Reference, findings: Findings) -> RowOf | ZeroRow | None:
    if not isinstance(node, Entries) or "kind" not in node.entries:
        model = reference(node, path)
        return None if model is None else RowOf(model)
    spoken = node.entries["kind"][1]
    kind = spoken.text if isinstance(spoken, Scalar) else ""
    if kind == "zero":
        _check_keys(node, ("kind",), path, findings)
        return ZeroRow()
    if kind != "model_token":
        findings.error(f"kind is {kind!r}", (*path, "kind"), right=nearest(kind, _KINDS))
        return None
    _check_keys(node, ("kind", "model", "token", "token_id"), path, findings)
    if "model" not in node.entries:
        findings.error("the source names no model", path, right="{kind: model_token, model: MODEL, token: …}")
        return None
    model = reference(node.entries["model"][1], (*path, "model"))
    given = [key for key in ("token", "token_id") if key in node.entries and not _is_empty(node.entries[key][1])]
    if len(given) != 1:
        said = "both token and token_id" if given else "neither token nor token_id"
        findings.error(f"the source has {said}", path, right="one of them")
        return None
    value = node.entries[given[0]][1]
    if given[0] == "token" and isinstance(value, Scalar):
        return None if model is None else RowOf(model, token=value.text)
    number = value.value if isinstance(value, Scalar) else None
    if given[0] == "token" or isinstance(number, bool) or not isinstance(number, int) or number < 0:
        findings.error(f"{given[0]} is no {'text' if given[0] == 'token' else 'id'}", (*path, given[0]))
        return None
    return None if model is None else RowOf(model, token_id=number)


def _value(node: Entries, key: str, path: KeyPath, reference: Reference) -> str | None:
    if key not in node.entries or _is_empty(node.entries[key][1]):
        return None
    return reference(node.entries[key][1], (*path, key))


def _check_keys(node: Entries, known: tuple[str, ...], path: KeyPath, findings: Findings) -> None:
    for key in node.entries:
        if key not in known:
            findings.error(f"unknown key {key!r}", (*path, key), right=nearest(key, known))


def _is_empty(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None
