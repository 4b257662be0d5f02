"""The hooks on SQLAlchemy's sessions and connections: the shell, which decides nothing.

    Session.get                         -> Reader.get
    AsyncSession.get                    -> Reader.aget, for hits; all else arrives at its Session
    a lazy load's SELECT                -> LazyLoads.load, where the relationship opted in
    every statement of every connection -> Writer.record, into the connection's write set, unless it only reads
    a connection's outermost COMMIT     -> Writer.commit around it
    a connection's outermost ROLLBACK   -> the write set is forgotten

The outermost COMMIT is a connection's, not a session's: `after_commit` fires on a SAVEPOINT's release, a session that
joined an outer transaction commits nothing, and `engine.begin()` has no session at all.

Methods of connections are replaced where there are events, too: a listener on all engines costs each connection, and
with it each statement that is none of this library's business, more than all the rest of the library.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Table, event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Mapper, Session

from . import _sqlalchemy
from ._effects import Outcome
from ._sqltext import ends_transaction, is_text, isolates, isolates_for_good, makes_temporary, prepares
from ._writeset import Transaction, known_transaction_of, shares_transactions, transaction_of
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
            (Mapper, "after_mapper_constructed", self._mapper_constructed),
            (Table, "after_parent_attach", self._table_attached),
            (object, "class_uninstrument", self._cache.entities.disposed),
        )
        if cache.naming.asks_sessions:
            self._listeners += ((Session, "after_begin", self._after_begin),)

    def install(self) -> None:
        """Hook in."""
        self._patches.replace(Session, "get", self._get)
        if _sqlalchemy.AsyncSession is not None:
            self._patches.replace(_sqlalchemy.AsyncSession, "get", self._aget)
        self._patches.replace(Session, "_merge", _merge)
        if self._cache.settings.enabled:
            self._patches.replace(_sqlalchemy.LazyLoader, "_emit_lazyload", self._lazy_load)
        self._patches.replace(Connection, "_begin_impl", _begin)
        self._patches.replace(Connection, "_begin_twophase_impl", _begin)
        self._patches.replace(Connection, "_exec_single_context", self._execute)
        self._patches.replace(Connection, "_exec_insertmany_context", self._execute)
        self._patches.replace(Connection, "_commit_impl", self._commit)
        self._patches.replace(Connection, "_commit_twophase_impl", self._commit)
        self._patches.replace(Connection, "_rollback_impl", _rollback)
        self._patches.replace(Connection, "_rollback_twophase_impl", _rollback)
        for target, name, listener in self._listeners:
            event.listen(target, name, listener)

    def remove(self) -> None:
        """Leave SQLAlchemy exactly as it was."""
        self._patches.restore()
        for target, name, listener in self._listeners:
            if event.contains(target, name, listener):  # somebody may have cleared all listeners
                event.remove(target, name, listener)

    # sessions

    def _get(self, original: Callable[..., Any]) -> Callable[..., Any]:
        reader = self._cache.reader

        @functools.wraps(original)
        def get(self: Session, entity: Any, ident: Any, **options: Any) -> Any:
            return reader.get(self, entity, ident, options, lambda: original(self, entity, ident, **options))

        return get

    def _aget(self, original: Callable[..., Any]) -> Callable[..., Any]:
        reader, hooked = self._cache.reader, Session.get
        own = self._patches.original(Session, "get")

        @functools.wraps(original)
        async def get(self: Any, entity: Any, ident: Any, **options: Any) -> Any:
            session = self.sync_session
            if options or type(session).get is not hooked:  # an application's own get has its say
                return await original(self, entity, ident, **options)
            return await reader.aget(
                session, entity, ident, lambda: own(session, entity, ident), lambda: original(self, entity, ident)
            )

        return get

    def _lazy_load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        lazy_loads = self._cache.lazy_loads
        link_of = lazy_loads.link

        @functools.wraps(original)
        def emit_lazyload(loader: Any, *arguments: Any) -> Any:
            link = link_of(loader)
            if link is None:
                return original(loader, *arguments)
            return lazy_loads.load(link, lambda: original(loader, *arguments), *arguments)

        return emit_lazyload

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

    def _execute(self, original: Callable[..., Any]) -> Callable[..., Any]:
        only_reads, is_of_the_dialect = self._cache.statements.only_reads, _sqlalchemy.is_of_the_dialect

        @functools.wraps(original)
        def execute(connection: Connection, dialect: Any, context: Any, *args: Any) -> Any:
            if only_reads(context) or is_of_the_dialect(connection):
                try:
                    return original(connection, dialect, context, *args)
                except BaseException as error:
                    if not is_of_the_dialect(connection):
                        self._failed(connection, None, error)
                    raise
            try:
                fenced = self._before(connection, context)
            except BaseException as error:
                context.cursor.close()
                self._failed(connection, known_transaction_of(connection), error)
                raise
            try:
                result = original(connection, dialect, context, *args)
            except BaseException as error:
                self._failed(connection, fenced, error)
                raise
            if fenced is not None:
                # SQLite commits a statement that returns rows when the last has been fetched; nothing says when it is.
                rows_left = fenced.autocommit and dialect.name == "sqlite" and not dialect.is_async
                unknown = (rows_left and context.cursor.description is not None) or (
                    is_text(context) and prepares(context.statement)
                )
                self._cache.writer.end_fence(fenced, Outcome.UNKNOWN if unknown else Outcome.COMMITTED)
            return result

        return execute

    def _before(self, connection: Connection, context: Any) -> Transaction | None:
        """Record what a statement will write. Return its transaction if that is fenced for just this statement."""
        statement, text = context.statement, is_text(context)
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
            if told and (autocommit or context.executemany or not _sqlalchemy.can_buffer(context)):
                told = []
            writer = self._cache.writer
            state = writer.record(connection, [write for write in writes if write not in told], translate)
            state.autocommit = autocommit
            if told:
                writer.expect(connection, told, translate)
                _sqlalchemy.when_executed(context, functools.partial(writer.returned, connection, state))
        else:
            known = known_transaction_of(connection)
            if known is None or not known.wrote:
                return None
            state = known
            state.autocommit = False
        if state.autocommit or (text and ends_transaction(statement, connection.dialect.name)):
            self._cache.writer.begin_fence(connection, state)
        return state if state.fence or state.autocommit else None

    def _failed(self, connection: Connection, fenced: Transaction | None, error: BaseException) -> None:
        if fenced is not None and (fenced.fence or fenced.autocommit):
            self._cache.writer.end_fence(fenced, outcome_of(error))
        if not connection.closed and not connection.invalidated and connection.in_transaction():
            transaction_of(connection).failed = True

    # what is cached

    def _mapper_constructed(self, mapper: Mapper[Any], class_: type) -> None:
        self._cache.entities.changed()
        config_of(class_)  # a wrong declaration is an error where it is written

    def _table_attached(self, table: Table, parent: Any) -> None:
        self._cache.entities.changed()


def _begin(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def begin(self: Connection, *args: Any) -> None:
        state = transaction_of(self)
        if state.began is not None and not shares_transactions(self.engine.pool):
            # Its last user has not ended it here: the pool has rolled it back. But a COMMIT that SQLite refuses leaves
            # its transaction open, and the pool hands it on.
            if not _sqlalchemy.in_transaction(self.connection.dbapi_connection):
                state.end()
        now = time.monotonic()
        original(self, *args)
        if state.began is None:  # a shared DBAPI connection may have begun before
            state.began = now
        _sqlalchemy.hold(self, state)

    return begin


def _rollback(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def rollback(self: Connection, *args: Any) -> None:
        state = _sqlalchemy.held_by(self) or known_transaction_of(self)
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
