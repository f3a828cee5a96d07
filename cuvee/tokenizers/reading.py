"""Reading a tokenizer: which strings have which ids, which are added tokens, and how it writes a space.

Only files are read: no library builds the tokenizer, and no code of a model is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuvee.checkpoints.sidecars import Sidecar, find_sidecars
from cuvee.errors import CheckpointError, printable
from cuvee.tokenizers.sentencepiece_model import read_pieces

__all__ = ["TOKENIZER_FILES", "AddedToken", "Tokenizer", "is_tokenizer_file", "read_tokenizer"]

MAX_TOKENIZER_BYTES = 256 << 20
MAX_CONFIG_BYTES = 64 << 20
_LARGEST_ID = 1 << 24
_AGAIN = "fetch the file again"
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")

TOKENIZER_FILES = frozenset(
    ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
    + ("merges.txt", "vocab.txt", "tekken.json", "tokenizer.model.v3", *_SENTENCEPIECE, *_TEMPLATES)
)
"""The files that make a tokenizer, by name; `*.tiktoken` and `tokenization_*.py` belong to them too."""


def is_tokenizer_file(name: str) -> bool:
    """True for a file that is part of a tokenizer."""
    return (
        name in TOKENIZER_FILES
        or name.endswith(".tiktoken")
        or (name.startswith("tokenization_") and name.endswith(".py"))
        or name.startswith("additional_chat_templates/")
    )


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before the model's own segmentation.

    Attributes:
        content: the string.
        special: left away when a text is decoded without special tokens.
        lstrip, rstrip: spaces on that side belong to it.
        single_word: it is not found inside of words.
        normalized: it is looked for in the normalised text.
    """

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @classmethod
    def of(cls, content: str, entry: Mapping[str, Any]) -> AddedToken:
        """Return the token that an entry of `added_tokens` or `added_tokens_decoder` describes."""
        flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
        return cls(content, *(bool(entry.get(flag)) for flag in flags))

    def entry(self) -> dict[str, Any]:
        """Return the flags as these files write them."""
        return {
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized,
            "special": self.special,
        }


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """What is known of a model's tokenizer.

    Attributes:
        label: of the model.
        vocabulary: every string's id, added tokens too.
        added: the added tokens, by string.
        kind: "BPE", "Unigram", "WordPiece", "WordLevel", or "" where the files do not say.
        alphabet: how strings are spelt: "bytes" (Ġ is a space), "spaces" (▁ is a space), or "plain".
        content: tokenizer.json, None where there is none.
        config: tokenizer_config.json, {} where there is none.
        roles: the special tokens: {"bos_token": "<s>", …}.
        files: its files, by name.
    """

    label: str
    vocabulary: Mapping[str, int]
    added: Mapping[str, AddedToken]
    kind: str
    alphabet: str
    content: dict[str, Any] | None
    config: dict[str, Any] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Sidecar] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """What errors call its place."""
        return next((one.where for one in self.files.values()), self.label)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.vocabulary.values()) + 1

    @property
    def chat_template(self) -> str | None:
        """The template for chats, as jinja or as the config holds it; of several the default."""
        if "chat_template.jinja" in self.files:
            return _text(self.files["chat_template.jinja"])
        held = self.config.get("chat_template")
        if held is None and "chat_template.json" in self.files:
            held = self.files["chat_template.json"].read_object(MAX_CONFIG_BYTES).get("chat_template")
        if isinstance(held, list):
            held = {one.get("name"): one.get("template") for one in held if isinstance(one, Mapping)}
        if isinstance(held, Mapping):
            held = held.get("default")
        return held if isinstance(held, str) and held.strip() else None


def read_tokenizer(beside: Path | Iterable[Sidecar], label: str) -> Tokenizer | None:
    """Read the tokenizer among the files of a folder, None where there is none.

    `tokenizer.json` says most; else a SentencePiece model, `vocab.json`, or `vocab.txt`. What `added_tokens.json` and
    `tokenizer_config.json` add counts in every case.

    Args:
        beside: the folder, or the files beside a model's weights.

    Raises:
        CheckpointError: a file is damaged, or an id is no number.
    """
    listed = find_sidecars(beside)[0] if isinstance(beside, Path) else beside
    files = {one.name: one for one in listed if is_tokenizer_file(one.name)}
    vocabulary: dict[str, int] = {}
    added: dict[str, AddedToken] = {}
    content: dict[str, Any] | None = None
    kind, alphabet = "", "plain"
    if "tokenizer.json" in files:
        file = files["tokenizer.json"]
        content = file.read_object(MAX_TOKENIZER_BYTES)
        kind, alphabet = _read_json(content, file.where, vocabulary, added)
    elif model := next((name for name in _SENTENCEPIECE if name in files), None):
        file, kind, alphabet = files[model], "SentencePiece", "spaces"
        for number, piece in enumerate(read_pieces(file.read(MAX_TOKENIZER_BYTES), file.where)):
            vocabulary[piece.text] = number
            if piece.is_special or piece.is_user_defined:
                added[piece.text] = AddedToken(piece.text, special=piece.is_special)
    elif "vocab.json" in files:
        file = files["vocab.json"]
        kind, alphabet = ("BPE", "bytes") if "merges.txt" in files else ("", "plain")
        _add(vocabulary, file.read_object(MAX_TOKENIZER_BYTES).items(), file.where)
    elif "vocab.txt" in files:
        file, kind = files["vocab.txt"], "WordPiece"
        vocabulary |= {line.rstrip("\r"): number for number, line in enumerate(_text(file).split("\n")) if line}
    else:
        return None
    config = _optional(files, "tokenizer_config.json")
    _read_beside(files, config, vocabulary, added)
    if not vocabulary:
        raise CheckpointError("the tokenizer has no tokens", where=file.where, right="fetch its files again")
    largest = max(vocabulary.values())
    if largest > 4 * len(vocabulary) + (1 << 16):
        raise CheckpointError(
            f"the tokenizer has {len(vocabulary)} tokens, and ids up to {largest}", where=file.where, right=_AGAIN
        )
    roles = _roles(_optional(files, "special_tokens_map.json"), config, vocabulary)
    return Tokenizer(label, vocabulary, added, kind, alphabet, content, config, roles, files)


def _read_json(
    content: Mapping[str, Any], where: str, vocabulary: dict[str, int], added: dict[str, AddedToken]
) -> tuple[str, str]:
    """Read tokenizer.json; returns kind and alphabet."""
    model = content.get("model")
    held = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(held, Mapping):
        _add(vocabulary, held.items(), where)
    elif isinstance(held, list):
        _add(vocabulary, ((_scored(pair, where), n) for n, pair in enumerate(held)), where)
    else:
        raise CheckpointError("tokenizer.json has no vocabulary", where=where, right=_AGAIN)
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise CheckpointError("added_tokens is no list of tokens", where=where, right=_AGAIN)
    for entry in entries:
        _add(vocabulary, [(entry.get("content"), entry.get("id"))], where)
        added[entry["content"]] = AddedToken.of(entry["content"], entry)
    assert isinstance(model, Mapping)
    _check_merges(model.get("merges"), where)
    kind = model.get("type")
    kind = kind if isinstance(kind, str) else _kind_of(model)
    if (kind == "Unigram") is not isinstance(held, list):
        raise CheckpointError(f"a vocabulary of another kind than {printable(kind)[:80]}", where=where, right=_AGAIN)
    return kind, _alphabet(content)


def _scored(pair: Any, where: str) -> str:
    """Return a piece of a Unigram model, which has a score."""
    is_pair = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
    if not is_pair or isinstance(pair[1], bool) or not isinstance(pair[1], int | float):
        raise CheckpointError(f"{printable(str(pair))[:80]} is no piece with a score", where=where, right=_AGAIN)
    return pair[0]


def _check_merges(merges: Any, where: str) -> None:
    """Hold merges against their form: "left right", or [left, right]."""
    for merge in merges if isinstance(merges, list) else () if merges is None else [merges]:
        parts = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(f"{printable(str(merge))[:80]} is no merge of two pieces", where=where, right=_AGAIN)


def _kind_of(model: Mapping[str, Any]) -> str:
    """Tell the kind of a model whose file is of a time when it was not written."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _alphabet(content: Mapping[str, Any]) -> str:
    parts = [content.get(name) for name in ("pre_tokenizer", "decoder", "normalizer")]
    types: set[str] = set()
    patterns: set[str] = set()
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            types.add(str(part.get("type")))
            patterns.add(str(part.get("content")))
            for key in ("pretokenizers", "decoders", "normalizers"):
                parts.extend(part.get(key) or () if isinstance(part.get(key), list) else ())
    if "ByteLevel" in types:
        return "bytes"
    return "spaces" if "Metaspace" in types or "▁" in patterns or "Replace" in types else "plain"


def _add(vocabulary: dict[str, int], pairs: Iterable[tuple[Any, Any]], where: str) -> None:
    for token, number in pairs:
        if not isinstance(token, str) or type(number) is not int or not 0 <= number < _LARGEST_ID:
            raise CheckpointError(
                f"token {printable(str(token))[:80]!r} has the id {printable(str(number))[:40]}",
                where=where,
                right=f"fetch the file again; an id is a whole number below {_LARGEST_ID}",
            )
        vocabulary[token] = number


def _read_beside(
    files: Mapping[str, Sidecar],
    config: Mapping[str, Any],
    vocabulary: dict[str, int],
    added: dict[str, AddedToken],
) -> None:
    """Add what stands in added_tokens.json and tokenizer_config.json alone."""
    beside = _optional(files, "added_tokens.json")
    fresh = [(token, number) for token, number in beside.items() if token not in vocabulary]
    _add(vocabulary, fresh, "added_tokens.json")
    added.update({token: added.get(token, AddedToken(token)) for token in beside})
    decoder = config.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, Mapping) else ():
        token = entry.get("content") if isinstance(entry, Mapping) else None
        if isinstance(token, str) and token not in vocabulary:
            spoken = int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else number
            _add(vocabulary, [(token, spoken)], "tokenizer_config.json")
        if isinstance(token, str) and token not in added:
            added[token] = AddedToken.of(token, entry)


_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def _roles(special: Mapping[str, Any], config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, str]:
    found: dict[str, str] = {}
    for held in (special, config):
        for role in _ROLES:
            value = held.get(role)
            token = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(token, str) and token in vocabulary:
                found[role] = token
    return found


def _optional(files: Mapping[str, Sidecar], name: str) -> dict[str, Any]:
    return files[name].read_object(MAX_CONFIG_BYTES) if name in files else {}


def _text(file: Sidecar) -> str:
    try:
        return file.read(MAX_TOKENIZER_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError("the file is not UTF-8", where=file.where, right="fetch the file again") from None
