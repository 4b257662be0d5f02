"""MySQL and MariaDB as a source: the row-based binary log, read as a replica reads it.

Two connections. One is sent the log. The other holds the lock that makes this follower the only one, and writes down
how far it has come: a follower that was frozen for so long that it lost the lock can write nothing more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from pymysql.err import Error
from pymysqlreplication.event import (
    BeginLoadQueryEvent,
    ExecuteLoadQueryEvent,
    FormatDescriptionEvent,
    HeartbeatLogEvent,
    MariadbGtidEvent,
    NotImplementedEvent,
    QueryEvent,
    RotateEvent,
    StopEvent,
    XAPrepareEvent,
    XidEvent,
)
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from ..errors import FollowerError
from . import _binlog_reader as _reader
from . import _binlog_server as _server
from ._binlog_changes import LogChanges
from ._binlog_server import Mark, State, Wire
from ._changes import Batch, Stale
from ._source import Health, Interrupted, Name, SourceError, Wake

log = logging.getLogger("sqlmodel_cache")

BATCH_ROWS = 1000  # after which no more transactions join a batch
ALIVE_SECONDS = 0.5  # between signs of life
WATCH_SECONDS = 1.0  # between two looks at the server
ADVANCE_SECONDS = 10.0  # between two notes of how far the log was read, while others write what is of no interest

_POSITION_LOST = 1236
_STANDALONE = 1  # a flag of MariaDB's GTID event: one statement, without BEGIN and COMMIT
# Of MySQL: ignorable, anonymous and tagged GTIDs, transaction context, view change, the other heartbeat.
_HARMLESS = {28, 34, 36, 37, 41, 42}


class _PositionLost(Exception):
    """The log does not go on where it was left: begin at its end."""


class Binlog:
    """Follows one database of a server.

    Args:
        settings: those of `pymysql.connect`, with the database.
        name: of the row in the follower's table.
        stale: names what is stale.
        wake: ends all waiting.
    """

    def __init__(self, settings: Mapping[str, Any], name: str, stale: Stale, wake: Wake) -> None:
        self._settings = settings
        self._name = name
        self._database: str = settings["database"]
        self._stale = stale
        self._wake = wake
        self._sql: Wire | None = None
        self._log: _reader.Log | None = None
        self._discard = False  # whether to begin at the end of the log, whatever is remembered
        self._health = Health()
        self._reset()

    def _reset(self) -> None:
        self._changes = LogChanges(self._stale, self._database, Name(self._database, _server.TABLE))
        self._catalog = _server.Catalog(frozenset(), {}, ())
        self._stranded = False  # whether everything is stale, because it is not known what has changed
        self._confirmed = self._read = Mark("", "", 0, 0, "")
        self._closed = False  # whether the server has ended the present file in good order
        self._looked = self._advanced = 0.0  # seconds of time.monotonic()
        self._asked = time.monotonic()

    # setup

    def setup_sql(self) -> list[str]:
        """Return the statements that are still needed before the database can be followed."""
        with self._opened() as sql:
            return _server.setup_sql(self._look(sql), sql, self._name, self._database)

    def setup(self) -> None:
        """Run them. Raises FollowerError with what they cannot mend."""
        with self._opened() as sql:
            state = self._look(sql)
            problems = list(_server.problems(state, self._database, self._stale.tables()))
            if problems:
                raise FollowerError(*problems)
            for statement in _server.setup_sql(state, sql, self._name, self._database):
                sql.query(statement)

    def teardown_sql(self) -> list[str]:
        """Return the statements that leave nothing behind."""
        with self._opened() as sql:
            return _server.teardown_sql(self._look(sql), sql, self._name, self._database)

    def teardown(self) -> None:
        """Run them."""
        with self._opened() as sql:
            for statement in _server.teardown_sql(self._look(sql), sql, self._name, self._database):
                sql.query(statement)

    # leading

    def check(self) -> None:
        """Raise FollowerError when the database is not prepared, and cannot be followed as it is."""
        with self._opened() as sql:
            self._refuse(self._look(sql))

    def _refuse(self, state: State) -> None:
        problems = [*_server.problems(state, self._database, self._stale.tables()), *_server.missing(state)]
        if problems:
            raise FollowerError(*problems)

    def lead(self) -> bool:
        """Become the one follower, if nobody else is. Raises FollowerError when the database is not prepared."""
        with self._trouble():
            if self._sql is None:
                self._sql = _server.connect(self._settings)
            if not _server.lead(self._sql, self._name, self._database):
                return False
            state = self._look(self._sql)
            self._refuse(state)
            self._learn(self._sql)
            self._begin(state)
            return True

    def _begin(self, state: State) -> None:
        """Read on where everything had been invalidated, or at the end of the log if that is not known.

        1 the log has lost what follows the mark   2 this follower begins at its end   3 it is killed   4 another leads
        So the mark moves only after everything has been invalidated: `watch` says so, and `confirm` moves it.
        """
        digest = self._digest()
        mark = state.mark
        if mark is None or self._discard or mark.server != state.server:
            assert state.end is not None  # noqa: S101  _refuse() has looked
            if mark is not None:
                log.warning("the binary log does not go on where it was left: everything is invalidated")
                self._health = Health(0, self._health.problems, self._health.started_over + 1)
            mark = Mark(state.server, *state.end, 0, digest)
            self._stranded = True
        elif mark.tables != digest:  # whoever led before has passed over tables that it did not know
            self._stranded = True
        self._confirmed = self._read = replace(mark, tables=digest)
        self._open(mark)
        self._discard = False

    def _open(self, mark: Mark) -> None:
        self._log = _reader.Log(self._settings, mark, self._changes.names)
        if mark.began not in (0, self._log.began):
            raise _PositionLost("the log was begun anew")
        self._confirmed = self._read = replace(self._read, began=self._log.began)

    def _digest(self) -> str:
        tables = [str(cached) for cached in self._stale.cached_tables()]
        return hashlib.blake2b(json.dumps([tables, self._stale.namespaces]).encode(), digest_size=16).hexdigest()

    # what no row says

    def watch(self) -> Batch | None:
        """Return everything if it is not known what has changed, or None; look at the server now and then."""
        with self._trouble():
            now = time.monotonic()
            if self._stranded:
                _server.await_visible(self._connected(), self._name, self._database)
                batch = Batch(position=self._read)
                self._changes.everything(batch.writes)
                return batch
            if now >= self._looked + WATCH_SECONDS:
                self._looked = now
                self._study(self._connected())
            if self._changes.passed and self._changes.empty and now >= self._advanced + ADVANCE_SECONDS:
                self._remember(self._read)
            return None

    def _study(self, sql: Wire) -> None:
        state = self._look(sql)
        digest = self._digest()
        if digest != self._read.tables:  # a model that was defined meanwhile: its table was passed over
            self._learn(sql)
            self._read = replace(self._read, tables=digest)
            self._stranded = True
        problems = (
            *_server.problems(state, self._database, self._stale.tables()),
            *_server.missing(state),
            *_server.blind_spots(self._catalog),
        )
        self._health = Health(_server.kept_bytes(sql, self._read), problems, self._health.started_over)

    def _learn(self, sql: Wire) -> None:
        """Look at what there is of tables, at the beginning and whenever the log says that this may have changed."""
        self._catalog = _server.catalog(sql, self._stale.tables())
        self._changes.know(self._catalog)

    # the log

    def read(self, seconds: float) -> Batch | None:
        """Return what became stale and is visible to every reader that begins now; None if nothing did in time."""
        with self._trouble():
            until = time.monotonic() + seconds
            while not self._gather():
                if time.monotonic() >= until and not self._changes.within:
                    break
            if self._changes.empty:
                return None
            batch = self._changes.take()
            batch.position = self._read
            if batch.writes:
                _server.await_visible(self._connected(), self._name, self._database)
            return batch

    def _gather(self) -> bool:
        """Take in the next event; return whether it ends a batch."""
        assert self._log is not None  # noqa: S101  lead() has opened it
        changes = self._changes
        try:
            self._take(self._log.next())
        except _reader.Unreadable as error:
            log.warning("an event of the binary log cannot be read, everything is invalidated: %s", error)
            changes.lost(time.time())
        self.alive()
        if changes.within or changes.empty:
            return False
        return changes.rows >= BATCH_ROWS or not self._wake.wait(0, self._log.descriptor())

    def _take(self, event: Any) -> None:
        changes = self._changes
        match event:
            case WriteRowsEvent() | UpdateRowsEvent() | DeleteRowsEvent():
                changes.change(event.schema, event.table, lambda: _reader.rows(event))
            case XidEvent() | XAPrepareEvent():
                changes.commit(event.timestamp)
            case MariadbGtidEvent():
                if not event.flags & _STANDALONE:
                    changes.begin()
            case QueryEvent():
                if changes.query(event.query, event.timestamp):
                    self._learn(self._connected())
            case RotateEvent():
                self._turn(event)
            case FormatDescriptionEvent():
                self._read = replace(self._read, began=event.timestamp)
            case StopEvent():
                self._closed = True
            case BeginLoadQueryEvent() | ExecuteLoadQueryEvent():
                changes.lost(event.timestamp)
            case HeartbeatLogEvent() if changes.within:  # a group is in the log as a whole, however it ends
                changes.commit(time.time())
            case NotImplementedEvent() if event.event_type not in _HARMLESS:
                changes.lost(event.timestamp)
        if event.packet.log_pos:
            self._read = replace(self._read, position=event.packet.log_pos)

    def _turn(self, event: RotateEvent) -> None:
        """Go on in another file. A server that has not ended the one before has crashed, and may have lost commits."""
        if event.timestamp:
            self._closed = True
        elif event.next_binlog != self._read.file:
            if not self._closed:
                log.warning("the server has crashed: everything is invalidated")
                self._changes.within = False  # what the server was about to write is not there
                self._changes.lost(time.time())
            self._closed = False
            self._changes.passed = True
            self._read = replace(self._read, file=event.next_binlog, position=event.position)

    def confirm(self, batch: Batch) -> None:
        """Say that a batch has been invalidated: it will not come again."""
        with self._trouble():
            self._remember(batch.position)
            self._stranded = False

    def _remember(self, mark: Mark) -> None:
        if mark != self._confirmed or self._stranded:
            _server.remember(self._connected(), self._name, self._database, mark)
        self._confirmed = mark
        self._changes.passed = False
        self._advanced = self._asked = time.monotonic()

    # signs of life

    def alive(self) -> None:
        """Keep the lock: the server takes it away from whoever is silent."""
        now = time.monotonic()
        if now >= self._asked + ALIVE_SECONDS:
            with self._trouble():
                self._connected().rows("SELECT 1")
            self._asked = now

    def health(self) -> Health:
        """Return what was last seen; asks nothing."""
        return self._health

    # connections

    def interrupt(self) -> None:
        """End a statement that waits in the database; from any thread, after the wake."""
        for connection in (self._sql, self._log):
            if connection is not None:
                connection.cut()

    def close(self) -> None:
        """Let another follower lead."""
        for connection in (self._sql, self._log):
            if connection is not None:
                with suppress(Error):
                    connection.close()
        self._sql = self._log = None
        self._reset()

    def _connected(self) -> Wire:
        assert self._sql is not None  # noqa: S101  lead() has opened it
        return self._sql

    def _look(self, sql: Wire) -> State:
        return _server.look(sql, self._name, self._database)

    @contextmanager
    def _opened(self) -> Iterator[Wire]:
        with self._trouble():
            sql = _server.connect(self._settings)
            try:
                yield sql
            finally:
                with suppress(Error):
                    sql.close()

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except (Error, OSError, SourceError, _PositionLost) as error:
            if self._wake.woken:
                raise Interrupted from None
            if isinstance(error, _PositionLost) or (error.args and error.args[0] == _POSITION_LOST):
                # What cannot be read cannot be confirmed either, and would come again for ever.
                self._discard = True
                raise SourceError(f"begins at the end of the log, everything is invalidated: {error}") from error
            if isinstance(error, SourceError):
                raise
            raise SourceError(str(error.args[-1] if error.args else error)) from error
