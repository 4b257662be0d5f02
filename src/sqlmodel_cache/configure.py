"""`SQLModelCache`: the one switch of the library."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from . import _sqlalchemy
from ._entities import Entities
from ._queries import Queries
from .cache import Cache
from .config import COMMIT_TIMEOUT, TIMEOUT, Duration, Namespace, Settings
from .errors import ConfigurationError
from .explanation import Explanation, explain
from .metrics import Stats
from .session import Hooks
from .transport import (
    AsyncTransport,
    MemoryTransport,
    RedisAsyncTransport,
    RedisSyncTransport,
    SyncTransport,
)
from .transport.redis import from_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

T = TypeVar("T")

Bind: TypeAlias = "Session | Connection | Engine | AsyncBind"
AsyncBind: TypeAlias = "AsyncSession | AsyncConnection | AsyncEngine"


class SQLModelCache:
    """Switches caching on and off for this process. It is never instantiated."""

    _lock: ClassVar[threading.Lock] = threading.Lock()  # guards the two below
    _cache: ClassVar[Cache | None] = None
    _hooks: ClassVar[Hooks | None] = None

    @classmethod
    def configure(
        cls,
        transport: SyncTransport | AsyncTransport | str | None = None,
        *,
        default_ttl: Duration = 300,
        key_prefix: str = "sqlmodelcache",
        enabled: bool = True,
        async_transport: AsyncTransport | None = None,
        namespace: Namespace | None = None,
        fence_ttl: Duration = 60,
        on_unreachable: Literal["serve", "refuse"] = "serve",
        snapshot_reads: Literal["requested", "database"] = "requested",
        fill_wait: Duration | None = 0.25,
        timeout: Duration = TIMEOUT,
        commit_timeout: Duration = COMMIT_TIMEOUT,
    ) -> None:
        """Make `session.get()` answer from a cache, in this process, from now on. A second call replaces the first.

        Call it before the transactions that it shall know of begin.

        Args:
            transport: a `RedisSyncTransport`, a `RedisAsyncTransport`, a Redis URL, or None for a `MemoryTransport`,
                which serves one process. One is enough for both kinds of sessions when the other can be derived.
            default_ttl: seconds until a cached row expires, where neither call nor model says otherwise. Up to a
                tenth is taken off at random.
            key_prefix: the first part of every key.
            enabled: False reads and fills nothing; commits still invalidate, for the processes that do.
            async_transport: for `AsyncSession`, where it cannot be derived from `transport`.
            namespace: names the database in keys, in place of its own identity; or a callable that does, given the
                session, or None for a connection without one.
            fence_ttl: seconds after which a fence that nobody releases lapses. It must outlive any COMMIT.
            on_unreachable: "serve" commits although the cache cannot be told, and tells it later; "refuse" raises
                `InvalidationError` from `commit()` and rolls back.
            snapshot_reads: "requested" reads the database where somebody asked for REPEATABLE READ or above;
                "database" does so, once a transaction has begun, where that is merely the database's default, too.
            fill_wait: seconds for which a get that misses waits for another one, here or in another process, that is
                about to store the same row; then it reads the database itself. None never waits.
            timeout: seconds that one read of the cache may take, before it counts as a miss. A Redis transport that
                was made with a time-out of its own keeps it.
            commit_timeout: seconds that one attempt to invalidate may take, before and after a COMMIT; as above.

        Raises:
            ConfigurationError: an argument is wrong; the previous configuration stays.
        """
        sync_side, async_side = _both(transport, async_transport)
        given = sync_side if transport is None or isinstance(transport, str) else transport
        settings = Settings(
            transport=async_side if given is None else given,
            async_transport=async_transport,
            default_ttl=default_ttl,
            key_prefix=key_prefix,
            enabled=enabled,
            namespace=namespace,
            fence_ttl=fence_ttl,
            on_unreachable=on_unreachable,
            snapshot_reads=snapshot_reads,
            fill_wait=fill_wait,
            timeout=timeout,
            commit_timeout=commit_timeout,
        )
        cache = Cache(settings, sync_side, async_side)
        cache.entities.check()
        for side in (sync_side, async_side):
            if isinstance(side, RedisSyncTransport | RedisAsyncTransport):
                side.limit(settings.timeout_ms, settings.commit_timeout_ms)
        with cls._lock:
            cls._remove()
            hooks = Hooks(cache)
            hooks.install()
            cls._cache, cls._hooks = cache, hooks

    @classmethod
    def reset(cls) -> None:
        """Leave SQLAlchemy and SQLModel exactly as they were found. Does nothing when nothing is configured.

        In an asyncio application, `await SQLModelCache.aclose()` first closes what only its event loop can.
        """
        with cls._lock:
            cls._remove()

    @classmethod
    async def aclose(cls) -> None:
        """Close the connections that the library opened in this event loop; clients that you gave stay open.

        The cache stays configured, and opens new connections when it is used again.
        """
        cache = cls._cache
        if cache is not None and cache.driver.async_transport is not None:
            await cache.driver.async_transport.aclose()

    @classmethod
    def invalidate(cls, model: type, pk: object = None, *, bind: Bind | None = None) -> None:
        """Invalidate one row, or the whole table, for a writer that no hook can see. Does nothing unless configured.

        Every get that begins after this has returned reads the database.

        Args:
            model: a class with a `__cache_config__`.
            pk: its primary key, a tuple if it has several columns; None for the whole table, at the same cost however
                many rows are cached.
            bind: a session or connection: inside a transaction the row joins its write set, and is invalidated when
                it commits. Or an engine: now, in its database. None: now, in every database that this process uses,
                where neither a `schema_translate_map` nor a namespace callable makes many of one.

        Raises:
            ConfigurationError: the model is not cached, the key is not one of its keys, no database is known.
            InvalidationError: in `refuse` mode, when the cache does not answer.
        """
        if cls._cache is not None:
            table, text = cls._cache.entities.named(model, pk)
            cls._cache.writer.invalidate([table], text, _sync_bind(bind, model))

    @classmethod
    def invalidate_all(cls, *, bind: Bind | None = None) -> None:
        """Invalidate every row of every cached model. Arguments and errors as in `invalidate`."""
        if cls._cache is not None:
            cls._cache.writer.invalidate(cls._cache.entities.all_tables(), None, _sync_bind(bind, None))

    @classmethod
    async def ainvalidate(cls, model: type, pk: object = None, *, bind: AsyncBind | None = None) -> None:
        """`invalidate`, in an event loop."""
        await _sqlalchemy.in_new_greenlet(cls.invalidate, model, pk, bind=bind)

    @classmethod
    async def ainvalidate_all(cls, *, bind: AsyncBind | None = None) -> None:
        """`invalidate_all`, in an event loop."""
        await _sqlalchemy.in_new_greenlet(cls.invalidate_all, bind=bind)

    @classmethod
    def get_many(
        cls,
        session: Session,
        entity: type[T],
        idents: Iterable[Any],
        *,
        execution_options: Mapping[str, Any] | None = None,
    ) -> list[T | None]:
        """Return the rows with these primary keys, in the order given, with None for each that does not exist.

        Each is what `session.get` would return, under the same guarantee. However many there are, all are looked up
        in one round trip, all misses are read by one SELECT, and stored in two more round trips.

        Args:
            session: the session that they shall be in.
            entity: a mapped class; one that is not cached is read by the SELECT.
            idents: primary keys as `session.get` takes them, none of them twice.
            execution_options: as for `session.get`: `{"cache": False}`, `{"cache_ttl": 60}`.

        Raises:
            ConfigurationError: something that is not a primary key of the class, or is given twice; nothing was read.
        """
        return cls._queries().get_many(session, entity, idents, execution_options or {})

    @classmethod
    async def aget_many(
        cls,
        session: AsyncSession,
        entity: type[T],
        idents: Iterable[Any],
        *,
        execution_options: Mapping[str, Any] | None = None,
    ) -> list[T | None]:
        """`get_many`, for an `AsyncSession`."""
        return await _sqlalchemy.in_new_greenlet(
            cls.get_many, session.sync_session, entity, idents, execution_options=execution_options
        )

    @classmethod
    def get_by(
        cls, session: Session, entity: type[T], *, execution_options: Mapping[str, Any] | None = None, **key: Any
    ) -> T | None:
        """Return the row with these values of a unique key, or None: `get_by(session, Hero, email="a@b.c")`.

        It is what `select(Hero).where(Hero.email == "a@b.c")` would find, from the cache under the guarantee of a
        `get`: one round trip finds the primary key, a second the row, which is checked to have the key. "No such row"
        is not cached.

        Args:
            session: the session that it shall be in.
            entity: a mapped class; one that is not cached is read by the SELECT.
            execution_options: as for `session.get`.
            **key: the values of a key that the class declares, `CacheConfig(unique=[("email",)])`.

        Raises:
            ConfigurationError: the key is not declared, or not unique by the table's own word; nothing was read.
            MultipleResultsFound: from a SELECT on a class that is not cached, where the key is not unique.
        """
        found: T | None = cls._queries().get_by(session, entity, key, execution_options or {})
        return found

    @classmethod
    async def aget_by(
        cls, session: AsyncSession, entity: type[T], *, execution_options: Mapping[str, Any] | None = None, **key: Any
    ) -> T | None:
        """`get_by`, for an `AsyncSession`."""
        return await _sqlalchemy.in_new_greenlet(
            cls.get_by, session.sync_session, entity, execution_options=execution_options, **key
        )

    @classmethod
    def get_config(cls) -> Settings | None:
        """Return what `configure()` was told, or None when nothing is configured."""
        cache = cls._cache
        return None if cache is None else cache.settings

    @classmethod
    def stats(cls) -> Stats:
        """Return what this process has counted since `configure()`; zeros when nothing is configured."""
        cache = cls._cache
        return Stats() if cache is None else cache.counters.snapshot()

    @classmethod
    def explain(cls, model: type) -> Explanation:
        """Return whether and how gets of a model are cached, and what has kept rows of it from being stored.

        Raises:
            ConfigurationError: the model is not a mapped class.
        """
        cache = cls._cache
        if cache is None:
            return explain(model, None, Entities(), {})
        return explain(model, cache.settings, cache.entities, cache.reader.not_stored)

    @classmethod
    def _queries(cls) -> Queries:
        return (cls._cache or _nothing_cached()).queries

    @classmethod
    def _remove(cls) -> None:
        if cls._hooks is not None:
            cls._hooks.remove()
        if cls._cache is not None:
            cls._cache.close()
        cls._cache = cls._hooks = None


@functools.cache
def _nothing_cached() -> Cache:
    """Return what answers reads of many rows while nothing is configured."""
    return Cache(Settings(None, None, enabled=False), None, None)


def _sync_bind(bind: Any, model: type | None) -> Engine | Connection | None:
    """Return the engine or connection behind what a caller gave."""
    bind = getattr(bind, "sync_session", None) or getattr(bind, "sync_connection", None) or bind
    bind = getattr(bind, "sync_engine", None) or bind
    if isinstance(bind, Session):
        arguments: dict[str, Any] = {} if model is None else {"mapper": model}
        return bind.connection(bind_arguments=arguments) if bind.in_transaction() else bind.get_bind(**arguments)
    if bind is not None and not isinstance(bind, Engine | Connection):
        raise ConfigurationError("bind", bind, "give a session, a connection or an engine")
    return bind


def _both(transport: Any, async_transport: Any) -> tuple[SyncTransport | None, AsyncTransport | None]:
    """Return the transports of both kinds of sessions; None where none can be derived: an error when it is used."""
    if async_transport is not None and not _is(async_transport, AsyncTransport):
        raise ConfigurationError("async_transport", async_transport, "give a RedisAsyncTransport(redis.asyncio.Redis)")
    if transport is None and async_transport is None:
        return MemoryTransport(), None
    if isinstance(transport, str):
        sync, derived = from_url(transport)
        return sync, derived if async_transport is None else async_transport
    if _is(transport, AsyncTransport) and async_transport is None:
        transport, async_transport = None, transport
    if transport is not None and not _is(transport, SyncTransport):
        raise ConfigurationError(
            "transport",
            transport,
            "give a RedisSyncTransport, a RedisAsyncTransport, a MemoryTransport, a redis:// URL or None; "
            "a Redis client goes into one of the first two",
        )
    if transport is None and isinstance(async_transport, RedisAsyncTransport):
        transport = _twin(async_transport)
    if async_transport is None and isinstance(transport, RedisSyncTransport):
        async_transport = _twin(transport)
    return transport, async_transport


def _is(transport: object, kind: type) -> bool:
    return isinstance(transport, kind) and not isinstance(transport, type)


def _twin(transport: RedisSyncTransport | RedisAsyncTransport) -> Any:
    try:
        return transport.twin()
    except ConfigurationError:  # an application may never need the other kind; where it does, it is told
        return None
