"""The wire: PostgreSQL's replication messages and those of its `pgoutput` plugin, from bytes and to bytes.

Protocol version 1, text values, no streaming of open transactions. It knows no tables, no cache and no sockets. A row
is split into columns only when somebody asks, because most rows of a bulk load are not looked at.

Source: PostgreSQL's documentation, "Streaming Replication Protocol" and "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

Value: TypeAlias = "str | Gap"

_XLOG_HEAD = struct.Struct(">QQq")  # start of the record, end of WAL, time of sending
_KEEPALIVE = struct.Struct(">QqB")
_STATUS = struct.Struct(">cQQQqB")
_BEGIN = struct.Struct(">QqI")
_COMMIT = struct.Struct(">BQQq")
_TRUNCATE = struct.Struct(">IB")
_RELATION_TAIL = struct.Struct(">cH")
_COLUMN_TAIL = struct.Struct(">Ii")
_INT32 = struct.Struct(">I")
_INT16 = struct.Struct(">H")

EPOCH = 946_684_800.0
"""PostgreSQL's zero of time, 2000-01-01, in seconds of Unix time."""


class DecodeError(Exception):
    """Bytes that are not a message of this protocol."""


class Gap(Enum):
    """Why a column of a row has no text: it is NULL, or a TOASTed value that the UPDATE has not changed."""

    NULL = "n"
    UNCHANGED = "u"


@dataclass(frozen=True, slots=True)
class Begin:
    """A committed transaction follows; `xid` is 32 bits of its id, `committed_at` in seconds of Unix time."""

    xid: int
    committed_at: float


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a transaction; `end` is the position in the WAL just behind it."""

    end: int


class Column(NamedTuple):
    """A column's name, and whether it is part of the replica identity: of what tells rows apart."""

    name: str
    identifies: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table's columns, sent before its first row and whenever they change."""

    id: int
    schema: str
    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """A row as it was, where that is told, and as it is, where it still is; a value per column of its table."""

    old: tuple[Value, ...] | None
    new: tuple[Value, ...] | None


@dataclass(frozen=True, slots=True)
class Change:
    """A changed row that has not been split into columns. `kind` is b"I", b"U" or b"D"."""

    kind: bytes
    relation: int
    data: bytes

    def rows(self) -> Rows:
        """Return the row's columns.

        Raises:
            DecodeError: the bytes are not those of a row.
        """
        try:
            return self._rows()
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
            raise DecodeError(f"not a row: {self.data[:80]!r}") from error

    def _rows(self) -> Rows:
        found: dict[bytes, tuple[Value, ...]] = {}
        at = 0
        while at < len(self.data):
            tag = self.data[at : at + 1]
            if tag not in _TAGS[self.kind] or found.keys() & _SAME[tag]:
                raise DecodeError(f"a {self.kind!r} has no part {tag!r}")
            found[tag], at = _tuple(self.data, at + 1)
        old, new = found.get(b"K", found.get(b"O")), found.get(b"N")
        if (new is None) != (self.kind == b"D") or (old is None and self.kind == b"D"):
            raise DecodeError(f"a {self.kind!r} that lacks a part")
        return Rows(old, new)


_TAGS = {b"I": (b"N",), b"U": (b"K", b"O", b"N"), b"D": (b"K", b"O")}
_SAME = {b"N": {b"N"}, b"K": {b"K", b"O", b"N"}, b"O": {b"K", b"O", b"N"}}  # the old row comes first, in one form


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables that are empty now."""

    relations: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Other:
    """A message that says nothing about rows: a type, an origin, an application's own."""


Message: TypeAlias = Begin | Commit | Relation | Change | Truncate | Other


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server's sign of life: all before `end` has been sent. It may want an answer."""

    end: int
    wants_reply: bool


def unframe(data: bytes) -> Keepalive | bytes:
    """Return a server's sign of life, or the plugin's message out of its replication frame.

    Raises:
        DecodeError: it is neither.
    """
    try:
        if data[:1] == b"w":
            _XLOG_HEAD.unpack_from(data, 1)
            return data[1 + _XLOG_HEAD.size :]
        if data[:1] == b"k":
            end, _, wants_reply = _KEEPALIVE.unpack_from(data, 1)
            return Keepalive(end, wants_reply == 1)
    except struct.error as error:
        raise DecodeError(f"not a replication message: {data[:80]!r}") from error
    raise DecodeError(f"not a replication message: {data[:80]!r}")


def status(confirmed: int, now: float) -> bytes:
    """Return the message that says that everything before `confirmed` is done; `now` in seconds of Unix time.

    It wants an answer: a server that hears from its client says nothing by itself.
    """
    return _STATUS.pack(b"r", confirmed, confirmed, confirmed, round((now - EPOCH) * 1_000_000), 1)


def decode(data: bytes) -> Message:
    """Return a message of the plugin.

    Raises:
        DecodeError: it is not one.
    """
    try:
        return _decode(data[:1], data)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise DecodeError(f"not a message of pgoutput: {data[:80]!r}") from error


def _decode(kind: bytes, data: bytes) -> Message:
    if kind in _TAGS:
        return Change(kind, _INT32.unpack_from(data, 1)[0], data[5:])
    if kind == b"B":
        _, committed_at, xid = _BEGIN.unpack_from(data, 1)
        return Begin(xid, EPOCH + committed_at / 1_000_000)
    if kind == b"C":
        return Commit(_COMMIT.unpack_from(data, 1)[2])
    if kind == b"R":
        return _relation(data)
    if kind == b"T":
        count, _ = _TRUNCATE.unpack_from(data, 1)
        return Truncate(tuple(_INT32.unpack_from(data, 6 + 4 * place)[0] for place in range(count)))
    if kind in (b"O", b"Y", b"M"):
        return Other()
    raise DecodeError(f"pgoutput has no message {kind!r}")


def _relation(data: bytes) -> Relation:
    (id,) = _INT32.unpack_from(data, 1)
    schema, at = _text(data, 5)
    name, at = _text(data, at)
    _, count = _RELATION_TAIL.unpack_from(data, at)
    columns = tuple(_columns(data, at + _RELATION_TAIL.size, count))
    return Relation(id, schema or "pg_catalog", name, columns)


def _columns(data: bytes, at: int, count: int) -> Iterator[Column]:
    for _ in range(count):
        identifies = data[at] & 1 == 1
        name, at = _text(data, at + 1)
        _COLUMN_TAIL.unpack_from(data, at)
        at += _COLUMN_TAIL.size
        yield Column(name, identifies)


def _tuple(data: bytes, at: int) -> tuple[tuple[Value, ...], int]:
    (count,) = _INT16.unpack_from(data, at)
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = data[at : at + 1]
        at += 1
        if kind != b"t":
            values.append(Gap(kind.decode()))
            continue
        (size,) = _INT32.unpack_from(data, at)
        at += 4 + size
        if at > len(data):
            raise DecodeError("a value is cut short")
        values.append(data[at - size : at].decode())
    return tuple(values), at


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1
