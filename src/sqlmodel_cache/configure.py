"""`SQLModelCache`: the one switch of the library."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar, Unpack, overload

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from . import _sqlalchemy
from ._entities import Entities
from ._queries import Queries
from .cache import Cache
from .config import COMMIT_TIMEOUT, TIMEOUT, Duration, Key, Namespace, NearCache, Settings, milliseconds
from .errors import ConfigurationError
from .explanation import Explanation, RowExplanation, explain
from .metrics import Stats
from .session import Hooks
from .tracing import Trace, trace
from .transport import (
    AsyncTransport,
    MemoryTransport,
    RedisAsyncTransport,
    RedisSyncTransport,
    SyncTransport,
)
from .transport.redis import from_url
from .verification import Verification

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

    from .follow import Follower, FollowerOptions

T = TypeVar("T")

Bind: TypeAlias = "Session | Connection | Engine | AsyncBind"
AnyDatabase: TypeAlias = "Engine | AsyncEngine | URL | str"
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
        near_cache: NearCache | None = None,
        max_payload_bytes: int = 1_048_576,
        encryption_key: Key | Sequence[Key] | None = None,
        hash_keys: bool | Literal["rollout"] = False,
        wait_replicas: int = 0,
        timeout: Duration = TIMEOUT,
        commit_timeout: Duration = COMMIT_TIMEOUT,
        verify: float = 0.0,
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
            near_cache: keeps rows of the models with `CacheConfig(near=True)` in this process's memory, in front of
                Redis, under the guarantee of `NearCache`.
            max_payload_bytes: of a stored row. A larger one is not stored, and what is found larger is not decoded.
            encryption_key: 16, 24 or 32 bytes, or their base64 text: what is stored is encrypted and authenticated by
                AES-GCM. Of several keys the first encrypts, and all decrypt. Needs the extra `[encryption]`.
            hash_keys: True puts a hash in the place of the primary key in keys, with a secret if there is an encryption
                key. All processes must agree: "rollout" reads the database and invalidates by every name that
                others may use; deploy it everywhere before True, and before False again.
            wait_replicas: how many replicas of Redis must have a commit's fence before the database's COMMIT is sent:
                all that may be promoted. A fence that they do not have in half a second could not be set, and
                `on_unreachable` decides. docs/operations.md says what it is worth.
            timeout: seconds that one read of the cache may take, before it counts as a miss. A Redis transport that
                was made with a time-out of its own keeps it.
            commit_timeout: seconds that one attempt to invalidate may take, before and after a COMMIT; as above.
            verify: the share of gets' hits that are compared with the database: 0.001 is one in a thousand. A row that
                differs is logged, counted and invalidated. A thread does it, once the caller has its row; with an
                asyncio engine the get that is drawn waits for it, for a second at most, and returns its row then.

        Raises:
            ConfigurationError: an argument is wrong; the previous configuration stays.
        """
        sync_side, async_side = _both(transport, async_transport)
        if wait_replicas and isinstance(sync_side, MemoryTransport):
            raise ConfigurationError("wait_replicas", wait_replicas, "a MemoryTransport has no replicas: give 0")
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
            near_cache=near_cache,
            max_payload_bytes=max_payload_bytes,
            encryption_key=encryption_key,
            hash_keys=hash_keys,
            wait_replicas=wait_replicas,
            timeout=timeout,
            commit_timeout=commit_timeout,
            verify=verify,
        )
        if settings.wait_replicas and any(getattr(side, "is_cluster", False) for side in (sync_side, async_side)):
            raise ConfigurationError("wait_replicas", wait_replicas, "not with a Redis Cluster: give 0")
        cache = Cache(settings, sync_side, async_side)
        cache.entities.check()
        for side in (sync_side, async_side):
            if isinstance(side, RedisSyncTransport | RedisAsyncTransport):
                side.limit(settings.timeout_ms, settings.commit_timeout_ms)
        with cls._lock:
            previous = cls._cache
            cls._remove()
            # 1 this process: commits, owes   2 configures again   3 a get: would hit what it has not invalidated
            if previous is not None:
                cache.driver.succeed(previous.driver)
            hooks = Hooks(cache)
            hooks.install()
            cls._cache, cls._hooks = cache, hooks

    @classmethod
    def reset(cls) -> None:
        """Leave SQLAlchemy and SQLModel exactly as they were found. Does nothing when nothing is configured.

        It waits for no server: what is owed to the cache is forgotten; `close()` delivers it. In an asyncio
        application, `await SQLModelCache.aclose()` first closes what only its event loop can.
        """
        with cls._lock:
            cls._remove()

    @classmethod
    def close(cls, *, timeout: Duration = 1) -> bool:
        """Deliver what is owed to the cache, and close what the library opened; clients that you gave stay open.

        The cache stays configured, and opens new connections when it is used again.

        Args:
            timeout: seconds that this may take in all: an attempt under way, and one more if something is owed.

        Returns:
            Whether nothing is owed any more. What is will be forgotten with the process: its rows may then be stale
            in other processes until their TTL.
        """
        cache = cls._cache
        if cache is None:
            return True
        if cache.sampler is not None:
            cache.sampler.settle()
        delivered = cache.driver.settle(milliseconds("timeout", timeout) / 1000)
        cache.driver.close()
        return delivered

    @classmethod
    async def aclose(cls, *, timeout: Duration = 1) -> bool:
        """`close`, in an event loop: what belongs to this loop is closed, too. Other loops' is theirs to close."""
        cache = cls._cache
        if cache is None:
            return True
        try:
            return await asyncio.to_thread(cls.close, timeout=timeout)
        finally:  # at the end: what is owed may have to be delivered through this very loop
            if cache.driver.async_transport is not None:
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
            table, text = cls._cache.entities.named(model, pk, hidden=cls._cache.reader.hides)
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
    async def follow(cls, database: AnyDatabase, *, setup: bool = False, **options: Unpack[FollowerOptions]) -> None:
        """Invalidate what other programs change in a database, until the task that awaits this is cancelled.

        Several processes may follow one database: one of them does, another takes over when it ends. The work is done
        in a thread of its own. Needs the extra `follow`, or `follow-mysql`.

        Args:
            database: an engine or a URL: PostgreSQL with `wal_level = logical`, or what `outbox` serves.
            setup: first make what is missing in the database, as `sqlmodel-cache follow --setup` does.
            options: see `sqlmodel_cache.follow.FollowerOptions`.

        Raises:
            ConfigurationError: nothing is configured, or an argument is wrong.
            FollowerError: the database cannot be followed as it is; the error says what to do.
        """
        follower = await asyncio.to_thread(cls.follower, database, **options)
        if setup:
            await asyncio.to_thread(follower.source.setup)
        await follower.arun()

    @classmethod
    def follower(cls, database: AnyDatabase, **options: Unpack[FollowerOptions]) -> Follower:
        """Return what `follow` runs, for a thread: its `run()` blocks until its `stop()` is called."""
        if cls._cache is None:
            raise ConfigurationError("follow", database, "call SQLModelCache.configure() first")
        from .follow import follower

        return follower(cls._cache, database, **options)

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
        cls, session: Session, entity: type[T], /, *, execution_options: Mapping[str, Any] | None = None, **key: Any
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
        cls,
        session: AsyncSession,
        entity: type[T],
        /,
        *,
        execution_options: Mapping[str, Any] | None = None,
        **key: Any,
    ) -> T | None:
        """`get_by`, for an `AsyncSession`."""
        return await _sqlalchemy.in_new_greenlet(
            functools.partial(cls.get_by, session.sync_session, entity, execution_options=execution_options, **key)
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
        return Stats() if cache is None else cache.stats()

    @classmethod
    @overload
    def explain(cls, model: type) -> Explanation: ...
    @classmethod
    @overload
    def explain(cls, model: type, pk: object, *, bind: Bind) -> RowExplanation: ...
    @classmethod
    def explain(cls, model: type, pk: object = None, *, bind: Bind | None = None) -> Explanation | RowExplanation:
        """Return whether and how gets of a model are cached, and what has kept rows of it from being stored.

        Or, given a primary key, what the cache holds of that row now, and whether a get would use it. That asks the
        cache twice, or three times, and is no get.

        Args:
            model: a mapped class.
            pk: a primary key, a tuple if it has several columns.
            bind: with a primary key: the session, connection or engine that the row is read with. In an event loop,
                `aexplain` asks.

        Raises:
            ConfigurationError: the model is not a mapped class; with a key, it is not cached, the key is not one of its
                keys, there is no bind, or nothing is configured.
        """
        cache = cls._cache
        if pk is not None:
            if cache is None:
                raise ConfigurationError("pk", pk, "call SQLModelCache.configure() first")
            engine = _sync_bind(bind, model)
            if engine is None:
                raise ConfigurationError("bind", bind, "give the session or the engine that the row is read with")
            session = getattr(bind, "sync_session", bind)
            return cache.inspector.row(model, pk, engine, session if isinstance(session, Session) else None)
        if cache is None:
            return explain(model, None, Entities(), {})
        return explain(model, cache.settings, cache.entities, cache.reader.not_stored)

    @classmethod
    async def aexplain(cls, model: type, pk: object, *, bind: AsyncBind) -> RowExplanation:
        """`explain` of a row, in an event loop. That of a model waits for nothing, and is the same everywhere."""
        if pk is None:
            raise ConfigurationError("pk", pk, "give a primary key; of a model alone, SQLModelCache.explain() tells")
        return await _sqlalchemy.in_new_greenlet(cls.explain, model, pk, bind=bind)

    @classmethod
    def trace(cls) -> AbstractContextManager[Trace]:
        """List each get of a `with` block, with its outcome, its reason and its time.

        Of the block's thread or task, and of threads and tasks that inherit its context. Gets of models that are not
        cached, and of what their session holds already, are none of the cache's.
        """
        return trace()

    @classmethod
    def verify(cls, model: type, bind: Bind, *, sample: int = 10_000) -> Verification:
        """Return what a comparison of cached rows with the database has found. A concurrent write is no discrepancy.

        It looks up primary keys at random, reads the rows that are cached in transactions and on a connection of its
        own, and changes nothing. One round trip and one SELECT serve 200 rows.

        Args:
            model: a cached class.
            bind: the engine whose sessions' gets are verified, or a session on it; the primary, not a replica.
            sample: about how many rows of the table are looked up.

        Raises:
            ConfigurationError: nothing is configured, the model is not cached, or the engine's gets are not.
            TransportError: the cache does not answer.
        """
        if type(sample) is not int or sample < 1:
            raise ConfigurationError("sample", sample, "give the number of rows to look up")
        cache = cls._cache
        if cache is None:
            raise ConfigurationError("model", model, "call SQLModelCache.configure() first")
        entity = cache.reader.entity(model)
        if entity is None:
            raise ConfigurationError("model", model, f"it is not cached: {cls.explain(model).reason}")
        engine = _sync_bind(bind, model)
        if engine is None:
            raise ConfigurationError("bind", bind, "give an engine, or a session on it")
        session = getattr(bind, "sync_session", bind)
        info = session.info if isinstance(session, Session) else {}
        return cache.verifier.verify(entity, engine.engine, sample, info)

    @classmethod
    async def averify(cls, model: type, bind: AsyncBind, *, sample: int = 10_000) -> Verification:
        """`verify`, in an event loop."""
        return await _sqlalchemy.in_new_greenlet(cls.verify, model, bind, sample=sample)

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


def current() -> Cache | None:
    """Return the cache that is configured in this process, for what looks on: it does not outlive a `reset()`."""
    return SQLModelCache._cache


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
        if _is(transport, SyncTransport):
            return transport, transport
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
