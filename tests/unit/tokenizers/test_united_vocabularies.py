"""United vocabularies: ids, each model's rows, and where missing rows come from."""

from __future__ import annotations

import numpy as np

from cuvee.tokenizers.filling import Forced, row_tables
from cuvee.tokenizers.reading import AddedToken, Tokenizer
from cuvee.tokenizers.vocabulary import Member, build_vocabulary, unite


def tokenizer(label: str, tokens: dict[str, int], *added: str) -> Tokenizer:
    flags = {token: AddedToken(token, special=True) for token in added}
    return Tokenizer(label, tokens, flags, "BPE", "bytes", None)


def member(label: str, tokens: dict[str, int], *added: str, rows: int | None = None) -> Member:
    return Member(label, tokenizer(label, tokens, *added), rows or max(tokens.values()) + 1)


def entries(table) -> list[list[tuple[int, int, float]]]:
    """Return (source, row, coefficient) of each row's entries."""
    spans = zip(table.starts[:-1], table.starts[1:], strict=True)
    return [
        list(zip(table.sources[a:b].tolist(), table.rows[a:b].tolist(), table.coefficients[a:b].tolist(), strict=True))
        for a, b in spans
    ]


BASE = member("base", {"a": 0, "b": 1, "</s>": 2}, "</s>")
ONE = member("one", {"b": 0, "c": 1, "</s>": 2, "<x>": 3}, "</s>", "<x>")
TWO = member("two", {"a": 0, "c": 1, "d": 2, "</s>": 3}, "</s>")


def united(*members: Member, **options):
    numbered = dict(enumerate(members))
    tokens = unite(members[0].tokenizer, numbered)
    return build_vocabulary(tokens, members[0].tokenizer, numbered, **options)


def tables(vocabulary, members, base=0, rules=None):
    labels = {number: one.label for number, one in enumerate(members)}
    return row_tables(vocabulary, vocabulary.maps, base, rules or {}, labels)


def test_new_ids_are_pieces_by_model_and_id_then_added_tokens():
    vocabulary = united(BASE, ONE, TWO)
    assert vocabulary.ids == {"a": 0, "b": 1, "</s>": 2, "c": 3, "d": 4, "<x>": 5}
    assert vocabulary.appended == {"c": 1, "d": 2, "<x>": 1}
    assert list(vocabulary.added) == ["<x>"]
    assert vocabulary.maps[1].tolist() == [-1, 0, 2, 1, -1, 3]
    assert vocabulary.rows == 6


def test_a_missing_row_is_the_only_owners_then_the_bases_then_the_mean():
    members = (BASE, ONE, TWO)
    vocabulary = united(*members)
    filling = tables(vocabulary, members)
    own = [(1, 0, 1.0)]
    mean = [(1, 1, 0.5), (2, 1, 0.5)]  # c: one and two have it, the base does not
    assert entries(filling.tables[1]) == [
        [(0, 0, 1.0)],
        own,
        [(1, 2, 1.0)],
        [(1, 1, 1.0)],
        [(2, 2, 1.0)],
        [(1, 3, 1.0)],
    ]
    assert entries(filling.tables[0])[3] == mean
    assert filling.said[0] == {
        "the mean of one, two": 1,
        "from two, which alone has it": 1,
        "from one, which alone has it": 1,
    }
    without_base = tables(vocabulary, members, base=None)
    assert entries(without_base.tables[1])[0] == [(0, 0, 0.5), (2, 0, 0.5)]  # a: base and two have it


def test_rules_go_before_the_default_and_force_before_the_models_own_row():
    members = (BASE, ONE, TWO)
    vocabulary = united(*members)
    rules = {"a": Forced(2, 3, force=True), "c": Forced(None), "d": Forced(0, 1)}
    filling = tables(vocabulary, members, rules=rules)
    assert all(entries(filling.tables[k])[0] == [(2, 3, 1.0)] for k in range(3))
    assert entries(filling.tables[0])[3] == [] and entries(filling.tables[1])[3] == [(1, 1, 1.0)]
    assert entries(filling.tables[0])[4] == [(0, 1, 1.0)] and entries(filling.tables[2])[4] == [(2, 2, 1.0)]
    assert filling.said[0] == {
        "from two, as asked": 1, "zero, as asked": 1, "from base, as asked": 1, "from one, which alone has it": 1,
    }  # fmt: skip


def test_padding_is_kept_from_the_longest_model_with_these_ids():
    padded = member("base", dict(BASE.tokenizer.vocabulary), "</s>", rows=6)
    longer = member("long", dict(BASE.tokenizer.vocabulary), "</s>", rows=8)
    other = member("other", {"b": 0, "a": 1, "</s>": 2}, "</s>", rows=20)
    vocabulary = united(padded, longer, other)
    assert vocabulary.rows == 8
    assert vocabulary.maps[0].tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert vocabulary.maps[2].tolist() == [1, 0, 2, -1, -1, -1, -1, -1]
    filling = tables(vocabulary, (padded, longer, other))
    assert entries(filling.tables[0])[6:] == [[(1, 6, 1.0)], [(1, 7, 1.0)]]
    assert entries(filling.tables[2])[3:] == [[(0, n, 1.0)] for n in (3, 4, 5)] + [[(1, n, 1.0)] for n in (6, 7)]


def test_new_tokens_take_the_places_of_padding_and_never_its_rows():
    padded = member("base", dict(BASE.tokenizer.vocabulary), "</s>", rows=6)
    vocabulary = united(padded, ONE)
    assert vocabulary.rows == 6
    assert vocabulary.maps[0].tolist() == [0, 1, 2, -1, -1, 5]
    assert vocabulary.maps[1].tolist() == [-1, 0, 2, 1, 3, -1]


def test_padding_that_nobody_has_is_the_mean_of_each_models_own_rows():
    vocabulary = united(BASE, pad_to_multiple_of=4)
    assert vocabulary.rows == 4
    assert entries(tables(vocabulary, (BASE,)).tables[0])[3] == [(1, 0, 1.0)]  # source 1: the mean


def test_mergekit_keeps_no_padding():
    padded = member("base", dict(BASE.tokenizer.vocabulary), "</s>", rows=6)
    assert united(padded, keep_padding=False).rows == 3
    assert united(padded, keep_padding=False, pad_to_multiple_of=4).rows == 4


def test_a_token_beyond_the_embedding_has_no_row_and_is_noted():
    short = member("short", {"a": 0, "b": 1, "c": 2, "</s>": 3}, rows=3)
    vocabulary = united(BASE, short)
    assert "</s>" in vocabulary.ids and vocabulary.maps[1][vocabulary.ids["</s>"]] == -1
    assert any("beyond the 3 rows" in note for note in vocabulary.notes)


def test_the_first_definition_of_an_added_token_counts():
    other = Tokenizer("other", {"<x>": 0}, {"<x>": AddedToken("<x>", lstrip=True)}, "BPE", "bytes", None)
    vocabulary = united(BASE, ONE, Member("other", other, 1))
    assert vocabulary.added["<x>"] == ONE.tokenizer.added["<x>"]
    assert any("defined differently in other" in note for note in vocabulary.notes)


def test_equal_vocabularies_are_left_alone():
    vocabulary = united(BASE, BASE)
    assert not vocabulary.appended
    assert all(np.array_equal(rows, np.arange(3)) for rows in vocabulary.maps.values())
