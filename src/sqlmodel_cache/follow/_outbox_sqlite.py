"""The outbox in an SQLite file. Every follower of a file reads it: to invalidate twice is harmless.

An INSERT is noted like any other change, because INSERT OR REPLACE deletes a row and fires no DELETE trigger.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .._shapes import CachedTable
from ._outbox import TABLE, Note, trigger_name
from ._source import Name, quoted

BUSY_SECONDS = 5.0  # that a lock of another writer is waited for


class SqliteOutbox:
    """One connection to a file."""

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def statements(self, tables: Sequence[CachedTable]) -> list[str]:
        """Return the statements that are still needed, to be run in one transaction."""
        present = dict(self._connection.execute("SELECT name, type FROM sqlite_master").fetchall())
        wanted = [] if TABLE in present else [_OUTBOX]
        for cached in tables:
            if present.get(cached.name) != "table":
                continue
            for event in ("INSERT", "UPDATE", "DELETE"):
                definition = _definition(cached, event)
                if trigger_name(definition) not in present:
                    wanted.append(f"CREATE TRIGGER {trigger_name(definition)} {definition}")
                    wanted.append(f"INSERT INTO {TABLE} (table_name) VALUES ({_literal(cached.name)})")  # noqa: S608
        return list(dict.fromkeys(wanted))

    def undo(self) -> list[str]:
        """Return the statements that leave nothing behind."""
        query = "SELECT name, type FROM sqlite_master WHERE name LIKE 'sqlmodel!_cache!_%' ESCAPE '!' AND sql <> ''"
        found = self._connection.execute(query).fetchall()
        return [
            f"DROP {kind.upper()} {name}" for name, kind in sorted(found, key=lambda row: str(row[1]), reverse=True)
        ]

    def run(self, statements: Sequence[str]) -> None:
        """Run statements in one transaction."""
        with self._transaction():
            for statement in statements:
                self._connection.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def lead(self, name: str) -> bool:
        """Return True."""
        return True

    def notes(self, limit: int) -> list[Note]:
        """Return the oldest notes."""
        query = f"SELECT id, NULL, table_name, pk FROM {TABLE} ORDER BY id LIMIT ?"  # noqa: S608
        return self._connection.execute(query, (limit,)).fetchall()

    def forget(self, ids: Sequence[int]) -> None:
        """Delete notes."""
        with self._transaction():
            self._connection.executemany(f"DELETE FROM {TABLE} WHERE id = ?", [(id,) for id in ids])  # noqa: S608

    def kept_bytes(self) -> int:
        """Return about how large the outbox is."""
        query = f"SELECT coalesce(max(id) - min(id) + 1, 0) * 64 FROM {TABLE}"  # noqa: S608
        return int(self._connection.execute(query).fetchone()[0])

    def digests(self, tables: Sequence[CachedTable]) -> dict[Name, str]:
        """Return nothing: what changes a table without its rows is not known."""
        return {}

    def remembers(self, digests: dict[Name, str]) -> bool:
        """Return True."""
        return True

    def remember(self, digests: dict[Name, str]) -> None:
        """Do nothing."""

    def cancel(self) -> None:
        """End a statement that waits; from any thread."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # it may be closed at this moment
            self._connection.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _definition(cached: CachedTable, event: str) -> str:
    sides = {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}[event]
    notes = " UNION ".join(f"SELECT {_literal(cached.name)}, {_key(cached, side)}" for side in sides)
    return f"AFTER {event} ON {quoted(cached.name)} BEGIN INSERT INTO {TABLE} (table_name, pk) {notes}; END"


def _key(cached: CachedTable, side: str) -> str:
    if not cached.pk_columns:
        return "NULL"
    parts = ", ".join(f"CAST({side}.{quoted(column)} AS TEXT)" for column in cached.pk_columns)
    return f"json_array({parts})"


def _literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


_OUTBOX = f"CREATE TABLE {TABLE} (id INTEGER PRIMARY KEY AUTOINCREMENT, table_name TEXT NOT NULL, pk TEXT)"
