"""Fixtures: real servers, one engine per database and driver, one transport per kind.

A test that takes `engine` runs on every database, and with the asyncio drivers too: then the plain test function runs
in the greenlet in which an `AsyncSession` runs its session, on the engine's sync face. What is specific to
`AsyncSession`'s own methods is in `session/test_async.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models  # noqa: F401  the tables
import pytest
import redis
import servers
from patient import DEFAULTS, PATIENCE
from sqlalchemy import Engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util.concurrency import greenlet_spawn
from sqlmodel import SQLModel, create_engine

from sqlmodel_cache import MemoryTransport, RedisSyncTransport, SQLModelCache

ENGINES = ["sqlite", "postgresql", "sqlite+aiosqlite", "postgresql+asyncpg"]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis."""
    with servers.redis_url() as url:
        yield url


@pytest.fixture(scope="session")
def cluster_of_session() -> Iterator[servers.RedisCluster]:
    """A real Redis Cluster; `cluster` gives it to a test in good order."""
    cluster = servers.RedisCluster()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def sentinel_of_session() -> Iterator[servers.RedisSentinel]:
    """A real master that sentinels watch over; `sentinel` gives it to a test in good order."""
    sentinel = servers.RedisSentinel()
    yield sentinel
    sentinel.stop()


@pytest.fixture
def cluster(cluster_of_session: servers.RedisCluster) -> servers.RedisCluster:
    """A Redis Cluster with all its nodes, and empty."""
    cluster_of_session.settle()
    for node in cluster_of_session.primaries:
        node.say("FLUSHALL")
    return cluster_of_session


@pytest.fixture
def sentinel(sentinel_of_session: servers.RedisSentinel) -> servers.RedisSentinel:
    """A master, its replica and three sentinels, all of one mind, and empty."""
    sentinel_of_session.settle()
    sentinel_of_session.master().say("FLUSHALL")
    return sentinel_of_session


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL."""
    with servers.postgres_url() as url:
        yield url


@pytest.fixture(scope="session")
def maria_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a MariaDB that was never started."""
    data = tmp_path_factory.mktemp("maria") / "data"
    servers.MariaServer.install(data)
    return data


@pytest.fixture(scope="session")
def maria(maria_data: Path) -> Iterator[servers.MariaServer]:
    """A real MariaDB with a binary log that can be followed."""
    server = servers.MariaServer(copy_of=maria_data)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test says nothing about time-outs, reads of the cache have all the time that they need."""
    monkeypatch.setitem(DEFAULTS, "timeout", PATIENCE)


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    """Every test begins and ends without a cache."""
    SQLModelCache.reset()
    yield
    SQLModelCache.reset()


def url_of(driver: str, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Return the URL of a database for a driver; starts PostgreSQL when it is the first to want it."""
    if driver.startswith("sqlite"):
        return make_url(f"{driver}:///{tmp_path}/test.db")
    if driver == "postgresql":
        driver = "postgresql+psycopg"
    return make_url(request.getfixturevalue("postgres_url")).set(drivername=driver)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine on each database and driver, with empty tables. Async ones are the sync face of an AsyncEngine."""
    driver: str = request.param
    setup = create_engine(url_of(driver.partition("+")[0], tmp_path, request))
    SQLModel.metadata.drop_all(setup)
    SQLModel.metadata.create_all(setup)
    setup.dispose()
    url = url_of(driver, tmp_path, request)
    if "+a" in driver:
        yield create_async_engine(url).sync_engine
    else:
        sync_engine = create_engine(url)
        yield sync_engine
        sync_engine.dispose()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function in an event loop, and a test with an async `engine` in a greenlet."""
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    engine = arguments.get("engine")
    is_async = isinstance(engine, Engine) and engine.dialect.is_async
    is_coroutine = inspect.iscoroutinefunction(pyfuncitem.obj)
    if not is_async and not is_coroutine:
        return None

    async def run() -> None:
        try:
            if is_coroutine:
                await pyfuncitem.obj(**arguments)
            else:
                await greenlet_spawn(pyfuncitem.obj, **arguments)
        finally:
            await SQLModelCache.aclose()
            if is_async:
                await AsyncEngine(engine).dispose()

    asyncio.run(run())
    return True


@dataclass
class Store:
    """A transport, and what a test may ask about what it holds."""

    transport: Any
    client: redis.Redis | None = None

    def values(self) -> dict[str, bytes | None]:
        """Return the keys that hold a row's value now; with Redis, their raw bytes too."""
        if self.client is None:
            return dict.fromkeys(self.transport.keys())
        held = {key.decode(): self.client.get(key) for key in self.client.keys("*}:*")}
        return {key: value for key, value in held.items() if value is not None and value[:1] == b"V"}

    def ttl(self, key: str) -> float:
        """Return the seconds that a key has left."""
        if self.client is None:
            return float(self.transport.ttl(key))
        return float(self.client.pttl(key)) / 1000

    def clear(self) -> None:
        """Lose everything."""
        if self.client is None:
            self.transport.clear()
        else:
            self.client.flushdb()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Redis."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each transport, empty and not yet configured."""
    if request.param == "memory":
        return Store(MemoryTransport())
    client = request.getfixturevalue("redis_client")
    return Store(RedisSyncTransport(client, timeout=PATIENCE, commit_timeout=PATIENCE), client)


@pytest.fixture
def cache(engine: Engine, store: Store) -> Store:
    """Each transport, empty and configured."""
    SQLModelCache.configure(store.transport)
    return store


@dataclass
class Log:
    """The SQL that an engine has sent, and the connections that it has taken from its pool."""

    statements: list[str] = field(default_factory=list)
    checkouts: int = 0

    def take(self) -> list[str]:
        """Return the statements since the last call."""
        taken, self.statements = self.statements, []
        return taken


@pytest.fixture
def sql(engine: Engine) -> Log:
    """What the test's engine does from now on."""
    log = Log()

    @event.listens_for(engine, "before_cursor_execute")
    def _executed(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        log.statements.append(statement)

    @event.listens_for(engine.pool, "checkout")
    def _checked_out(*_: Any) -> None:
        log.checkouts += 1

    return log
