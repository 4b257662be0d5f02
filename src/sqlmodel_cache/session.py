"""The hooks on SQLAlchemy's sessions and connections: the shell, which decides nothing.

    Session.get                         -> Cache.get
    every statement of every connection -> Cache.record, into the connection's write set
    a connection's outermost COMMIT     -> Cache.commit around it
    a connection's outermost ROLLBACK   -> the write set is forgotten

The outermost COMMIT is a connection's, not a session's: `after_commit` fires on a SAVEPOINT's release, a session that
joined an outer transaction commits nothing, and `engine.begin()` has no session at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqlalchemy import Table, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import Pool

from . import _sqlalchemy
from ._effects import Outcome
from ._entities import config_of
from ._statements import ends_transaction, is_text, isolates
from ._writeset import forget, known_transaction_of, transaction_of
from .cache import Cache, outcome_of
from .errors import InvalidationError

_DDL_COMMITS = frozenset({"mysql", "mariadb", "oracle"})


class Hooks:
    """All that is changed in SQLAlchemy between `install` and `remove`."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._patches = _sqlalchemy.Patches()
        self._listeners: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
            (Engine, "before_cursor_execute", self._before_cursor_execute),
            (Engine, "after_cursor_execute", self._after_cursor_execute),
            (Engine, "handle_error", self._handle_error),
            (Pool, "checkin", self._checkin),
            (Mapper, "after_mapper_constructed", self._mapper_constructed),
            (Table, "after_parent_attach", self._table_attached),
        )

    def install(self) -> None:
        """Hook in."""
        self._patches.replace(Session, "get", self._get)
        self._patches.replace(Session, "_merge", _merge)
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
            event.remove(target, name, listener)

    # --- sessions ------------------------------------------------------------------------------------------------------

    def _get(self, original: Callable[..., Any]) -> Callable[..., Any]:
        cache = self._cache

        @functools.wraps(original)
        def get(self: Session, entity: Any, ident: Any, **options: Any) -> Any:
            return cache.get(self, entity, ident, options, lambda: original(self, entity, ident, **options))

        return get

    # --- connections ---------------------------------------------------------------------------------------------------

    def _commit(self, original: Callable[..., None]) -> Callable[..., None]:
        cache = self._cache

        @functools.wraps(original)
        def commit(self: Connection, *args: Any) -> None:
            state = known_transaction_of(self)
            if state is None or not state.writes:
                original(self, *args)
            else:
                try:
                    cache.commit(state, lambda: original(self, *args))
                except InvalidationError:
                    self.connection.rollback()
                    state.end()
                    raise
            if state is not None:
                state.end()

        return commit

    def _before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        text = is_text(context)
        if text and isolates(statement):
            transaction_of(connection).isolated = True
        writes = self._cache.statements.writes_of(context, statement)
        if writes:
            state = self._cache.record(connection, writes, context.execution_options.get("schema_translate_map"))
            if _commits_itself(connection, context) or (text and ends_transaction(statement)):
                self._cache.begin_fence(state)
        elif text and ends_transaction(statement):
            known = known_transaction_of(connection)
            if known is not None:
                self._cache.begin_fence(known)

    def _after_cursor_execute(self, connection: Connection, *_: Any) -> None:
        state = known_transaction_of(connection)
        if state is not None and state.fence is not None:
            self._cache.end_fence(state, Outcome.COMMITTED)

    def _handle_error(self, context: Any) -> None:
        connection = context.connection
        state = None if connection is None else known_transaction_of(connection)
        if state is not None and state.fence is not None:
            error = context.sqlalchemy_exception or context.original_exception
            self._cache.end_fence(state, outcome_of(error) if isinstance(error, Exception) else Outcome.UNKNOWN)

    def _checkin(self, dbapi_connection: Any, record: Any) -> None:
        forget(record.info)

    # --- what is cached --------------------------------------------------------------------------------------------------

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


def _commits_itself(connection: Connection, context: Any) -> bool:
    if context.isddl and connection.dialect.name in _DDL_COMMITS:
        return True
    return _sqlalchemy.isolation_level(connection)[0] == "AUTOCOMMIT"
