"""Every use of SQLAlchemy's private API, and nothing else. `tests/test_private_api.py` fails when one of them moves.

Why each is needed: there is no public hook around `Session.get`, none after a connection's COMMIT, and no public way
to make a persistent object without a statement.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.mutable import Mutable
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.util import concurrency as _concurrency

T = TypeVar("T")

# `await_only` became `await_` in SQLAlchemy 2.1.
_await: Any = getattr(_concurrency, "await_", None) or _concurrency.await_only
in_greenlet: Callable[[], bool] = _concurrency.in_greenlet

IdentityKey = tuple[type, tuple[Any, ...], Any]


def wait_for(awaitable: Awaitable[T]) -> T:
    """Return the awaitable's result from sync code that runs inside an `AsyncSession`'s greenlet."""
    return cast("T", _await(awaitable))


def mappers() -> Iterator[Mapper[Any]]:
    """Return every mapper that exists now."""
    for registry in _all_registries():
        yield from registry.mappers


# --- the session ---------------------------------------------------------------------------------------------------


def is_flushing(session: Session) -> bool:
    """Return whether the session is inside `flush()`."""
    return session._flushing


def autoflush(session: Session) -> None:
    """Flush as a SELECT would: if autoflush is on, and with its wording in errors."""
    session._autoflush()


def autobegin(session: Session) -> None:
    """Begin the session's own transaction as a SELECT would, without a connection.

    Then `rollback()` expires what a hit returned, `begin()` raises, and a closed session raises, as they do without
    a cache.
    """
    session._autobegin_t()


def connections(session: Session) -> list[Connection]:
    """Return the connections that the session's transaction holds; opens none."""
    transaction = session.get_transaction()
    if transaction is None:
        return []
    return list({id(held[0]): held[0] for held in transaction._connections.values()}.values())


def attach(session: Session, mapper: Mapper[Any], key: IdentityKey, values: dict[str, Any]) -> Any:
    """Return a new persistent instance with these loaded values, as `sqlalchemy.orm.loading` leaves one.

    `__init__` is not called; load events fire; the instance is in the session's identity map and not modified.
    """
    manager = mapper.class_manager
    instance = manager.new_instance()
    state = instance_state(instance)
    state.key = key
    state.session_id = session.hash_key
    session.identity_map._add_unpresent(state, key)
    state.load_path = mapper._path_registry
    state.dict.update(values)
    dispatch = manager.dispatch
    if dispatch.load:
        dispatch.load(state, None)
    if session.dispatch.loaded_as_persistent:
        session.dispatch.loaded_as_persistent(session, state)
    if state.modified:
        state._commit_all(state.dict, session.identity_map)
    return instance


def loaded_values(mapper: Mapper[Any], instance: object, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the values that a SELECT has just given to an instance, or None if they cannot be told.

    They cannot when an attribute is missing or a load event has changed one. A `Mutable` value is unwrapped: its load
    event will wrap it again.
    """
    state = instance_state(instance)
    if state.modified or state.expired_attributes:
        return None
    held: Mapping[str, Any] = state.dict
    values = {name: held[name] for name in names if name in held}
    if len(values) != len(names):
        return None
    return {name: _unwrapped(value) if isinstance(value, Mutable) else value for name, value in values.items()}


def identity_of(mapper: Mapper[Any], instance: object) -> IdentityKey | None:
    """Return the identity key that the database's row gave to an instance."""
    return cast("IdentityKey | None", instance_state(instance).key)


def _unwrapped(value: Any) -> Any:
    for plain in (dict, list, set):
        if isinstance(value, plain):
            return plain(value)
    return value  # the codec will refuse it


# --- the engine ----------------------------------------------------------------------------------------------------


def isolation_level(bind: Engine | Connection) -> tuple[str, bool]:
    """Return the isolation level, and whether somebody asked for it; sends no SQL. '' when it is not yet known."""
    asked = bind.get_execution_options().get("isolation_level") or bind.dialect._on_connect_isolation_level
    if asked:
        return str(asked).upper().replace("_", " "), True
    return str(getattr(bind.dialect, "default_isolation_level", None) or "").upper(), False


def assigned(statement: Insert | Update) -> Mapping[Any, Any]:
    """Return the columns, or names, to which a statement itself gives values; parameters may give others."""
    pairs = [*(statement._values or {}).items(), *(getattr(statement, "_ordered_values", None) or ())]
    for rows in statement._multi_values:
        pairs += [pair for row in rows if isinstance(row, dict) for pair in row.items()]
    return dict(pairs)


# --- what is replaced ----------------------------------------------------------------------------------------------

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

    def restore(self) -> None:
        """Put every original back."""
        while self._replaced:
            owner, name, original = self._replaced.pop()
            setattr(owner, name, original)
