"""The wire: what PostgreSQL says is read back as it was said, and anything else is a DecodeError."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlmodel_cache.follow._pgoutput import (
    EPOCH,
    Begin,
    Change,
    Column,
    Commit,
    DecodeError,
    Gap,
    Keepalive,
    Other,
    Relation,
    Rows,
    Truncate,
    decode,
    status,
    unframe,
)

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
ids = st.integers(0, 2**32 - 1)
positions = st.integers(0, 2**64 - 1)
values = st.one_of(words, st.sampled_from(Gap))
tuples = st.lists(values, max_size=6).map(tuple)


def say(values: tuple[Any, ...]) -> bytes:
    """Return a row as PostgreSQL writes it."""
    said = struct.pack(">H", len(values))
    for value in values:
        said += value.value.encode() if isinstance(value, Gap) else b"t" + sized(value.encode())
    return said


def sized(text: bytes) -> bytes:
    """Return bytes after their length."""
    return struct.pack(">I", len(text)) + text


@given(ids, st.sampled_from(["K", "O", None]), tuples, tuples)
def test_update_is_read_back(relation: int, form: str | None, old: Any, new: Any) -> None:
    """An UPDATE has the new row, and before it the old key, the old row, or neither."""
    before = b"" if form is None else form.encode() + say(old)
    message = decode(b"U" + struct.pack(">I", relation) + before + b"N" + say(new))
    assert isinstance(message, Change)
    assert message.relation == relation
    assert message.rows() == Rows(None if form is None else old, new)


@given(ids, tuples)
def test_insert_and_delete_are_read_back(relation: int, row: Any) -> None:
    """An INSERT has a new row only, a DELETE an old one only."""
    inserted = decode(b"I" + struct.pack(">I", relation) + b"N" + say(row))
    assert isinstance(inserted, Change)
    assert inserted.rows() == Rows(None, row)
    for form in (b"K", b"O"):
        deleted = decode(b"D" + struct.pack(">I", relation) + form + say(row))
        assert isinstance(deleted, Change)
        assert deleted.rows() == Rows(row, None)


@given(ids, words, words, st.lists(st.tuples(words, st.booleans()), max_size=5))
def test_relation_is_read_back(id: int, schema: str, name: str, columns: list[tuple[str, bool]]) -> None:
    """A relation has a schema, a name, and columns with a flag; an empty schema is the catalog's."""
    said = b"R" + struct.pack(">I", id) + schema.encode() + b"\0" + name.encode() + b"\0d"
    said += struct.pack(">H", len(columns))
    for column, identifies in columns:
        said += bytes([identifies]) + column.encode() + b"\0" + struct.pack(">Ii", 25, -1)
    assert decode(said) == Relation(id, schema or "pg_catalog", name, tuple(Column(*each) for each in columns))


@given(positions, st.integers(-(2**50), 2**50), ids, st.lists(ids, max_size=5))
def test_other_messages_are_read_back(position: int, at: int, xid: int, relations: list[int]) -> None:
    """BEGIN has the transaction's id and time, COMMIT the position behind it, TRUNCATE its tables."""
    assert decode(b"B" + struct.pack(">QqI", position, at, xid)) == Begin(xid, EPOCH + at / 1_000_000)
    assert decode(b"C" + struct.pack(">BQQq", 0, 1, position, at)) == Commit(position)
    truncated = b"T" + struct.pack(">IB", len(relations), 0) + struct.pack(f">{len(relations)}I", *relations)
    assert decode(truncated) == Truncate(tuple(relations))
    assert decode(b"Y anything") == decode(b"O") == Other()


@given(positions, st.booleans(), st.binary())
def test_frames_are_opened(position: int, wants_reply: bool, payload: bytes) -> None:
    """A frame is a sign of life, or holds a message of the plugin."""
    assert unframe(b"w" + struct.pack(">QQq", position, position, 0) + payload) == payload
    assert unframe(b"k" + struct.pack(">QqB", position, 0, wants_reply)) == Keepalive(position, wants_reply)


@given(positions, st.floats(0, 2**32))
def test_status_says_one_position_three_times(position: int, now: float) -> None:
    """Written, flushed and applied are one to the follower; the server may forget what lies before."""
    kind, *positions, at, wants_reply = struct.unpack(">cQQQqB", status(position, now))
    assert (kind, positions, wants_reply) == (b"r", [position] * 3, 1)
    assert abs(EPOCH + at / 1_000_000 - now) < 0.001


@given(st.binary(max_size=80), st.sampled_from([b"", b"B", b"C", b"R", b"I\0\0\0\1", b"U\0\0\0\1", b"D\0\0\0\1", b"T"]))
def test_other_bytes_are_a_decode_error(noise: bytes, head: bytes) -> None:
    """Nothing else is ever raised, whatever arrives."""
    with contextlib.suppress(DecodeError):
        message = decode(head + noise)
        if isinstance(message, Change):
            rows = message.rows()
            assert rows.old is not None or rows.new is not None
    with contextlib.suppress(DecodeError):
        unframe(noise)


@pytest.mark.parametrize(
    "said",
    [
        b"U\0\0\0\1",
        b"U\0\0\0\1K\0\0",
        b"I\0\0\0\1K\0\0",
        b"D\0\0\0\1N\0\0",
        b"U\0\0\0\1N\0\0N\0\0",
        b"U\0\0\0\1N\0\0K\0\0",
        b"I\0\0\0\1N\0\1t\0\0\0\x05abc",
        b"I\0\0\0\1N\0\1b\0\0\0\x01a",
    ],
)
def test_row_with_parts_that_do_not_belong_is_an_error(said: bytes) -> None:
    """A part that is missing, twice, in the wrong order or cut short is not taken for a row."""
    message = decode(said)
    assert isinstance(message, Change)
    with pytest.raises(DecodeError):
        message.rows()
