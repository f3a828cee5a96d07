"""Reading tokenizers: from each form of file, and hostile ones."""

from __future__ import annotations

import json
import struct

import pytest
from token_models import SPECIAL, bpe, unigram, write_tokenizer

from cuvee.errors import CheckpointError
from cuvee.tokenizers.reading import read_tokenizer
from cuvee.tokenizers.sentencepiece_model import read_pieces


def field(number: int, kind: int, value: bytes) -> bytes:
    return bytes([number << 3 | kind]) + (bytes([len(value)]) if kind == 2 else b"") + value


def sentencepiece(*pieces: tuple[str, float, int]) -> bytes:
    parts = [
        field(1, 2, t.encode()) + field(2, 5, struct.pack("<f", s)) + field(3, 0, bytes([k])) for t, s, k in pieces
    ]
    return b"".join(field(1, 2, part) for part in parts) + field(2, 2, b"trainer spec, which is passed over")


PIECES = (("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁the", -1.5, 1), ("<user>", 0.0, 4))


def test_tokenizer_json_gives_pieces_added_tokens_and_alphabet(tmp_path):
    write_tokenizer(tmp_path, bpe(["a", "b", "Ġa"], ["Ġ a"], {"</s>": 3, "a": 0}))
    found = read_tokenizer(tmp_path, "m")
    assert found is not None
    assert found.vocabulary == {"a": 0, "b": 1, "Ġa": 2, "</s>": 3}
    assert (found.kind, found.alphabet, found.size) == ("BPE", "bytes", 4)
    assert found.added["</s>"].special
    assert found.roles == {"eos_token": "</s>"}


def test_unigram_pieces_are_numbered_in_their_order(tmp_path):
    write_tokenizer(tmp_path, unigram([("<unk>", 0.0), ("▁a", -1.0)]))
    found = read_tokenizer(tmp_path, "m")
    assert found is not None and found.vocabulary == {"<unk>": 0, "▁a": 1} and found.alphabet == "spaces"


def test_a_sentencepiece_model_is_read_without_its_library(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(*PIECES))
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 4}')
    found = read_tokenizer(tmp_path, "m")
    assert found is not None
    assert found.vocabulary == {"<unk>": 0, "<s>": 1, "▁the": 2, "<user>": 3, "<|im_start|>": 4}
    assert set(found.added) == {"<unk>", "<s>", "<user>", "<|im_start|>"}
    assert [piece.score for piece in read_pieces(sentencepiece(*PIECES), "here")] == [0.0, 0.0, -1.5, 0.0]


@pytest.mark.parametrize("cut", [1, 7, 20, 33])
def test_a_cut_sentencepiece_model_is_refused(cut):
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        read_pieces(sentencepiece(*PIECES)[:cut], "here")


def test_vocab_json_and_vocab_txt_are_read(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    found = read_tokenizer(tmp_path, "m")
    assert found is not None and found.vocabulary == {"a": 0, "b": 1} and found.kind == "BPE"
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nword\n##ing\n")
    found = read_tokenizer(tmp_path, "m")
    assert found is not None and found.vocabulary == {"[PAD]": 0, "[UNK]": 1, "word": 2, "##ing": 3}


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert read_tokenizer(tmp_path, "m") is None


def test_tokens_of_the_config_alone_count(tmp_path):
    write_tokenizer(tmp_path, bpe(["a"]), {"added_tokens_decoder": {"1": {"content": "<x>", **SPECIAL}}})
    found = read_tokenizer(tmp_path, "m")
    assert found is not None and found.vocabulary["<x>"] == 1 and found.added["<x>"].special


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "not an object"),
        ("{}", "no vocabulary"),
        ('{"model": {"vocab": {"a": -1}}}', "has the id -1"),
        ('{"model": {"vocab": {"a": 1e9}}}', "has the id"),
        ('{"model": {"vocab": {"a": true}}}', "has the id True"),
        ('{"model": {"vocab": {"a": 99999999999}}}', "has the id 99999999999"),
        ('{"model": {"vocab": {}}}', "no tokens"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": 5, "id": 0}]}', "has the id"),
        ("{", "not JSON"),
    ],
)
def test_hostile_files_are_refused_in_words(tmp_path, content, said):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        read_tokenizer(tmp_path, "m")


def test_the_template_comes_from_where_it_is_kept(tmp_path):
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    for config, expected in (({"chat_template": "C"}, "C"), ({"chat_template": named}, "D"), ({}, None)):
        write_tokenizer(tmp_path, bpe(["a"]), config)
        found = read_tokenizer(tmp_path, "m")
        assert found is not None and found.chat_template == expected
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert read_tokenizer(tmp_path, "m").chat_template == "J"
    (tmp_path / "chat_template.jinja").write_text("X")
    assert read_tokenizer(tmp_path, "m").chat_template == "X"
