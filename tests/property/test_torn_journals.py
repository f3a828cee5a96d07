"""The journal: damage anywhere leaves a true prefix of what was written, never an invented record."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.checkpoints.journal import Journal, read_journal

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
records = st.lists(st.dictionaries(st.text(max_size=6), values, max_size=4), max_size=5)


def written(path: Path, entries) -> bytes:
    journal = Journal(path)
    for entry in entries:
        journal.append(entry)
    journal.close()
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(records)
def test_what_was_appended_is_read_back(entries):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        written(path, entries)
        assert read_journal(path) == entries


@settings(max_examples=60, deadline=None)
@given(records, st.data())
def test_a_journal_cut_at_any_byte_is_a_prefix(entries, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = written(path, entries)
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        found = read_journal(path)
        assert found == entries[: content[:cut].count(b"\n")]


@settings(max_examples=150, deadline=None)
@given(records.filter(bool), st.data())
def test_a_journal_with_any_byte_changed_is_a_prefix(entries, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = bytearray(written(path, entries))
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        found = read_journal(path)
        intact = bytes(content[:at]).count(b"\n")
        assert found == entries[: len(found)]
        assert intact <= len(found) <= len(entries)
        assert len(found) < len(entries)  # the record that was hit is gone


@settings(max_examples=40, deadline=None)
@given(records, st.binary(max_size=80))
def test_garbage_after_a_journal_adds_nothing(entries, garbage):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = written(path, entries)
        path.write_bytes(content + garbage)
        assert read_journal(path) == entries


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(records, records, st.data())
def test_what_is_appended_after_a_torn_line_is_read_back(entries, more, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = written(path, entries)
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        written(path, more)
        assert read_journal(path) == entries[: content[:cut].count(b"\n")] + more


def test_every_byte_of_a_small_journal_matters(tmp_path):
    entries = [{"plan": "é"}, {"tensor": "w", "output": "00"}, {"tensor": "v"}]
    path = tmp_path / "journal"
    content = written(path, entries)
    for at in range(len(content)):
        for flip in (1, 0x80, 0x20):
            changed = bytearray(content)
            changed[at] ^= flip
            path.write_bytes(changed)
            found = read_journal(path)
            assert found == entries[: len(found)] and len(found) == bytes(content[:at]).count(b"\n")


def test_no_journal_is_an_empty_one(tmp_path):
    assert read_journal(tmp_path / "none") == []
