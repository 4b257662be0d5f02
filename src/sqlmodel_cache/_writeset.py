"""What one database transaction wrote, by the connection that holds it.

The write set lives on the DBAPI connection, not on a session: several sessions may share a connection (a test's
outer transaction, a static pool), and it is the connection's COMMIT that makes all their writes true.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool, SingletonThreadPool, StaticPool

_INFO_KEY = "sqlmodel_cache"

MAX_NAMED_ROWS = 10_000  # of one table in one transaction; beyond it, fencing the table is cheaper


class TableRef(NamedTuple):
    """One table of one database, both as they stand in a key."""

    namespace: str
    table: str


@dataclass(slots=True)
class WriteSet:
    """Rows and tables; savepoints leave it alone, because ROLLBACK TO SAVEPOINT proves nothing about triggers.

    `inserted` rows and those in `appended` tables are not fenced at the commit: nobody can have cached a row that did
    not exist. But until then this transaction sees them and nobody else does, so it must not fill them. And a key that
    a statement gave may have been another row's, whose end the library was not told: it is invalidated after COMMIT.
    """

    rows: dict[TableRef, set[str]] = field(default_factory=dict)
    tables: set[TableRef] = field(default_factory=set)
    inserted: dict[TableRef, set[str]] = field(default_factory=dict)
    appended: set[TableRef] = field(default_factory=set)

    def change(self, ref: TableRef, pks: Iterable[str] | None) -> None:
        """Add rows that were changed, or the table when they are not known, or too many to name."""
        _add(self.rows, self.tables, ref, pks)

    def insert(self, ref: TableRef, pks: Iterable[str] | None) -> None:
        """Add rows that are new, or the table when the database makes their keys. Too many rows are a change of it."""
        if pks is None:
            self.appended.add(ref)
        else:
            _add(self.inserted, self.tables, ref, pks)

    def covers(self, ref: TableRef, pk: str) -> bool:
        """Return whether this transaction may see the row differently from everybody else."""
        return (
            ref in self.tables
            or ref in self.appended
            or pk in self.rows.get(ref, ())
            or pk in self.inserted.get(ref, ())
        )

    def __bool__(self) -> bool:
        return bool(self.rows or self.tables or self.inserted or self.appended)

    def clear(self) -> None:
        """Forget everything: the transaction has ended."""
        self.rows.clear()
        self.tables.clear()
        self.inserted.clear()
        self.appended.clear()


def _add(rows: dict[TableRef, set[str]], tables: set[TableRef], ref: TableRef, pks: Iterable[str] | None) -> None:
    if ref in tables:
        return
    if pks is not None:
        named = rows.setdefault(ref, set())
        named.update(pks)
        if len(named) <= MAX_NAMED_ROWS:
            return
    tables.add(ref)
    rows.pop(ref, None)


Unnamed = tuple[list[Any], Any]  # the writes of a statement, and its schema_translate_map


class Server(NamedTuple):
    """What a server says of a connection to it."""

    in_recovery: bool = False
    snapshot_per_statement: bool = True


@dataclass(slots=True)
class Transaction:
    """What the library knows of the transaction on one DBAPI connection."""

    writes: WriteSet = field(default_factory=WriteSet)
    unnamed: list[Unnamed] = field(default_factory=list)  # written before the database could be asked for its name
    sessions: weakref.WeakSet[Session] = field(default_factory=weakref.WeakSet)  # for a namespace that asks for one
    began: float | None = None  # seconds of time.monotonic(), not later than its snapshot; None when nobody saw it
    isolated: bool = False  # a statement has set an isolation level, or the snapshot, by hand
    isolated_for_good: bool = False  # so it has, for all later transactions of the connection
    failed: bool = False  # a statement has failed: some databases refuse all others until the ROLLBACK
    temporary: bool = False  # the connection has made a temporary table, which may hide one that is cached
    returning: Unnamed | None = None  # writes whose rows a statement will name when it has run
    fence: Any = None  # the fence of a statement that commits by itself, while it runs
    autocommit: bool = False  # that statement is all there is to commit; otherwise the write set outlives it
    server: Server | None = None  # None until asked

    @property
    def wrote(self) -> bool:
        """Whether there is anything to fence, or to keep this transaction from."""
        return bool(self.writes or self.unnamed)

    @property
    def hides(self) -> bool:
        """Whether this transaction may see any row differently from everybody else."""
        return self.temporary or self.wrote

    def covers(self, ref: TableRef, pk: str) -> bool:
        """Return whether this transaction may see the row differently from everybody else."""
        return self.temporary or bool(self.unnamed) or self.writes.covers(ref, pk)

    def statement_ended(self) -> None:
        """Forget what a statement that commits by itself has written.

        Not after a COMMIT in text: other statements may stand behind it, or it may stand in a literal.
        """
        self.fence = None
        if self.autocommit:
            self.autocommit = False
            self.writes.clear()

    def end(self) -> None:
        """Forget what belongs to a transaction, and keep what belongs to the connection."""
        if self.wrote:
            self.writes.clear()
            self.unnamed.clear()
        if self.sessions:
            self.sessions.clear()
        self.began = None
        self.isolated = self.isolated_for_good
        self.failed = False
        self.returning = None
        self.fence = None
        self.autocommit = False


def transaction_of(connection: Connection) -> Transaction:
    """Return the transaction on the connection's DBAPI connection."""
    info = connection.info
    found: Transaction | None = info.get(_INFO_KEY)
    if found is None:
        found = info[_INFO_KEY] = Transaction()
    return found


def known_transaction_of(connection: Connection) -> Transaction | None:
    """Return the transaction if anything is known of it; opens and revives no connection."""
    if connection.closed or connection.invalidated:
        return None
    return connection.info.get(_INFO_KEY)


# Pools whose sessions share a DBAPI connection, and with it a transaction. Only ever added to; entries go with a pool.
_shared: weakref.WeakKeyDictionary[Pool, Transaction] = weakref.WeakKeyDictionary()


def shares_transactions(pool: Pool) -> bool:
    """Return whether sessions on this pool may be in one transaction."""
    return isinstance(pool, StaticPool | SingletonThreadPool)


def share(pool: Pool, state: Transaction) -> None:
    """Remember the transaction of a pool whose sessions share it."""
    if shares_transactions(pool):
        _shared[pool] = state


def shared_transaction(pool: Pool) -> Transaction | None:
    """Return the transaction that every session on this pool is in, or None for an ordinary pool."""
    return _shared.get(pool)
