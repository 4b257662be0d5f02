"""What is counted on the ways to a row that a plain get seldom takes: the same, whoever asks and however."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import waiting
from sqlalchemy import Engine, create_engine, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Field, Session, SQLModel, col

from sqlmodel_cache import CacheConfig, MemoryTransport, ModelStats, NearCache, SQLModelCache, TransportError
from sqlmodel_cache._effects import Lease, Lookup, Together
from sqlmodel_cache._recovery import FAILURES


class Coin(SQLModel, table=True):
    """It has two keys."""

    __tablename__ = "counting_coin"
    __cache_config__ = CacheConfig(unique=[("name",)], near=True)
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    size: int = 0


class Meddling(MemoryTransport):
    """A server in another process, before whose next effect of a kind something happens."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[type, Callable[[], object]] = {}

    def execute(self, effect: Any) -> Any:
        """Answer."""
        kind = type(effect.effects[0] if isinstance(effect, Together) else effect)
        if kind in self.before:
            self.before.pop(kind)()
        return super().execute(effect)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database with one coin."""
    engine = create_engine(f"sqlite:///{tmp_path}/counting.db")
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Coin(id=1, name="Penny"))
        session.commit()
    yield engine
    engine.dispose()


def get(session: Session) -> object:
    """By its primary key."""
    return session.get(Coin, 1)


def get_many(session: Session) -> object:
    """With others."""
    return SQLModelCache.get_many(session, Coin, [1])[0]


def get_by(session: Session) -> object:
    """By its unique key."""
    return SQLModelCache.get_by(session, Coin, name="Penny")


WAYS = pytest.mark.parametrize("way", [get, get_many, get_by])
Way = Callable[[Session], object]


def go(engine: Engine, way: Way) -> ModelStats:
    """Get the coin in a session of its own, and return what has been counted."""
    with Session(engine) as session:
        assert way(session) is not None
    return counted()


def counted() -> ModelStats:
    """Return what has been counted."""
    return SQLModelCache.stats().models.get(f"{__name__}:Coin", ModelStats())


def reasons(counts: Any) -> dict[str, int]:
    """Return the reasons that have occurred."""
    return {reason: count for reason, count in counts.items() if count}


@WAYS
def test_a_cache_that_is_not_asked_is_no_error_of_it(engine: Engine, way: Way) -> None:
    """Once the breaker is open, whichever way a row is asked for."""
    transport = Meddling()
    SQLModelCache.configure(transport)

    def fails() -> None:
        transport.before[Lookup] = fails
        raise TransportError("down")

    transport.before[Lookup] = fails
    for _ in range(FAILURES):
        go(engine, get)
    assert SQLModelCache.stats().unreachable
    assert reasons(go(engine, way).miss_reasons) == {"error": FAILURES, "breaker": 1}


@pytest.mark.parametrize("way", [get, get_many])
def test_a_lease_that_finds_the_row_is_a_hit(engine: Engine, way: Way) -> None:
    """Another reader has stored it after the look-up: its bytes are counted, once."""
    transport = Meddling()
    SQLModelCache.configure(transport)
    transport.before[Lease] = lambda: go(engine, get)
    found = go(engine, way)
    assert (found.hits, found.misses, found.fills) == (1, 1, 1)
    assert found.bytes_read == found.bytes_written > 0


def test_a_key_that_another_reader_has_stored_is_late(engine: Engine) -> None:
    """No commit is in flight: the get_by that finds its key stored at its lease is not fenced."""
    transport = Meddling()
    SQLModelCache.configure(transport)
    transport.before[Lease] = lambda: go(engine, get_by)
    found = go(engine, get_by)
    assert reasons(found.miss_reasons) == {"absent": 2}
    assert (found.fills, reasons(found.refused_reasons)) == (1, {"late": 1})


@WAYS
def test_a_commit_in_flight_is_a_reason(engine: Engine, way: Way) -> None:
    """Whichever way the row is asked for, although its unique key may be stored meanwhile."""
    transport = Meddling()
    SQLModelCache.configure(transport)
    for _ in range(2):
        go(engine, get_by)
    with engine.connect() as connection:
        connection.execute(update(Coin).where(col(Coin.id) == 1).values(size=1))
        execute = connection.dialect.do_commit

        def during(dbapi: Any) -> None:
            connection.dialect.do_commit = execute  # type: ignore[method-assign]
            before = counted()
            assert reasons(go(engine, way).miss_reasons) == {**reasons(before.miss_reasons), "fenced": 1}
            assert counted().fills == before.fills
            execute(dbapi)

        connection.dialect.do_commit = during  # type: ignore[method-assign]
        connection.commit()


@WAYS
def test_near_hits_are_hits(engine: Engine, redis_url: str, redis_client: redis.Redis, way: Way) -> None:
    """Whichever way the row was asked for, each is one of both."""
    SQLModelCache.configure(redis_url, near_cache=NearCache())
    waiting.until(lambda: go(engine, way).near_hits, seconds=20.0)
    before = counted()
    with SQLModelCache.trace() as trace:
        found = go(engine, way)
    assert (found.hits, found.near_hits) == (before.hits + 1, before.near_hits + 1)
    assert found.bytes_read > before.bytes_read
    assert [each.outcome for each in trace] == ["near_hit"]


@WAYS
def test_a_miss_that_the_database_fails_is_not_counted(engine: Engine, way: Way) -> None:
    """Nothing was read; the next one is counted as ever."""
    SQLModelCache.configure()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE counting_coin RENAME TO gone")
    with SQLModelCache.trace() as trace, pytest.raises(OperationalError):
        go(engine, way)
    assert (counted().misses, len(trace)) == (0, 0)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO counting_coin")
    assert go(engine, way).misses == 1


def test_many_threads_are_counted_each(engine: Engine) -> None:
    """While rows are read and written side by side, every get of a new session is one hit, miss or bypass."""
    SQLModelCache.configure()
    each = 60

    def work(number: int) -> int:
        for turn in range(each):
            with Session(engine) as session:
                if turn % 20 == 19:
                    SQLModelCache.invalidate(Coin, 1, bind=engine)
                [get, get_many, get_by][(number + turn) % 3](session)
                session.get(Coin, "x")
        return each

    with ThreadPoolExecutor(8) as threads:
        gets = sum(threads.map(work, range(8)))
    found = counted()
    assert found.hits + found.misses == gets
    assert reasons(found.bypass_reasons) == {"key": gets}
    assert found.misses == found.fills + found.refused + found.uncached + found.fenced + found.shared + found.errors
    assert (found.hit_seconds.count, found.miss_seconds.count) == (found.hits, found.misses)


async def test_many_tasks_are_counted_each(engine: Engine) -> None:
    """The same for tasks, whose hits need no greenlet."""
    SQLModelCache.configure(near_cache=None)
    tasks = create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"))

    async def work(number: int) -> None:
        for turn in range(20):
            async with AsyncSession(tasks) as session:
                if (number + turn) % 3 == 0:
                    await SQLModelCache.aget_many(session, Coin, [1])
                elif (number + turn) % 3 == 1:
                    await SQLModelCache.aget_by(session, Coin, name="Penny")
                else:
                    await session.get(Coin, 1)

    await asyncio.gather(*map(work, range(8)))
    found = counted()
    assert (found.hits + found.misses, found.bypasses) == (160, 0)
    assert found.misses == found.fills + found.refused + found.uncached + found.fenced + found.shared + found.errors
    await tasks.dispose()
