"""The hooks on SQLAlchemy's sessions and connections: the shell, which decides nothing.

    Session.get                         -> Reader.get
    every statement of every connection -> Writer.record, into the connection's write set
    a connection's outermost COMMIT     -> Writer.commit around it
    a connection's outermost ROLLBACK   -> the write set is forgotten

The outermost COMMIT is a connection's, not a session's: `after_commit` fires on a SAVEPOINT's release, a session that
joined an outer transaction commits nothing, and `engine.begin()` has no session at all.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Table, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import Pool

from . import _sqlalchemy
from ._effects import Outcome
from ._sqltext import ends_transaction, is_text, isolates, isolates_for_good, makes_temporary, prepares
from ._writeset import forget, known_transaction_of, transaction_of
from ._writing import outcome_of
from .cache import Cache
from .config import config_of
from .errors import InvalidationError


class Hooks:
    """All that is changed in SQLAlchemy between `install` and `remove`."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._patches = _sqlalchemy.Patches()
        self._listeners: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
            (Engine, "begin", self._begin),
            (Engine, "begin_twophase", self._begin),
            (Engine, "before_cursor_execute", self._before_cursor_execute),
            (Engine, "after_cursor_execute", self._after_cursor_execute),
            (Engine, "handle_error", self._handle_error),
            (Pool, "checkin", self._checkin),
            (Mapper, "after_mapper_constructed", self._mapper_constructed),
            (Table, "after_parent_attach", self._table_attached),
        )
        if cache.naming.asks_sessions:
            self._listeners += ((Session, "after_begin", self._after_begin),)

    def install(self) -> None:
        """Hook in."""
        self._patches.replace(Session, "get", self._get)
        self._patches.replace(Session, "_merge", _merge)
        self._patches.replace(Connection, "_commit_impl", self._commit)
        self._patches.replace(Connection, "_commit_twophase_impl", self._commit)
        self._patches.replace(Connection, "_rollback_impl", _rollback)
        self._patches.replace(Connection, "_rollback_twophase_impl", _rollback)
        self._engine_events = _sqlalchemy.engine_events()
        for target, name, listener in self._listeners:
            event.listen(target, name, listener)

    def remove(self) -> None:
        """Leave SQLAlchemy exactly as it was."""
        self._patches.restore()
        for target, name, listener in self._listeners:
            if event.contains(target, name, listener):  # somebody may have cleared all listeners
                event.remove(target, name, listener)
        _sqlalchemy.restore_engine_events(self._engine_events)

    # sessions

    def _get(self, original: Callable[..., Any]) -> Callable[..., Any]:
        reader = self._cache.reader

        @functools.wraps(original)
        def get(self: Session, entity: Any, ident: Any, **options: Any) -> Any:
            return reader.get(self, entity, ident, options, lambda: original(self, entity, ident, **options))

        return get

    def _after_begin(self, session: Session, transaction: Any, connection: Connection) -> None:
        transaction_of(connection).sessions.add(session)

    # connections

    def _commit(self, original: Callable[..., None]) -> Callable[..., None]:
        writer = self._cache.writer

        @functools.wraps(original)
        def commit(self: Connection, *args: Any) -> None:
            state = transaction_of(self) if self.in_transaction() and not self.invalidated else None
            if state is None:
                original(self, *args)
                return
            try:
                writer.commit(self, state, lambda: original(self, *args))
            except InvalidationError:
                self.connection.rollback()
                state.end()
                raise
            state.end()

        return commit

    def _begin(self, connection: Connection, *_: Any) -> None:
        state = transaction_of(connection)
        if state.began is None:  # a shared DBAPI connection may have begun before
            state.began = time.monotonic()

    def _before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        text = is_text(context)
        if text and isolates(statement):
            state = transaction_of(connection)
            state.isolated, state.server = True, None
            state.isolated_for_good |= isolates_for_good(statement)
        if text and makes_temporary(statement) and self._cache.entities.mentioned_in(statement):
            transaction_of(connection).temporary = True
        writes = self._cache.statements.writes_of(context, statement)
        if writes:
            translate = context.execution_options.get("schema_translate_map")
            autocommit = _sqlalchemy.commits_each_statement(connection, statement)
            told = [write for write in writes if write.pks is None and write.returned]
            if told and (autocommit or executemany or not _sqlalchemy.can_buffer(context)):
                told = []
            state = self._cache.writer.record(connection, [write for write in writes if write not in told], translate)
            state.autocommit = autocommit
            if told:
                self._cache.writer.expect(connection, told, translate)
        else:
            known = known_transaction_of(connection)
            if known is None or not known.wrote:
                return
            state = known
            state.autocommit = False
        if state.autocommit or (text and ends_transaction(statement, connection.dialect.name)):
            self._cache.writer.begin_fence(connection, state)

    def _after_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        state = known_transaction_of(connection)
        if state is not None and state.returning is not None:
            self._cache.writer.returned(connection, state, _sqlalchemy.buffered_rows(context, cursor))
        if state is None or not (state.fence or state.autocommit):
            return
        # SQLite commits a statement that returns rows when the last has been fetched; nothing says when that is.
        rows_left = cursor.description is not None and not connection.dialect.is_async
        unfinished = state.autocommit and rows_left and connection.dialect.name == "sqlite"
        unknown = unfinished or (is_text(context) and prepares(statement))
        self._cache.writer.end_fence(state, Outcome.UNKNOWN if unknown else Outcome.COMMITTED)

    def _handle_error(self, context: Any) -> None:
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return
        if context.statement is not None and connection.in_transaction():
            transaction_of(connection).failed = True
        state = known_transaction_of(connection)
        if state is not None and (state.fence or state.autocommit):
            error = context.sqlalchemy_exception or context.original_exception
            self._cache.writer.end_fence(state, outcome_of(error) if isinstance(error, Exception) else Outcome.UNKNOWN)

    def _checkin(self, dbapi_connection: Any, record: Any) -> None:
        # A COMMIT that SQLite refuses leaves its transaction open, and SQLAlchemy's pool hands it to the next user.
        if not _sqlalchemy.in_transaction(dbapi_connection):
            forget(record.info)

    # what is cached

    def _mapper_constructed(self, mapper: Mapper[Any], class_: type) -> None:
        self._cache.entities.changed()
        config_of(class_)  # a wrong declaration is an error where it is written

    def _table_attached(self, table: Table, parent: Any) -> None:
        self._cache.entities.changed()


def _rollback(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def rollback(self: Connection, *args: Any) -> None:
        state = known_transaction_of(self)
        try:
            original(self, *args)
        finally:
            if state is not None:
                state.end()

    return rollback


def _merge(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def merge(self: Session, *args: Any, **options: Any) -> Any:
        token = _sqlalchemy.merging.set(True)
        try:
            return original(self, *args, **options)
        finally:
            _sqlalchemy.merging.reset(token)

    return merge
