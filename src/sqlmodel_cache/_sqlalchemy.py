"""Every use of SQLAlchemy's private API, and nothing else. `tests/test_private_api.py` fails when one of them moves.

Why each is needed: there is no public hook around `Session.get`, none after a connection's COMMIT, and no public way
to make a persistent object without a statement.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from importlib import import_module
from types import MappingProxyType
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, and_, event, or_, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy
from sqlalchemy.engine.util import TransactionalContext
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty, Session, strategies
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import DEFAULT_STATE_ATTR as STATE_ATTR
from sqlalchemy.orm.base import PASSIVE_OFF
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.orm.session import (
    SessionTransaction,
    SessionTransactionOrigin,
    SessionTransactionState,
    _SessionCloseState,
)
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.util import concurrency as _concurrency

T = TypeVar("T")

# `await_only` became `await_` in SQLAlchemy 2.1.
_await: Any = getattr(_concurrency, "await_", None) or _concurrency.await_only
in_greenlet: Callable[[], bool] = _concurrency.in_greenlet
AsyncSession: Any = None
try:
    import_module("greenlet")
except ImportError:  # SQLAlchemy 2.1 needs it for asyncio only, and raises when it is asked without it

    def in_greenlet() -> bool:
        """Return False: there are none."""
        return False
else:
    AsyncSession = import_module("sqlalchemy.ext.asyncio").AsyncSession


# `LazyLoader` became `_LazyLoader` in SQLAlchemy 2.1. There is one for each relationship and way to load it.
LazyLoader: Any = getattr(strategies, "_LazyLoader", None) or vars(strategies)["LazyLoader"]

IdentityKey = tuple[type, tuple[Any, ...], Any]


def wait_for(awaitable: Awaitable[T]) -> T:
    """Return the awaitable's result from sync code that runs inside an `AsyncSession`'s greenlet."""
    return cast("T", _await(awaitable))


async def in_new_greenlet(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return what a sync function returns that may wait for awaitables, as an `AsyncSession` runs one."""
    return cast("T", await _concurrency.greenlet_spawn(function, *args, **kwargs))


def mappers() -> Iterator[Mapper[Any]]:
    """Return every mapper that exists now."""
    for registry in _all_registries():
        for reference in registry._managers.keyrefs():  # a copy: another thread may be mapping
            manager = reference()
            if manager is not None and manager.is_mapped:  # AbstractConcreteBase, DeferredReflection: mapped later
                yield manager.mapper


def identity_class(mapper: Mapper[Any]) -> type:
    """Return the class in the identity keys of a mapper's instances: its base's, unless it is not polymorphic."""
    return mapper._identity_class


def path_of(mapper: Mapper[Any]) -> Any:
    """Return what an instance remembers of the get that has loaded it, for the loads that follow."""
    return mapper._path_registry


def selected_with(mapper: Mapper[Any]) -> list[Mapper[Any]]:
    """Return the mappers whose columns a SELECT of the class fetches: its own, and subclasses by with_polymorphic."""
    return list({mapper, *mapper._with_polymorphic_mappers})


def load_order(mapper: Mapper[Any]) -> list[str]:
    """Return attribute names in the order in which a SELECT sets them; it differs from process to process."""
    return [prop.key for prop in mapper._prop_set]


# the session


def is_flushing(session: Session) -> bool:
    """Return whether the session is inside `flush()`."""
    return session._flushing


def is_unused(session: Session) -> bool:
    """Return whether a session is one that has done nothing yet, or nothing but gets that were hits.

    It holds no connection, has nothing to flush, no execution options, and no listener that may change statements.
    """
    transaction: Any = session._transaction
    if transaction is not None:
        if transaction._connections or transaction._parent is not None or not transaction.is_active:
            return False
    if session._flushing or session._new or session._deleted or session.identity_map._modified:
        return False
    return not getattr(session, "execution_options", None) and not session.dispatch.do_orm_execute


def is_current(instance: object, mapper: Mapper[Any]) -> bool:
    """Return whether a get of the class would return an instance of the identity map without looking further."""
    return mapper.inherits is None and isinstance(instance, mapper.class_) and not instance_state(instance).expired


def is_complete(instance: object, mapper: Mapper[Any]) -> bool:
    """Return whether a SELECT of the class would leave an instance of the identity map as it is."""
    return is_current(instance, mapper) and not instance_state(instance).expired_attributes


def autoflush(session: Session) -> None:
    """Flush as a SELECT would: if autoflush is on, and with its wording in errors."""
    session._autoflush()


def autobegin(session: Session) -> None:
    """Begin the session's own transaction as a SELECT would, without a connection.

    Then `rollback()` expires what a hit returned, `begin()` raises, and a closed session raises, as they do without
    a cache.
    """
    if session._transaction is not None:
        TransactionalContext._trans_ctx_check(session)  # inside the block of a transaction that has ended
    elif (
        _BEGINS_LIGHTLY
        and session.autobegin
        and session._trans_context_manager is None
        and session._close_state is not _CLOSED
    ):
        Begun(session)
    else:
        session._autobegin_t()  # checks that, too


def _empty(transaction: object) -> weakref.WeakKeyDictionary[Any, Any]:
    return weakref.WeakKeyDictionary()


class Begun(SessionTransaction):
    """The transaction of a session that a get has begun: it opens nothing, and most sessions do no more than read.

    What it may have to restore is kept from when there is something to keep: the four dictionaries of a snapshot, all
    empty at first, take longer than a look-up. It is in the same state as one that the session itself begins.
    """

    nested = False
    origin = SessionTransactionOrigin.AUTOBEGIN

    _new: Any = cached_property(_empty)
    _deleted: Any = cached_property(_empty)
    _dirty: Any = cached_property(_empty)
    _key_switches: Any = cached_property(_empty)

    def __init__(self, session: Session) -> None:
        self.session = session
        self._connections = {}
        self._parent = None
        self._state = SessionTransactionState.ACTIVE
        session._transaction = self
        session.dispatch.after_transaction_create(session, self)

    def close(self, invalidate: bool = False) -> None:
        """End it. Nothing is to be given back where nothing was opened."""
        if self._connections or self._current_fn is not None:
            super().close(invalidate)
            return
        session = self.session
        session._transaction = None
        self._state = SessionTransactionState.CLOSED
        session.dispatch.after_transaction_end(session, self)


# Who prints it, or its type, sees what he has always seen.
Begun.__name__, Begun.__qualname__ = SessionTransaction.__name__, SessionTransaction.__qualname__
Begun.__module__ = SessionTransaction.__module__


def _uses(method: Any, names: str) -> bool:
    """Return whether a method's code refers to just these names."""
    return set(getattr(method, "__wrapped__", method).__code__.co_names) == set(names.split())


_CLOSED = _SessionCloseState.CLOSED

# A release whose own transactions do something else begins them itself.
_BEGINS_LIGHTLY = (
    _uses(
        SessionTransaction.__init__,
        "TransactionalContext _trans_ctx_check session _connections _parent SessionTransactionOrigin BEGIN_NESTED "
        "nested origin _close_state _SessionCloseState CLOSED sa_exc InvalidRequestError _nested_transaction "
        "_previous_nested_transaction SUBTRANSACTION SessionTransactionState ACTIVE _state _take_snapshot "
        "_transaction dispatch after_transaction_create",
    )
    and _uses(
        SessionTransaction._take_snapshot,
        "_is_transaction_boundary _parent _new _deleted _dirty _key_switches origin SessionTransactionOrigin BEGIN "
        "AUTOBEGIN session _flushing flush weakref WeakKeyDictionary",
    )
    and _uses(
        SessionTransaction.close,
        "nested _previous_nested_transaction session _nested_transaction _parent _transaction set _connections values "
        "invalidate is_active close SessionTransactionState CLOSED _state dispatch after_transaction_end",
    )
)


def options_of(session: Session) -> Mapping[str, Any] | None:
    """Return the session's own execution options, which are new in SQLAlchemy 2.1."""
    return getattr(session, "execution_options", None)


def binds_plainly(session_class: type[Session]) -> bool:
    """Return whether sessions of a class choose a bind as SQLAlchemy's own do: by the mapper alone."""
    return session_class.get_bind is Session.get_bind and not issubclass(session_class, ShardedSession)


def bind_of(session: Session, mapper: Mapper[Any]) -> Engine | Connection:
    """Return the bind that a SELECT of a mapped class would use. An application's own session may look at the SELECT.

    Raises what `Session.get_bind` raises.
    """
    if type(session).get_bind is Session.get_bind:
        return session.get_bind(mapper=mapper)
    return session.get_bind(mapper=mapper, clause=select(mapper))


def connections(session: Session) -> list[Connection]:
    """Return the connections that the session's transaction holds; opens none."""
    transaction = session.get_transaction()
    if transaction is None:
        return []
    return list({id(held[0]): held[0] for held in transaction._connections.values()}.values())


class Maker:
    """Makes persistent instances of one class from loaded values, as `sqlalchemy.orm.loading` leaves them.

    `path` is where their load began, and `expired` are attributes that the next access loads.
    """

    def __init__(self, mapper: Mapper[Any], path: Any, expired: Collection[str]) -> None:
        self._class: Any = mapper.class_
        self._manager = mapper.class_manager
        self._state_of = mapper.class_manager._state_constructor
        self._path = path
        self._expired = expired
        # Both of these would only put it there, the second in many more steps.
        setter: Any = mapper.class_.__setattr__
        self._sets_plainly = setter is object.__setattr__ or setter.__module__ == "sqlmodel.main"

    def is_quiet(self, session: Session) -> bool:
        """Return whether nobody listens to what `attach` does: a listener may load something, and wait for it."""
        return not (self._manager.dispatch.load or session.dispatch.loaded_as_persistent) and self._sets_plainly

    def attach(self, session: Session, key: IdentityKey, values: dict[str, Any], path: Any = None) -> Any:
        """Return a new instance with these values, or the one that the session has meanwhile.

        `path` is where its load began, if not with the class.

        `__init__` is not called; load events fire; the instance is in the session's identity map and not modified.
        """
        identities: Any = session.identity_map
        if key in identities._dict:  # two tasks on one AsyncSession
            present = identities.get(key)
            if present is not None:
                return present
        instance: Any = self._class.__new__(self._class)
        state = self._state_of(instance, self._manager)
        loaded = instance.__dict__
        if self._sets_plainly:
            loaded[STATE_ATTR] = state
        else:
            self._manager._state_setter(instance, state)
        state.key = key
        state.session_id = session.hash_key
        identities._dict[key] = state  # what its `_add_unpresent` does
        state._instance_dict = identities._wr
        state.load_path = self._path if path is None else path
        state.load_options = ()
        loaded.update(values)
        if self._expired:
            state.expired_attributes.update(self._expired)
        listeners = self._manager.dispatch.load
        if listeners:
            listeners(state, None)
        persistent = session.dispatch.loaded_as_persistent
        if persistent:
            persistent(session, state)
        if state.modified:
            state._commit_all(state.dict, session.identity_map)
        return instance


Take = Callable[[type, dict[str, Any], set[str]], None]  # a class, loaded attributes, and names of expired ones


_NO_TAKES: tuple[Any, Mapping[IdentityKey, Take]] = None, MappingProxyType({})


class LoadProbe:
    """Sees what a SELECT gave to an instance, before a load event of the application can change it."""

    def __init__(self) -> None:
        # Of one session: a listener may load the same key from another database.
        self._taking: ContextVar[tuple[Any, Mapping[IdentityKey, Take]]] = ContextVar(
            "sqlmodel_cache_taking", default=_NO_TAKES
        )
        self._watched: list[type] = []

    def load(
        self,
        session: Session,
        mappers: Sequence[Mapper[Any]],
        takes: Mapping[IdentityKey, Take],
        load: Callable[[], T],
        instances: Callable[[T], Iterable[Any]],
    ) -> T:
        """Return what `load()` returns, after each of `takes` was given the instance with its key.

        A take is not called when there is no such row, or when another listener would be first to see it.
        `instances` tells which instances of one of the mappers are in a result. One that the session had before is
        given to nobody: a SELECT leaves it as it was, with an older row's values, or with changes of its own.
        """
        takes = {key: take for key, take in takes.items() if key not in session.identity_map}
        if not session.dispatch.loaded_as_persistent and not any(m.class_manager.dispatch.load for m in mappers):
            result = load()
            for instance in instances(result):
                if instance is not None:
                    state = instance_state(instance)
                    take = takes.get(state.key) if state.key is not None else None
                    if take is not None:
                        _give(state, take)
            return result
        for mapper in mappers:
            if mapper.class_ not in self._watched:
                self._watched.append(mapper.class_)
                event.listen(mapper.class_, "load", self._loaded, raw=True, insert=True)
        token = self._taking.set((session.hash_key, takes))
        try:
            return load()
        finally:
            self._taking.reset(token)

    def _loaded(self, state: InstanceState[Any], context: object) -> None:
        session_id, takes = self._taking.get()
        if takes and state.session_id == session_id and state.key is not None and state.key in takes:
            if next(iter(state.manager.dispatch.load), None) == self._loaded:
                _give(state, takes[state.key])

    def close(self) -> None:
        """Stop watching."""
        while self._watched:
            class_ = self._watched.pop()
            if event.contains(class_, "load", self._loaded):  # its mapper may have been disposed of
                event.remove(class_, "load", self._loaded)


def _give(state: InstanceState[Any], take: Take) -> None:
    take(state.class_, state.dict, state.expired_attributes)


def identity_of(instance: object) -> IdentityKey | None:
    """Return the identity key that the database's row gave to an instance."""
    return cast("IdentityKey | None", instance_state(instance).key)


# lazy loads


def is_look_up(loader: Any) -> bool:
    """Return whether a relationship's lazy load is a SELECT by its target's primary key, and may be sent."""
    return loader.use_get and not loader._raise_always and not loader._raise_on_sql


def lazy_loaders(mapper: Mapper[Any]) -> list[Any]:
    """Return the lazy loaders of a class's relationships that are loaded when they are accessed."""
    loaders = [relationship.strategy for relationship in mapper.relationships]
    return [loader for loader in loaders if isinstance(loader, LazyLoader)]


def relationship_of(loader: Any) -> RelationshipProperty[Any]:
    """Return the relationship that a lazy loader loads."""
    return cast("RelationshipProperty[Any]", loader.parent_property)


def is_plain_load(
    state: InstanceState[Any],
    passive: Any,
    option: Any,
    extra_criteria: Any,
    extra_options: Any,
    path: Any,
    execution_options: Any,
) -> bool:
    """Return whether a lazy load is an access to the attribute of a persistent object, and nothing more.

    Others are for an attribute's history, for a pending object, without autoflush, or a part of a larger load.
    """
    if state.key is None or passive != PASSIVE_OFF:
        return False
    return option is None and path is None and not (extra_criteria or extra_options or execution_options)


def path_of_lazy_load(parent: Mapper[Any], relationship: RelationshipProperty[Any]) -> Any:
    """Return what an instance remembers of the lazy load that has loaded it, for the loads that follow."""
    return parent._path_registry[relationship] + path_of(relationship.mapper)


# statements of its own


def select_many(
    session: Session, mapper: Mapper[Any], pks: Sequence[tuple[Any, ...]], options: Mapping[str, Any]
) -> Sequence[Any]:
    """Return the rows with these primary keys, in no order, by one SELECT."""
    columns = mapper.primary_key
    criterion: ColumnElement[bool]
    if len(columns) == 1:
        criterion = columns[0].in_([pk[0] for pk in pks])
    else:
        criterion = or_(*(and_(*(column == part for column, part in zip(columns, pk, strict=True))) for pk in pks))
    return session.scalars(select(mapper.class_).where(criterion), execution_options=options).unique().all()


def select_by(session: Session, mapper: Mapper[Any], values: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return the row with these values of attributes, or None. Raises MultipleResultsFound."""
    statement = select(mapper.class_).filter_by(**values)
    return session.scalars(statement, execution_options=options).unique().one_or_none()


# the engine


def isolation_level(bind: Engine | Connection, session_options: Mapping[str, Any] | None = None) -> tuple[str, bool]:
    """Return the isolation level, and whether somebody asked for it; sends no SQL. '' when it is not yet known."""
    asked = (session_options or {}).get("isolation_level") or bind.get_execution_options().get("isolation_level")
    asked = asked or bind.dialect._on_connect_isolation_level
    if asked:
        return str(asked).upper().replace("_", " "), True
    level = str(getattr(bind.dialect, "default_isolation_level", None) or "").upper()
    # PostgreSQL's own default is READ COMMITTED; where it is more, a role, a database or a connect string asked for it.
    return level, bind.dialect.name == "postgresql" and level not in ("", "READ COMMITTED")


def in_transaction(dbapi_connection: Any) -> bool:
    """Return whether a DBAPI connection says that it is in a transaction; few can tell."""
    return getattr(getattr(dbapi_connection, "driver_connection", dbapi_connection), "in_transaction", False) is True


def commits_each_statement(connection: Connection, sql: str) -> bool:
    """Return whether the statement that is about to run will have been committed when it ends."""
    if isolation_level(connection)[0] == "AUTOCOMMIT":
        return True
    raw: Any = connection.connection.dbapi_connection
    if getattr(raw, "autocommit", None) is True:
        return True
    if connection.dialect.name != "sqlite":
        return False
    # The sqlite3 module begins a transaction before a statement whose first word is one of these, and no other.
    driver: Any = connection.connection.driver_connection
    if getattr(driver, "in_transaction", True):
        return False
    return driver.isolation_level is None or _SQLITE_BEGINS.match(sql) is None


_SQLITE_BEGINS = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:insert|update|delete|replace)\b", re.IGNORECASE | re.DOTALL
)


def can_buffer(context: Any) -> bool:
    """Return whether the rows of a statement may be fetched before its result is made."""
    return not (context.execution_options.get("stream_results") or context.execution_options.get("yield_per"))


_HELD = "_sqlmodel_cache"


def hold(connection: Connection, state: object) -> None:
    """Keep with a connection what is known of the transaction that it has begun: `info` is three steps away."""
    connection.__dict__[_HELD] = state


def held_by(connection: Connection) -> Any:
    """Return what was kept when the connection's transaction began, or None."""
    return connection.__dict__.get(_HELD)


def is_of_the_dialect(connection: Connection) -> bool:
    """Return whether a connection is the one through which a dialect asks a new database what it is."""
    return not connection._allow_autobegin


def when_executed(context: Any, take: Callable[[list[Any]], object]) -> None:
    """Give `take` all rows of a statement once it has run, and leave them to its result.

    Dialects do so that must fetch before a COMMIT.
    """
    post_exec = context.post_exec

    def fetch() -> None:
        post_exec()
        cursor = context.cursor
        rows = list(cursor.fetchall()) if cursor.description is not None else []
        context.cursor_fetch_strategy = FullyBufferedCursorFetchStrategy(
            cursor, cursor.description, initial_buffer=rows
        )
        take(rows)

    context.post_exec = fetch


def assigned(statement: Insert | Update) -> Mapping[Any, Any]:
    """Return the columns, or names, to which a statement itself gives values; parameters may give others."""
    pairs = [*(statement._values or {}).items(), *(getattr(statement, "_ordered_values", None) or ())]
    for rows in statement._multi_values:
        pairs += [pair for row in rows if isinstance(row, dict) for pair in row.items()]
    return dict(pairs)


# what is replaced

merging: ContextVar[bool] = ContextVar("sqlmodel_cache_merging", default=False)


class Patches:
    """Methods of SQLAlchemy classes that are replaced while the library is configured."""

    def __init__(self) -> None:
        self._replaced: list[tuple[type, str, Any]] = []

    def replace(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        """Set `owner.name` to `make(original)`."""
        original = owner.__dict__[name]
        self._replaced.append((owner, name, original))
        setattr(owner, name, make(original))

    def original(self, owner: type, name: str) -> Any:
        """Return what was replaced."""
        return next(original for at, known, original in self._replaced if (at, known) == (owner, name))

    def restore(self) -> None:
        """Put every original back."""
        while self._replaced:
            owner, name, original = self._replaced.pop()
            setattr(owner, name, original)
