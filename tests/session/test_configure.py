"""configure(), reset() and get_config(): what they accept, what they refuse, and what they leave behind."""

from __future__ import annotations

import asyncio
import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from conftest import Log, Store
from models import Hero, add_hero, get_hero
from patient import PATIENCE
from sqlalchemy import Engine, String, Table, Text, TypeDecorator, event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, mapped_column
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.pool import Pool
from sqlmodel import Session, SQLModel, create_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import (
    CacheConfig,
    CacheError,
    ConfigurationError,
    MemoryTransport,
    RedisAsyncTransport,
    RedisSyncTransport,
    Settings,
    SQLModelCache,
)
from sqlmodel_cache._sqlalchemy import LazyLoader


def test_defaults() -> None:
    """configure() alone uses a MemoryTransport, 300 seconds and the prefix `sqlmodelcache`."""
    assert SQLModelCache.get_config() is None
    SQLModelCache.configure()
    config = SQLModelCache.get_config()
    assert isinstance(config, Settings)
    assert isinstance(config.transport, MemoryTransport)
    assert (config.default_ttl, config.key_prefix, config.enabled) == (300, "sqlmodelcache", True)
    SQLModelCache.reset()
    assert SQLModelCache.get_config() is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("default_ttl", value) for value in (0, -1, True, None, math.nan, math.inf, "60", datetime.timedelta(-1))),
        *(("key_prefix", value) for value in ("", "  ", None, 5, b"x")),
        *(("enabled", value) for value in (1, None, "yes")),
        *(("transport", value) for value in (5, object(), redis.Redis(), "http://x", "nonsense", MemoryTransport)),
        *(("async_transport", value) for value in (5, "redis://x", MemoryTransport(), redis.asyncio.Redis())),
        *(("namespace", value) for value in ("", 5)),
        *(("fence_ttl", value) for value in (0, 0.01, "60")),
        ("on_unreachable", "ignore"),
        ("snapshot_reads", "never"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_wrong_arguments(argument: str, value: Any) -> None:
    """A wrong argument is named with its value and a remedy, and the configuration stays as it was."""
    SQLModelCache.configure(default_ttl=17)
    with pytest.raises(ConfigurationError, match=argument) as error:
        SQLModelCache.configure(**{argument: value})
    assert error.value.argument == argument
    assert isinstance(error.value, CacheError)
    assert isinstance(error.value, ValueError)
    config = SQLModelCache.get_config()
    assert config is not None
    assert config.default_ttl == 17


def test_password_of_a_url_stays_out_of_errors() -> None:
    """An error about a Redis URL does not show its password."""
    with pytest.raises(ConfigurationError) as error:
        SQLModelCache.configure("redis://user:secret@host:notaport/0")
    assert "secret" not in str(error.value)
    assert "secret" not in repr(error.value.value)


def attributes() -> dict[Any, Any]:
    """Return what the library may change in SQLAlchemy and SQLModel."""
    owners = [Session, PlainSession, AsyncSession, Connection, Engine, Pool, Mapper, Table, SQLModel, Hero, LazyLoader]
    return {(owner, name): value for owner in owners for name, value in vars(owner).items() if name != "_abc_impl"}


def listeners() -> dict[str, int]:
    """Return the number of listeners to each event that the library hears."""
    dispatches = [(Engine, "before_cursor_execute"), (Engine, "after_cursor_execute"), (Dialect, "handle_error")]
    dispatches += [(Pool, "checkin"), (Table, "after_parent_attach")]
    return {name: len(getattr(owner.dispatch, name)._clslevel.get(owner, ())) for owner, name in dispatches}


def test_reset_leaves_everything_as_found(tmp_path: Path) -> None:
    """After reset() the classes have the very attributes that they had, and no listener stays."""
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    before, heard = attributes(), listeners()
    SQLModelCache.configure()
    assert attributes() != before
    SQLModel.metadata.create_all(engine)
    get_hero(engine, add_hero(engine))
    SQLModelCache.reset()
    assert attributes() == before
    assert listeners() == heard
    SQLModelCache.reset()
    assert attributes() == before
    engine.dispose()


def test_get_without_configure_is_plain(engine: Engine, cache: Store, sql: Log) -> None:
    """Before configure() and after reset() a get is a SELECT."""
    SQLModelCache.reset()
    pk = add_hero(engine)
    sql.take()
    for _ in range(2):
        get_hero(engine, pk)
    assert len(sql.take()) == 2
    assert cache.values() == {}


def test_configure_again_replaces(engine: Engine, sql: Log) -> None:
    """A second configure() takes the place of the first: one cache, one set of hooks."""
    first, second = MemoryTransport(), MemoryTransport()
    SQLModelCache.configure(first)
    SQLModelCache.configure(second, key_prefix="other")
    pk = add_hero(engine)
    get_hero(engine, pk)
    assert first.keys() == []
    [key] = second.keys()
    assert key.startswith("other:{")
    sql.take()
    get_hero(engine, pk)
    assert sql.take() == []
    assert SQLModelCache.stats().hits == 1


def test_keys_are_readable_and_escaped(engine: Engine, store: Store) -> None:
    """A key tells prefix, table and primary key; what would break one is escaped."""
    SQLModelCache.configure(store.transport, key_prefix="my:app{1}", namespace="tenant one")
    get_hero(engine, add_hero(engine))
    [key] = store.values()
    assert key.startswith("my%3Aapp%7B1%7D:{tenant%20one/hero:")
    assert key.endswith(":1")


def test_two_databases_do_not_share_rows(store: Store, tmp_path: Path) -> None:
    """Engines on two databases never see each other's rows; two engines on one database do."""
    SQLModelCache.configure(store.transport)
    engines = [create_engine(url) for url in (f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db", "sqlite://")]
    for number, engine in enumerate(engines):
        SQLModel.metadata.create_all(engine)
        add_hero(engine, f"hero of {number}")
    for _ in range(2):
        for number, engine in enumerate(engines):
            assert get_hero(engine, 1).name == f"hero of {number}"
    assert len(store.values()) == 3
    again = create_engine(f"sqlite:///{tmp_path}/../{tmp_path.name}/a.db")
    before = SQLModelCache.stats()
    assert get_hero(again, 1).name == "hero of 0"
    with Session(again) as session:
        session.get_one(Hero, 1).name = "changed"
        session.commit()
    assert SQLModelCache.stats().fills == before.fills
    assert get_hero(engines[0], 1).name == "changed"
    for engine in (*engines, again):
        engine.dispose()


def test_namespace_callable(engine: Engine, cache: Store) -> None:
    """A callable names the namespace for each session; one that gives no name sends the get to the database."""
    SQLModelCache.configure(cache.transport, namespace=lambda session: session.info.get("tenant") if session else "a")
    pk = add_hero(engine)
    for tenant in ("a", "b", None):
        with Session(engine, info={"tenant": tenant}) as session:
            session.get(Hero, pk)
    assert sorted(key.partition("{")[2][:2] for key in cache.values()) == ["a/", "b/"]


def test_namespace_callable_of_writers(engine: Engine, cache: Store) -> None:
    """A commit fences the rows of its own session's namespace; a writer without a name is logged, and goes on."""
    SQLModelCache.configure(cache.transport, namespace=lambda session: session.info["tenant"])
    pk = add_hero_of(engine, "a")
    for tenant in ("a", "b"):
        with Session(engine, info={"tenant": tenant}) as session:
            session.get(Hero, pk)
    with Session(engine, info={"tenant": "a"}) as session:
        session.get_one(Hero, pk).name = "New"
        session.commit()
    [left] = cache.values()
    assert "{b/" in left
    with Session(engine, info={"tenant": "a"}) as session:
        assert session.get_one(Hero, pk).name == "New"
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE hero SET name = 'Nameless'")


def add_hero_of(engine: Engine, tenant: str) -> int:
    """Insert a hero for a tenant and return its id."""
    with Session(engine, info={"tenant": tenant}) as session:
        hero = Hero(name="Rusty")
        session.add(hero)
        session.commit()
        assert hero.id is not None
        return hero.id


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_default_schema_has_one_name(engine: Engine, cache: Store) -> None:
    """A reader that translates to the default schema, and a writer that does not, mean one row."""
    pk = add_hero(engine)
    translated = engine.execution_options(schema_translate_map={None: "public"})
    for reading, writing in ((translated, engine), (engine, translated)):
        get_hero(reading, pk)
        with Session(writing) as session:
            hero = session.get_one(Hero, pk)
            hero.age = (hero.age or 0) + 1
            session.commit()
            age = hero.age
        assert get_hero(reading, pk).age == age


SYNC: list[Callable[[str], Any]] = [
    lambda url: url,
    lambda url: RedisSyncTransport(redis.Redis.from_url(url), timeout=PATIENCE),
    lambda url: RedisAsyncTransport(redis.asyncio.Redis.from_url(url), timeout=PATIENCE),
]


@pytest.mark.parametrize("make", SYNC, ids=["url", "sync", "async"])
def test_one_transport_serves_both_kinds(make: Any, redis_client: redis.Redis, redis_url: str, tmp_path: Path) -> None:
    """One configure() serves Session and AsyncSession; each sees what the other's commits invalidate."""
    SQLModelCache.configure(make(redis_url))
    sync_engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    SQLModel.metadata.create_all(sync_engine)
    pk = add_hero(sync_engine)
    get_hero(sync_engine, pk)
    cached = redis_client.keys("*}:*")
    assert len(cached) == 1

    async def other_kind() -> None:
        async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
        async with AsyncSession(async_engine) as session:
            hero = await session.get_one(Hero, pk)
            hero.name = "Async"
            await session.commit()
        await async_engine.dispose()
        await SQLModelCache.aclose()
        config = SQLModelCache.get_config()
        if config is not None and isinstance(config.transport, RedisAsyncTransport):
            await config.transport.client.aclose()

    asyncio.run(other_kind())
    assert get_hero(sync_engine, pk).name == "Async"
    assert redis_client.keys("*}:*") == cached
    assert SQLModelCache.stats().errors == 0
    sync_engine.dispose()


class SyncOnly:
    """Somebody's own transport, for sync sessions."""

    blocking = True

    def __init__(self) -> None:
        self.inner = MemoryTransport()

    def execute(self, effect: Any) -> Any:
        """Answer."""
        return self.inner.execute(effect)

    def close(self) -> None:
        """Close."""


async def test_kind_that_cannot_be_derived(tmp_path: Path) -> None:
    """A transport of one kind serves its kind; the other kind is told what to give configure()."""
    SQLModelCache.configure(SyncOnly())
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    SQLModel.metadata.create_all(engine)
    pk = add_hero(engine)
    get_hero(engine, pk)
    get_hero(engine, pk)
    assert SQLModelCache.stats().hits == 1
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    make = async_sessionmaker(async_engine, class_=AsyncSession)
    async with make() as session:
        with pytest.raises(ConfigurationError, match=r"configure\(transport=\.\.\., async_transport=\.\.\.\)"):
            await session.get(Hero, pk)
    await async_engine.dispose()
    engine.dispose()


def test_listeners_of_the_application_survive(engine: Engine) -> None:
    """reset() removes the library's listeners and leaves the application's in place."""
    heard = []
    SQLModelCache.configure()

    def listener(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        heard.append(statement)

    event.listen(Engine, "before_cursor_execute", listener)
    try:
        SQLModelCache.reset()
        with Session(engine) as session:
            session.connection().exec_driver_sql("SELECT 1")
        assert heard == ["SELECT 1"]
    finally:
        event.remove(Engine, "before_cursor_execute", listener)


def test_listeners_that_somebody_has_removed_are_not_missed() -> None:
    """An application that removes the library's listeners, with all others, can configure again, and reset."""

    def remove() -> None:
        hooks = SQLModelCache._hooks
        assert hooks is not None
        event.remove(Mapper, "after_mapper_constructed", hooks._mapper_constructed)

    SQLModelCache.configure()
    remove()
    SQLModelCache.configure()
    remove()
    SQLModelCache.reset()
    assert SQLModelCache.get_config() is None


class Versioned(TypeDecorator[str]):
    """A type that is another one on old servers."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        version: Any = dialect.server_version_info
        return Text() if version > (3,) else String()


@pytest.mark.parametrize("engine", ["sqlite", "postgresql+asyncpg"], indirect=True)
@pytest.mark.parametrize("namespace", [None, "x", lambda session: "x"], ids=["own", "string", "callable"])
def test_type_that_asks_for_the_servers_version(engine: Engine, namespace: Any) -> None:
    """It has been asked before a get looks at the types, also where its own name is not wanted."""

    class Own(DeclarativeBase):
        pass

    class Note(Own):
        __tablename__ = "c_note"
        __cache_config__ = CacheConfig()
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(Versioned)

    Own.metadata.drop_all(engine)
    Own.metadata.create_all(engine)
    with PlainSession(engine) as session:
        session.add(Note(id=1, text="a"))
        session.commit()
    engine.dispose()
    fresh = create_async_engine(engine.url).sync_engine if engine.dialect.is_async else create_engine(engine.url)
    SQLModelCache.configure(namespace=namespace)
    for _ in range(2):
        with PlainSession(fresh) as session:
            assert session.get_one(Note, 1).text == "a"
    assert SQLModelCache.stats().hits == 1
    fresh.dispose()
