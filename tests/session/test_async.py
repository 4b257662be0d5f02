"""AsyncSession's own methods, on both asyncio drivers and with FastAPI's ways of closing things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
import redis.asyncio
from conftest import Log
from models import Hero, add_hero
from patient import PATIENCE
from sqlalchemy import Engine
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import RedisAsyncTransport, SQLModelCache

ASYNC = pytest.mark.parametrize("engine", ["sqlite+aiosqlite", "postgresql+asyncpg"], indirect=True)


@asynccontextmanager
async def configured(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """Configure as a lifespan does: a client that is closed at the end by whoever opened it."""
    client = redis.asyncio.Redis.from_url(redis_url)
    SQLModelCache.configure(transport=RedisAsyncTransport(client, timeout=PATIENCE), default_ttl=300)
    yield client
    await client.aclose()


async def prepared(engine: Engine) -> int:
    """Add a hero through an async engine's sync face."""
    async with AsyncEngine(engine).connect() as connection:
        return await connection.run_sync(lambda _: add_hero(engine))


@ASYNC
async def test_get_and_commit(engine: Engine, redis_client: redis.Redis, redis_url: str, sql: Log) -> None:
    """AsyncSession.get fills, hits without SQL or connection, and a commit invalidates."""
    async with configured(redis_url):
        pk = await prepared(engine)
        async_engine = AsyncEngine(engine)
        async with AsyncSession(async_engine) as session:
            assert (await session.get_one(Hero, pk)).name == "Rusty"
        assert [key[-2:] for key in redis_client.keys("*}:*")] == [b":1"]
        sql.take()
        checkouts = sql.checkouts
        async with AsyncSession(async_engine) as session:
            hero = await session.get(Hero, pk)
            assert hero is not None
            assert sql.take() == []
            assert sql.checkouts == checkouts
            hero.name = "Async"
            await session.commit()
        async with AsyncSession(async_engine) as session, session.begin():
            assert (await session.get_one(Hero, pk)).name == "Async"
            (await session.get_one(Hero, pk)).name = "In a block"
        async with AsyncSession(async_engine) as session:
            assert (await session.get_one(Hero, pk)).name == "In a block"


@ASYNC
async def test_kinds_of_async_sessions(engine: Engine, redis_client: redis.Redis, redis_url: str, sql: Log) -> None:
    """SQLAlchemy's AsyncSession, async_sessionmaker, async_scoped_session and subclasses all hit."""

    class Mine(AsyncSession):
        """A subclass."""

    async with configured(redis_url):
        pk = await prepared(engine)
        async_engine = AsyncEngine(engine)
        async with AsyncSession(async_engine) as session:
            await session.get(Hero, pk)
        sql.take()
        makers = (
            sa_asyncio.async_sessionmaker(async_engine),
            sa_asyncio.async_sessionmaker(async_engine, class_=AsyncSession),
            sa_asyncio.async_sessionmaker(async_engine, class_=Mine),
            lambda: sa_asyncio.AsyncSession(async_engine),
        )
        for make in makers:
            async with make() as session:
                assert (await session.get_one(Hero, pk)).name == "Rusty"
            async with make() as session:
                assert (await session.get(Hero, pk)) is not None
        scoped = sa_asyncio.async_scoped_session(makers[0], asyncio.current_task)  # type: ignore[arg-type]
        assert await scoped.get(Hero, pk) is not None
        await scoped.remove()
        assert sql.take() == []


@ASYNC
async def test_options_of_a_call(engine: Engine, redis_client: redis.Redis, redis_url: str, sql: Log) -> None:
    """`cache` and `cache_ttl` work in AsyncSession.get."""
    async with configured(redis_url):
        pk = await prepared(engine)
        sql.take()
        for _ in range(2):
            async with AsyncSession(AsyncEngine(engine)) as session:
                await session.get(Hero, pk, execution_options={"cache": False})
        assert len(sql.take()) == 2
        assert redis_client.keys("*}:*") == []
        async with AsyncSession(AsyncEngine(engine)) as session:
            await session.get(Hero, pk, execution_options={"cache_ttl": 60})
        [key] = redis_client.keys("*}:*")
        assert 53 < redis_client.ttl(key) <= 60


@ASYNC
async def test_concurrent_gets(engine: Engine, redis_client: redis.Redis, redis_url: str) -> None:
    """Many tasks at once, each with its own session, all get their row."""
    async with configured(redis_url):
        pk = await prepared(engine)

        async def one() -> str:
            async with AsyncSession(AsyncEngine(engine)) as session:
                return (await session.get_one(Hero, pk)).name

        names = await asyncio.gather(*(one() for _ in range(30)))
        assert names == ["Rusty"] * 30


@ASYNC
async def test_cancelled_commit_keeps_its_fence(
    engine: Engine, redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled inside COMMIT leaves the fence to its deadline: nobody knows what the database did."""
    async with configured(redis_url):
        pk = await prepared(engine)
        async with AsyncSession(AsyncEngine(engine)) as session:
            (await session.get_one(Hero, pk)).name = "Perhaps"
            await session.flush()

            def cancelled(connection: object) -> None:
                raise asyncio.CancelledError

            monkeypatch.setattr(engine.dialect, "do_commit", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await session.commit()
            monkeypatch.undo()
        async with AsyncSession(AsyncEngine(engine)) as session:
            assert (await session.get_one(Hero, pk)).name == "Rusty"
        [value] = [redis_client.get(key) for key in redis_client.keys("*}:*")]
        assert value is not None
        assert value[:1] == b"F"
        assert SQLModelCache.stats().fenced == 1


def test_one_process_many_event_loops(redis_client: redis.Redis, redis_url: str, tmp_path: object) -> None:
    """A client that belongs to one event loop is not used in another; the cache works in both."""
    client = redis.asyncio.Redis.from_url(redis_url)
    SQLModelCache.configure(RedisAsyncTransport(client, timeout=PATIENCE))

    async def visit() -> int:
        async_engine = sa_asyncio.create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/loops.db")
        async with async_engine.begin() as connection:
            await connection.run_sync(Hero.metadata.create_all)
        for _ in range(2):
            async with AsyncSession(async_engine) as session:
                if await session.get(Hero, 1) is None:
                    session.add(Hero(id=1, name="Loop"))
                    await session.commit()
        async with AsyncSession(async_engine) as session:
            await session.get(Hero, 1)
        await async_engine.dispose()
        await SQLModelCache.aclose()
        return SQLModelCache.stats().errors

    with asyncio.Runner() as first:
        assert first.run(visit()) == 0
        with asyncio.Runner() as second:
            assert second.run(visit()) == 0
        hits = SQLModelCache.stats().hits
        assert first.run(visit()) == 0
        first.run(client.aclose())
    assert SQLModelCache.stats().hits > hits
