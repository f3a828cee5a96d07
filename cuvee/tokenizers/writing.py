"""Writing a tokenizer: its files copied byte for byte where nothing is added, else tokenizer.json edited as JSON.

A piece of another model's segmentation goes into the model's own vocabulary together with the merges (or the score)
that lead to it, after those that are there: a vocabulary that extends another is segmented as its owner does. An added
token goes to the added tokens. A SentencePiece model is copied as it is, and what the output has beyond it stands in
added_tokens.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cuvee.checkpoints.sidecars import Sidecar
from cuvee.errors import CheckpointError
from cuvee.tokenizers.library import load_tokenizer
from cuvee.tokenizers.reading import AddedToken, Tokenizer
from cuvee.tokenizers.vocabulary import Vocabulary

__all__ = ["check_ids", "tokenizer_files"]


def tokenizer_files(
    vocabulary: Vocabulary,
    others: Mapping[int, Tokenizer],
    *,
    chat_template: str | None = None,
    only_added: bool = False,
) -> tuple[list[Sidecar], list[str]]:
    """Return the files of the output's tokenizer, copied or written, and notes for the user.

    Args:
        others: the models' tokenizers, by the numbers that `vocabulary.appended` has.
        chat_template: replaces the owner's.
        only_added: every new piece becomes an added token (mergekit).

    Raises:
        CheckpointError: the rebuilt tokenizer.json does not have the ids that it should.
    """
    owner = vocabulary.owner
    copied = dict(owner.files)
    written: dict[str, bytes] = {}
    notes: list[str] = []
    config = dict(owner.config)
    if vocabulary.appended:
        pieces: frozenset[str] = frozenset() if only_added else _pieces(vocabulary, others, notes)
        if owner.content is not None:
            content = _extended(owner.content, vocabulary, pieces, others)
            text = json.dumps(content, ensure_ascii=False)  # on one line: indenting takes seconds, and doubles the file
            check_ids(text, vocabulary.ids, owner.where)
            written["tokenizer.json"] = text.encode("utf-8")
        if pieces:
            stale = [name for name in ("vocab.json", "merges.txt", "vocab.txt") if name in owner.files]
            for file in stale:
                del copied[file]
            notes += [f"{file} is left out: tokenizer.json says more than it does" for file in stale]
        if owner.content is None or "added_tokens.json" in owner.files or "tokenizer.model" in owner.files:
            beyond = {token: owner.vocabulary[token] for token in owner.added} | {
                token: vocabulary.ids[token] for token in vocabulary.appended
            }
            written["added_tokens.json"] = _json(beyond)
        if owner.content is None or "added_tokens_decoder" in config:
            known = config.get("added_tokens_decoder")
            fresh = {
                str(vocabulary.ids[t]): _added(vocabulary, t).entry() for t in vocabulary.appended if t not in pieces
            }
            config["added_tokens_decoder"] = {**(known if isinstance(known, Mapping) else {}), **fresh}
    if chat_template is not None:
        config["chat_template"] = chat_template
        if "chat_template.jinja" in copied:
            written["chat_template.jinja"] = chat_template.encode("utf-8")
        copied.pop("chat_template.json", None)
        for name in [name for name in copied if name.startswith("additional_chat_templates/")]:
            del copied[name]
    if config != owner.config:
        written["tokenizer_config.json"] = _json(config)
    for name in written:
        copied.pop(name, None)
    return [*copied.values(), *(Sidecar(name, content=text) for name, text in written.items())], notes


def _added(vocabulary: Vocabulary, token: str) -> AddedToken:
    return vocabulary.added.get(token, AddedToken(token))


def _pieces(vocabulary: Vocabulary, others: Mapping[int, Tokenizer], notes: list[str]) -> frozenset[str]:
    """Return the new pieces that the owner's own model can hold."""
    owner = vocabulary.owner
    new = {token: number for token, number in vocabulary.appended.items() if token not in vocabulary.added}
    if owner.content is None:
        if new:
            notes.append(
                f"{owner.label} has no tokenizer.json: {len(new)} new pieces are added tokens, which are found in a text "
                "before it is segmented"
            )
        return frozenset()
    if owner.kind == "Unigram" and set(vocabulary.ids.values()) != set(range(vocabulary.size)):
        if new:
            notes.append("the owner's ids have gaps, which a Unigram model cannot have: new pieces are added tokens")
        return frozenset()
    for number, count in Counter(number for number in new.values() if number is not None).items():
        other = others[number]
        if not _is_related(other, owner):
            notes.append(
                f"{count} pieces of {other.label} are in the vocabulary, but few texts lead to them: {other.label} is "
                f"{other.kind or 'a tokenizer'} over {other.alphabet}, {owner.label} {owner.kind or 'a tokenizer'} over "
                f"{owner.alphabet}; cuvee tokens gives a model another's tokenizer"
            )
    return frozenset(new)


def _is_related(one: Tokenizer, other: Tokenizer) -> bool:
    """True when pieces of one mean something in the other."""
    return one.content is not None and (one.kind, one.alphabet) == (other.kind, other.alphabet)


def _extended(
    content: Mapping[str, Any], vocabulary: Vocabulary, pieces: frozenset[str], others: Mapping[int, Tokenizer]
) -> dict[str, Any]:
    """Return tokenizer.json with the new tokens."""
    kin = [one.content["model"] for one in others.values() if one.content and _is_related(one, vocabulary.owner)]
    entries = list(content.get("added_tokens") or [])
    entries += [
        {"id": vocabulary.ids[token], **_added(vocabulary, token).entry()}
        for token in vocabulary.appended
        if token not in pieces
    ]
    extended = {**content, "added_tokens": sorted(entries, key=lambda entry: entry["id"])}
    if not pieces:
        return extended
    model = dict(content["model"])
    # The library numbers added tokens after the model's pieces unless the model has them, so it gets them all.
    within = pieces | {entry["content"] for entry in entries}
    if isinstance(model["vocab"], list):
        model["vocab"] = _scored(model["vocab"], vocabulary, kin)
    else:
        fresh = {token: vocabulary.ids[token] for token in within if token not in model["vocab"]}
        model["vocab"] = {**model["vocab"], **dict(sorted(fresh.items(), key=lambda pair: pair[1]))}
    if model.get("merges") is not None:
        model["merges"] = _merges(model, vocabulary.ids, pieces, kin)
    return {**extended, "model": model}


def _scored(listed: list[Any], vocabulary: Vocabulary, kin: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return a Unigram model's pieces with the new ones at their ids: each has the score that it has at home.

    What no kindred model has (added tokens, pieces in another alphabet) is so unlikely that it is never chosen.
    """
    scores = {pair[0]: pair[1] for model in reversed(kin) for pair in model["vocab"]}
    never = 2 * min(pair[1] for pair in listed) - 100
    strings = {number: token for token, number in vocabulary.ids.items()}
    of = {token: scores.get(token, never) if token not in vocabulary.owner.added else never for token in vocabulary.ids}
    fresh = [strings[number] for number in range(len(listed), vocabulary.size)]
    return [*listed, *([token, of[token]] for token in fresh)]


def _merges(
    model: Mapping[str, Any], ids: Mapping[str, int], pieces: frozenset[str], kin: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Return the merges with those appended that lead to new pieces, in the order of their owners."""
    listed = list(model["merges"])
    in_pairs = not listed or isinstance(listed[0], list)
    known = {_pair(merge) for merge in listed}
    prefix = model.get("continuing_subword_prefix") or ""
    for other in kin:
        for merge in other.get("merges") or ():
            left, right = _pair(merge)
            product = left + right.removeprefix(prefix)
            if product in pieces and left in ids and right in ids and (left, right) not in known:
                known.add((left, right))
                listed.append([left, right] if in_pairs else f"{left} {right}")
    return listed


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
    return left, right


def check_ids(text: str, ids: Mapping[str, int], where: str) -> None:
    """Load a rebuilt tokenizer.json, where the library is installed, and hold its ids against those it should have.

    Raises:
        CheckpointError: it cannot be loaded, or a token has another id.
    """
    right = "tokenizer: {source: base}, or cuvee tokens"
    try:
        loaded = load_tokenizer(text, what="the rebuilt tokenizer", where=where, right=right)
    except ImportError:
        return
    found = loaded.get_vocab(with_added_tokens=True)
    wrong = next((token for token, number in ids.items() if found.get(token) != number), None)
    if wrong is not None:
        raise CheckpointError(
            f"the rebuilt tokenizer gives token {wrong!r} the id {found.get(wrong)}, not {ids[wrong]}",
            where=where,
            right=right,
        )


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
