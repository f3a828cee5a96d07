"""United vocabularies: laws for any models, any order, any padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.tokenizers.filling import row_tables
from cuvee.tokenizers.reading import AddedToken, Tokenizer
from cuvee.tokenizers.vocabulary import Member, build_vocabulary, unite

WORDS = [f"t{n}" for n in range(9)] + ["<x>", "<y>", "</s>"]


@st.composite
def members(draw):
    """Return one to four models with shuffled vocabularies, some padded, some with tokens beyond their rows."""
    found = {}
    for number in range(draw(st.integers(1, 4))):
        words = draw(st.lists(st.sampled_from(WORDS), min_size=1, unique=True))
        tokens = {word: n for n, word in enumerate(words)}
        added = {word: AddedToken(word, special=True) for word in words if word.startswith("<")}
        tokenizer = Tokenizer(f"m{number}", tokens, added, "BPE", "bytes", None)
        found[number] = Member(f"m{number}", tokenizer, max(1, len(words) + draw(st.integers(-1, 4))))
    return found


def dense(table, sources: int) -> list[dict[tuple[int, int], float]]:
    rows = []
    for begin, end in zip(table.starts[:-1], table.starts[1:], strict=True):
        entries = zip(table.sources[begin:end], table.rows[begin:end], table.coefficients[begin:end], strict=True)
        rows.append({(int(source), int(row)): float(c) for source, row, c in entries})
        assert all(source < 2 * sources for source, _ in rows[-1])
    return rows


@settings(max_examples=200, deadline=None)
@given(members(), st.sampled_from([None, 0]), st.sampled_from([None, 4, 8]), st.booleans())
def test_every_model_has_its_own_row_of_each_of_its_tokens_and_some_row_of_all(found, base, pad, keep):
    tokens = unite(found[0].tokenizer, found)
    vocabulary = build_vocabulary(tokens, found[0].tokenizer, found, pad_to_multiple_of=pad, keep_padding=keep)
    assert len(set(vocabulary.ids.values())) == len(vocabulary.ids)
    assert vocabulary.ids.items() >= found[0].tokenizer.vocabulary.items()
    held = {w for one in found.values() for w, n in one.tokenizer.vocabulary.items() if n < one.rows}
    assert set(vocabulary.ids) == held | set(found[0].tokenizer.vocabulary)
    assert vocabulary.rows >= vocabulary.size and (not pad or vocabulary.rows % pad == 0)
    filling = row_tables(vocabulary, vocabulary.maps, base, {}, {n: one.label for n, one in found.items()})
    for number, one in found.items():
        rows = dense(filling.tables[number], len(found))
        assert len(rows) == vocabulary.rows
        for word, new in vocabulary.ids.items():
            old = one.tokenizer.vocabulary.get(word, -1)
            if 0 <= old < one.rows:
                assert rows[new] == {(number, old): 1.0}
            elif word in held:
                assert abs(sum(rows[new].values()) - 1) < 1e-12
                assert all(found[source].tokenizer.vocabulary[word] == row for source, row in rows[new])
            else:
                assert rows[new] == {}
        for new in np.flatnonzero(vocabulary.padded):
            (entry,) = rows[new].items()
            assert entry[1] == 1.0  # one row, or the model's own mean: never a mix of models


@settings(max_examples=50, deadline=None)
@given(members())
def test_one_model_united_with_itself_is_itself(found):
    one = found[0]
    vocabulary = build_vocabulary(unite(one.tokenizer, {0: one, 1: one}), one.tokenizer, {0: one, 1: one})
    assert dict(vocabulary.ids) == dict(one.tokenizer.vocabulary) and not vocabulary.appended
    size = min(one.rows, vocabulary.rows)
    assert np.array_equal(vocabulary.maps[0][:size], np.arange(size))
