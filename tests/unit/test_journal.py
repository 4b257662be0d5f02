"""What is remembered of invalidations: by table, bounded, and without what was abandoned."""

from __future__ import annotations

import gc

import pytest

from sqlmodel_cache import _journal, _keys
from sqlmodel_cache._effects import Keys
from sqlmodel_cache._journal import MAX_IN_FLIGHT, MAX_KEYS, MAX_NOTES, Journal, Touched


def rows(count: int, table: str = "hero") -> Keys:
    """Return the keys of so many rows."""
    return Keys(tuple(_keys.entry("p", "db", table, str(pk)).row for pk in range(count)), ())


def test_a_note_names_rows_and_tables() -> None:
    """By table, with its schema, whatever the database and the prefix are called."""
    journal = Journal()
    name = _keys.table_name("a.b", "hero/{x}")
    keys = Keys((_keys.entry("p", "n%2Fm", name, "1:x").row,), _keys.table_keys("p", "db", "team"))
    journal.note(keys, "commit")
    [note] = journal.notes()
    assert (note.number, note.why, note.rows, note.shards) == (1, "commit", 1, _keys.SHARDS)
    assert note.touched() == [Touched("team", (), True), Touched(name, ("1:x",), False)]


def test_notes_are_bounded() -> None:
    """The latest stay, and of a large commit some keys and their number."""
    journal = Journal()
    for _ in range(MAX_NOTES + 5):
        journal.note(rows(10 * MAX_KEYS), "commit")
    assert [note.number for note in journal.notes()] == list(range(MAX_NOTES + 5, 5, -1))
    assert {(len(note.keys.rows), note.rows) for note in journal.notes()} == {(MAX_KEYS, 10 * MAX_KEYS)}


def test_commits_in_flight_end() -> None:
    """Two of the same rows are two."""
    journal = Journal()
    first, second = rows(2), rows(2)
    journal.began(first)
    journal.began(second)
    assert [keys for _, keys in journal.in_flight(60)] == [first, second]
    journal.ended(first)
    assert [keys for _, keys in journal.in_flight(60)] == [second]


def test_abandoned_commits_are_forgotten() -> None:
    """One that nobody ends is shown for as long as its fences live; there are never many."""
    journal = Journal()
    for _ in range(MAX_IN_FLIGHT + 5):
        journal.began(rows(1))
        gc.collect(0)  # so that an id could be used again
    assert len(journal.in_flight(60)) == MAX_IN_FLIGHT
    assert journal.in_flight(-1) == []
    assert journal.in_flight(60) == []


def test_commits_in_flight_tell_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest first, in seconds."""
    journal = Journal()
    first, second = rows(1), rows(2)
    for now, keys in ((100.0, first), (103.0, second)):
        monkeypatch.setattr(_journal.time, "monotonic", lambda now=now: now)
        journal.began(keys)
    monkeypatch.setattr(_journal.time, "monotonic", lambda: 105.0)
    assert journal.in_flight(60) == [(5.0, first), (2.0, second)]
    assert journal.in_flight(5.0) == [(5.0, first), (2.0, second)]
    assert journal.in_flight(4.9) == [(2.0, second)]
