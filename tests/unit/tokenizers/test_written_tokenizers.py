"""Written tokenizers: a union segments text as it should, by the tokenizers library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from token_models import bpe, tokens_of, unigram, write_tokenizer
from tokenizers import Tokenizer as Library

from cuvee.errors import CheckpointError
from cuvee.tokenizers.reading import read_tokenizer
from cuvee.tokenizers.vocabulary import Member, build_vocabulary, unite
from cuvee.tokenizers.writing import check_ids, tokenizer_files

LETTERS = ["a", "b", "c", "d", "Ġ"]
BASE = bpe([*LETTERS, "ab", "Ġab"], ["a b", "Ġ ab"], {"</s>": 7})
EXTENDED = bpe([*LETTERS, "ab", "Ġab", "cd", "abcd"], ["a b", "Ġ ab", "c d", "ab cd"], {"</s>": 9, "<|x|>": 10})
TEXT = "ab abcd cd d abab<|x|>cab</s>"


class Files(NamedTuple):
    copied: dict[str, Path]
    written: dict[str, bytes]
    notes: list[str]


def united(tmp_path, *contents, **options):
    members = {}
    for number, content in enumerate(contents):
        folder = tmp_path / f"m{number}"
        folder.mkdir(exist_ok=True)
        write_tokenizer(folder, content)
        tokenizer = read_tokenizer(folder, f"m{number}")
        members[number] = Member(f"m{number}", tokenizer, tokenizer.size)
    owner = members[0].tokenizer
    vocabulary = build_vocabulary(unite(owner, members), owner, members)
    files, notes = tokenizer_files(vocabulary, {n: one.tokenizer for n, one in members.items()}, **options)
    return vocabulary, Files(
        {one.name: one.path for one in files if one.path},
        {one.name: one.content for one in files if not one.path},
        notes,
    )


def loaded(files) -> Library:
    return Library.from_str(files.written["tokenizer.json"].decode())


def test_a_base_and_its_extension_segment_as_the_extension(tmp_path):
    vocabulary, files = united(tmp_path, BASE, EXTENDED)
    ours, theirs = loaded(files), Library.from_str(json.dumps(EXTENDED))
    assert ours.get_vocab() == dict(vocabulary.ids)
    assert ours.encode(TEXT).tokens == theirs.encode(TEXT).tokens
    assert ours.decode(ours.encode(TEXT).ids, skip_special_tokens=False) == TEXT


def test_a_base_keeps_its_ids_and_what_it_segments_without_new_pieces(tmp_path):
    vocabulary, files = united(tmp_path, BASE, EXTENDED)
    assert vocabulary.ids.items() >= tokens_of(BASE).items()
    before = Library.from_str(json.dumps(BASE))
    assert loaded(files).encode("ab ab b</s>").ids == before.encode("ab ab b</s>").ids


def test_merges_are_written_as_the_owner_writes_them(tmp_path):
    pairs = {**BASE, "model": {**BASE["model"], "merges": [["a", "b"], ["Ġ", "ab"]]}}
    _, files = united(tmp_path, pairs, EXTENDED)
    assert json.loads(files.written["tokenizer.json"])["model"]["merges"][-1] == ["ab", "cd"]
    _, files = united(tmp_path, BASE, EXTENDED)
    assert json.loads(files.written["tokenizer.json"])["model"]["merges"][-1] == "ab cd"


def test_mergekits_union_adds_pieces_as_added_tokens(tmp_path):
    vocabulary, files = united(tmp_path, BASE, EXTENDED, only_added=True)
    written = json.loads(files.written["tokenizer.json"])
    assert written["model"] == BASE["model"]
    assert {entry["content"] for entry in written["added_tokens"]} == {"</s>", "cd", "abcd", "<|x|>"}
    assert loaded(files).get_vocab() == dict(vocabulary.ids)


def test_unigram_pieces_bring_their_scores(tmp_path):
    base = unigram([("<unk>", 0.0), ("▁", -3.0), ("a", -3.0), ("b", -3.0)], {"</s>": 4})
    wide = unigram([("<unk>", 0.0), ("▁", -3.0), ("a", -3.0), ("b", -3.0), ("▁ab", -1.0)], {"</s>": 5, "<x>": 6})
    vocabulary, files = united(tmp_path, base, wide)
    ours = loaded(files)
    assert ours.get_vocab() == dict(vocabulary.ids)
    assert ours.encode("ab<x>").tokens == Library.from_str(json.dumps(wide)).encode("ab<x>").tokens == ["▁ab", "<x>"]


def test_a_tokenizer_that_nothing_is_added_to_is_copied(tmp_path):
    _, files = united(tmp_path, BASE, BASE)
    assert set(files.copied) == {"tokenizer.json", "tokenizer_config.json"} and not files.written


def test_a_sentencepiece_model_is_copied_and_what_is_added_stands_beside_it(tmp_path):
    folder = tmp_path / "m0"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"kept as it is")
    _, files = united(tmp_path, BASE, EXTENDED)
    assert files.copied["tokenizer.model"] == folder / "tokenizer.model"
    beside = json.loads(files.written["added_tokens.json"])
    assert beside == {"</s>": 7, "cd": 8, "abcd": 9, "<|x|>": 10}


def test_files_that_new_pieces_make_untrue_are_left_out_with_a_word(tmp_path):
    (tmp_path / "m0").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "m0" / name).write_text("{}")
    _, files = united(tmp_path, BASE, EXTENDED)
    assert {"vocab.json", "merges.txt"}.isdisjoint({*files.copied, *files.written})
    assert len(files.notes) == 2


def test_a_tokenizer_with_other_ids_than_it_should_have_is_refused():
    with pytest.raises(CheckpointError, match="gives token 'z' the id None, not 9"):
        check_ids(json.dumps(BASE), {**tokens_of(BASE), "z": 9}, "here")
    with pytest.raises(CheckpointError, match="does not load"):
        check_ids('{"model": {}}', {}, "here")


def test_the_same_files_come_out_every_time(tmp_path):
    assert united(tmp_path, BASE, EXTENDED)[1].written == united(tmp_path, BASE, EXTENDED)[1].written
