"""An outbox as a source: triggers note every change in a table, in the transaction that makes it.

For databases whose log may not be read. Each note is a row of its own and is deleted by itself, when it has been
invalidated: notes of transactions that commit late are not passed over, however their numbers lie. What was written
before the triggers were there is noted by the setup, in the transaction that makes them, as whole tables.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from .._shapes import CachedTable
from ..errors import FollowerError
from ._changes import Batch, Stale, pk_text
from ._source import Health, Interrupted, Name, Problem, SourceError, Wake

TABLE = "sqlmodel_cache_outbox"
POLL_SECONDS = 0.03  # between two looks into an empty table
ALIVE_SECONDS = 1.0
BATCH_NOTES = 20_000  # more than the rows of a table that are named one by one

Note = tuple[int, str | None, str, str | None]  # id, schema, table, and the key as a JSON array of texts


class Database(Protocol):
    """One connection to a database with an outbox."""

    errors: tuple[type[Exception], ...]

    def statements(self, tables: Sequence[CachedTable]) -> list[str]:
        """Return the statements that are still needed, to be run in one transaction."""
        ...

    def undo(self) -> list[str]:
        """Return the statements that leave nothing behind."""
        ...

    def run(self, statements: Sequence[str]) -> None:
        """Run statements in one transaction."""
        ...

    def lead(self, name: str) -> bool:
        """Return whether no other follower of that name leads."""
        ...

    def notes(self, limit: int) -> list[Note]:
        """Return the oldest notes."""
        ...

    def forget(self, ids: Sequence[int]) -> None:
        """Delete notes."""
        ...

    def kept_bytes(self) -> int:
        """Return about how large the outbox is; it is a sign of life, too."""
        ...

    def digests(self, tables: Sequence[CachedTable]) -> dict[Name, str]:
        """Return a digest of what each table is besides its rows; nothing where that is not known."""
        ...

    def remembers(self, digests: dict[Name, str]) -> bool:
        """Return whether these were the last that `remember` was told."""
        ...

    def remember(self, digests: dict[Name, str]) -> None:
        """Leave word for the next follower, if this role may."""
        ...

    def cancel(self) -> None:
        """End a statement that waits; from any thread."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Connect(Protocol):
    """Opens a database."""

    def __call__(self) -> Database:
        """Return a new connection."""
        ...


class Outbox:
    """Follows one database through its outbox."""

    def __init__(self, connect: Connect, name: str, stale: Stale, wake: Wake) -> None:
        self._connect = connect
        self._name = name
        self._stale = stale
        self._wake = wake
        self._database: Database | None = None
        self._errors: tuple[type[Exception], ...] = (OSError,)
        self._asked = 0.0  # seconds of time.monotonic()
        self._digests: dict[Name, str] | None = None  # of the tables, when they were last invalidated
        self._health = Health()

    def setup_sql(self) -> list[str]:
        """Return the statements that are still needed before the database can be followed."""
        with self._opened() as database:
            return database.statements(self._stale.cached_tables())

    def setup(self) -> None:
        """Run them."""
        with self._opened() as database:
            database.run(database.statements(self._stale.cached_tables()))

    def teardown_sql(self) -> list[str]:
        """Return the statements that leave nothing behind."""
        with self._opened() as database:
            return database.undo()

    def teardown(self) -> None:
        """Run them."""
        with self._opened() as database:
            database.run(database.undo())

    def check(self) -> None:
        """Raise FollowerError when the database is not prepared."""
        if self.setup_sql():
            raise FollowerError(_MISSING)

    def lead(self) -> bool:
        """Become the one follower, if nobody else is."""
        with self._trouble():
            if self._database is None:
                self._database = self._connect()
                self._errors = (*self._database.errors, OSError)
            return self._database.lead(self._name)

    def watch(self) -> Batch | None:
        """Return tables that have changed without a row of theirs, or None. Triggers that are missing are a problem."""
        if self._digests is not None and time.monotonic() < self._asked + ALIVE_SECONDS:
            return None
        self.alive()
        with self._trouble():
            missing = self._open().statements(self._stale.cached_tables())
            self._health = Health(self._health.kept_bytes, (_MISSING,) if missing else ())
            return self._compare(self._open())

    def _compare(self, database: Database) -> Batch | None:
        digests = database.digests(self._stale.cached_tables())
        old = self._digests
        if old is None:
            old = digests if database.remembers(digests) else {}
        changed = [name for name in digests.keys() | old.keys() if digests.get(name) != old.get(name)]
        if not changed:
            self._digests = digests
            return None
        batch = Batch(position=digests)
        for name in changed:
            self._stale.table(batch.writes, *name)
        return batch

    def read(self, seconds: float) -> Batch | None:
        """Return what became stale; a note is visible when its change is. None if nothing did in time."""
        until = time.monotonic() + seconds
        while True:
            with self._trouble():
                notes = self._open().notes(BATCH_NOTES)
            if notes:
                return self._batch(notes)
            if time.monotonic() >= until:
                return None
            self._wake.wait(POLL_SECONDS)

    def _batch(self, notes: Sequence[Note]) -> Batch:
        batch = Batch(changes=len(notes), transactions=1, position=[note[0] for note in notes])
        for _, schema, name, key in notes:
            for cached in self._stale.cached(name):
                text = None if key is None else pk_text(cached, json.loads(key))
                for ref in self._stale.refs(schema, cached):
                    batch.writes.change(ref, None if text is None else [text])
        return batch

    def confirm(self, batch: Batch) -> None:
        """Delete the notes: they have been invalidated."""
        with self._trouble():
            if isinstance(batch.position, dict):
                self._open().remember(batch.position)
                self._digests = batch.position
            else:
                self._open().forget(batch.position)

    def alive(self) -> None:
        """Keep the connection, and with it the lead."""
        if time.monotonic() >= self._asked + ALIVE_SECONDS:
            with self._trouble():
                self._health = Health(self._open().kept_bytes(), self._health.problems)
            self._asked = time.monotonic()

    def health(self) -> Health:
        """Return what was last seen; asks nothing."""
        return self._health

    def interrupt(self) -> None:
        """End a statement that waits in the database; from any thread, after the wake."""
        database = self._database
        if database is not None:
            database.cancel()

    def close(self) -> None:
        """Let another follower lead."""
        if self._database is not None:
            self._database.close()
        self._database = self._digests = None

    def _open(self) -> Database:
        assert self._database is not None  # noqa: S101  lead() has opened it
        return self._database

    @contextmanager
    def _opened(self) -> Iterator[Database]:
        database = self._connect()
        self._errors = (*database.errors, OSError)
        try:
            with self._trouble():
                yield database
        finally:
            database.close()

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            if self._wake.woken:
                raise Interrupted from None
            raise SourceError(str(error).strip()) from error


_MISSING = Problem(
    "triggers are missing", "run the setup: sqlmodel-cache follow --outbox --setup, or follow(outbox=True, setup=True)"
)


def trigger_name(definition: str) -> str:
    """Return a trigger's name, another one when its definition is another."""
    return f"sqlmodel_cache_{hashlib.blake2b(definition.encode(), digest_size=6).hexdigest()}"
