"""`configure(verify=...)` with asyncio engines: the get that is drawn waits for it, and nothing outlives the get."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Store, url_of
from models import Hero
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool
from sqlmodel import Session, SQLModel, create_engine, select
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import SQLModelCache, _sampler, _sqlalchemy

THREAD = "sqlmodel-cache-verifier"


@pytest.fixture(params=["sqlite+aiosqlite", "postgresql+asyncpg"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """A database with two heroes in it, for an asyncio driver."""
    setup = create_engine(url_of(request.param.partition("+")[0], tmp_path, request))
    SQLModel.metadata.drop_all(setup)
    SQLModel.metadata.create_all(setup)
    with Session(setup) as session:
        session.add_all([Hero(id=1, name="Rusty"), Hero(id=2, name="Deadpond")])
        session.commit()
    setup.dispose()
    url: URL = url_of(request.param, tmp_path, request)
    return url


@asynccontextmanager
async def heroes(url: URL, transport: Any = None, **options: Any) -> AsyncIterator[AsyncEngine]:
    """An engine, and the heroes in the cache. In the end it lends nothing, and no task of ours is left."""
    engine = create_async_engine(url, **options)
    before = asyncio.all_tasks()
    try:
        await fill(engine, transport)
        yield engine
        assert asyncio.all_tasks() == before
        assert not [thread for thread in threading.enumerate() if thread.name == THREAD]
        if isinstance(engine.pool, QueuePool):
            assert engine.pool.checkedout() == 0
    finally:
        await engine.dispose()


async def fill(engine: AsyncEngine, transport: Any = None) -> None:
    """Configure a cache, and have the heroes in it."""
    SQLModelCache.configure(transport, verify=1.0)
    for pk in (1, 2):
        await read(engine, pk)


async def read(engine: AsyncEngine, pk: int = 1, **options: Any) -> str:
    """Return a hero's name, by a get in a session of its own."""
    async with AsyncSession(engine) as session:
        return (await session.get_one(Hero, pk, **options)).name


def verified() -> int:
    """Return how many rows were compared."""
    return SQLModelCache.stats().verified


def hang(engine: AsyncEngine) -> asyncio.Event:
    """Have the engine's next SELECT hang; return what is set when it does."""
    asked = asyncio.Event()

    @event.listens_for(engine.sync_engine, "before_cursor_execute", once=True)
    def _hang(*_: object) -> None:
        asked.set()
        _sqlalchemy.wait_for(asyncio.Event().wait())

    return asked


async def rename_behind(engine: AsyncEngine) -> None:
    """Rename the hero where no hook sees it."""
    async with engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.execute("UPDATE hero SET name = 'Rusty-Man' WHERE id = 1")
        if hasattr(raw, "commit"):  # asyncpg commits each statement
            await raw.commit()


@pytest.mark.parametrize("options", [{}, {"execution_options": {"cache_ttl": 60}}])
async def test_stale_hit_is_found(
    url: URL, store: Store, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """By the coroutine that has it, or in its greenlet, before it returns; the next get reads the database."""
    async with heroes(url, store.transport) as engine:
        assert await read(engine, **options) == "Rusty"
        assert (verified(), SQLModelCache.stats().discrepancies) == (1, 0)
        await rename_behind(engine)
        with caplog.at_level(logging.WARNING, "sqlmodel_cache"):
            assert await read(engine, **options) == "Rusty"
        assert (verified(), SQLModelCache.stats().discrepancies) == (2, 1)
        assert "Hero 1 is not in the cache as it is in the database (changed: name)" in caplog.text
        assert await read(engine, **options) == "Rusty-Man"


async def test_hit_that_somebody_listens_to_is_verified(url: URL) -> None:
    """It is made in a greenlet, because a listener may wait for something."""
    async with heroes(url) as engine:

        @event.listens_for(Hero, "load")
        def _loaded(*_: object) -> None: ...

        try:
            await read(engine)
            assert verified() == 1
        finally:
            event.remove(Hero, "load", _loaded)


async def test_only_what_is_drawn_takes_a_connection(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred hits ten, with a share of a tenth; with none nothing is even drawn."""
    async with heroes(url) as engine:
        taken: list[object] = []
        event.listen(engine.sync_engine.pool, "checkout", lambda *_: taken.append(None))
        SQLModelCache.configure(verify=0.1)
        await read(engine)
        taken.clear()
        draws = iter(range(100))
        monkeypatch.setattr(random, "random", lambda: next(draws) % 10 / 10)
        for _ in range(100):
            await read(engine)
        assert (verified(), len(taken)) == (10, 10)
        SQLModelCache.configure()
        await read(engine)
        taken.clear()
        await read(engine)
        assert SQLModelCache.stats().hits == 1
        assert not taken


async def test_cancelled_get_is_cancelled(url: URL) -> None:
    """In the middle of the SELECT: its connection is given up, and the next hit is verified."""
    async with heroes(url) as engine:
        asked = hang(engine)
        get = asyncio.create_task(read(engine))
        await asked.wait()
        get.cancel()
        with pytest.raises(asyncio.CancelledError):
            await get
        assert verified() == 0
        assert await read(engine) == "Rusty"
        assert verified() == 1


async def test_cancellation_is_not_lost_in_a_listener(url: URL) -> None:
    """An application's listener that raises when a connection is given up does not keep its task alive."""
    async with heroes(url) as engine:

        @event.listens_for(engine.sync_engine.pool, "invalidate")
        def _raise(*_: object) -> None:
            raise ValueError("a listener fails")

        asked = hang(engine)
        get = asyncio.create_task(read(engine))
        await asked.wait()
        get.cancel()
        with pytest.raises(asyncio.CancelledError):
            await get
        event.remove(engine.sync_engine.pool, "invalidate", _raise)


async def test_caller_does_not_wait_for_long(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the database does not answer, the hit is returned, and no other waits for a while."""
    async with heroes(url) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(_sampler, "PATIENCE", 0.05)
            asked = hang(engine)
            assert await read(engine) == "Rusty"
            assert asked.is_set()
        assert await read(engine) == "Rusty"
        assert verified() == 0
        monkeypatch.setattr(_sampler, "QUIET", 0.0)
        SQLModelCache._cache.sampler._begin()  # type: ignore[union-attr]
        assert await read(engine) == "Rusty"
        assert verified() == 1


async def test_one_hit_at_a_time_is_verified(url: URL) -> None:
    """Others are answered meanwhile, and let go."""
    async with heroes(url) as engine:
        asked = hang(engine)
        get = asyncio.create_task(read(engine))
        await asked.wait()
        assert await read(engine) == "Rusty"
        assert verified() == 0
        get.cancel()
        await asyncio.wait({get})


async def test_last_connection_is_the_applications(url: URL) -> None:
    """A pool of one that the caller itself has taken is not waited for."""
    async with heroes(url, pool_size=1, max_overflow=0) as engine:
        async with AsyncSession(engine) as session:
            await session.connection()
            assert (await session.get_one(Hero, 1)).name == "Rusty"
        assert verified() == 0
        await read(engine)
        assert verified() == 1


async def test_open_transaction_is_not_used(url: URL) -> None:
    """The caller's transaction is not the verification's, and goes on."""
    async with heroes(url) as engine, AsyncSession(engine) as session:
        connection = await session.connection()
        assert (await session.get_one(Hero, 1)).name == "Rusty"
        assert verified() == 1
        assert await session.connection() is connection
        assert connection.in_transaction()


async def test_hit_of_a_transaction_that_has_written_is_let_go(url: URL) -> None:
    """What it has locked, a SELECT on another connection might wait for, while it waits for the SELECT."""
    async with heroes(url) as engine, AsyncSession(engine) as session:
        (await session.get_one(Hero, 2)).name = "Wade"
        await session.flush()
        before = verified()
        assert (await session.get_one(Hero, 1)).name == "Rusty"
        assert verified() == before
        await session.rollback()


async def test_connection_of_its_own_where_there_is_no_pool(url: URL) -> None:
    """It is opened for it, and closed."""
    async with heroes(url, poolclass=NullPool) as engine:
        await read(engine)
        assert verified() == 1


async def test_shared_connection_is_left_alone() -> None:
    """On a static pool a SELECT would be in the caller's transaction, and its end the end of that."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add(Hero(id=1, name="Rusty"))
        await session.commit()
    SQLModelCache.configure(verify=1.0)
    assert [await read(engine) for _ in range(2)] == ["Rusty", "Rusty"]
    assert (SQLModelCache.stats().hits, verified()) == (1, 0)
    await engine.dispose()


@pytest.mark.parametrize("leaves", ["it returns", "it is interrupted", "it closes all"])
def test_loop_ends_in_the_middle_of_it(url: URL, leaves: str, caplog: pytest.LogCaptureFixture) -> None:
    """A task of the application that waits for a verification is cancelled with its loop; the next loop begins anew."""
    left: list[asyncio.Task[str]] = []

    async def leave() -> None:
        engine = create_async_engine(url, poolclass=NullPool)
        await fill(engine)
        asked = hang(engine)
        left.append(asyncio.create_task(read(engine)))
        await asked.wait()
        if leaves == "it is interrupted":
            raise KeyboardInterrupt
        if leaves == "it closes all":
            assert await SQLModelCache.aclose()
            await engine.dispose()

    async def begin_anew() -> None:
        async with heroes(url) as engine:
            assert await read(engine) == "Rusty"
            assert verified() == 1

    with suppress(KeyboardInterrupt):
        asyncio.run(leave())
    assert [task.cancelled() for task in left] == [True]
    asyncio.run(begin_anew())
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_locked_table_is_not_waited_for(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SELECT that the server holds up is cancelled; the hit is returned, and its session goes on."""
    monkeypatch.setattr(_sampler, "PATIENCE", 0.05)
    lock, options = "LOCK TABLE hero IN ACCESS EXCLUSIVE MODE", {}
    if url.get_backend_name() == "sqlite":  # whose driver cannot be stopped before its own time-out
        lock, options = "BEGIN EXCLUSIVE", {"timeout": 0.5}
    async with heroes(url, connect_args=options) as engine, engine.connect() as connection:
        await connection.exec_driver_sql(lock)
        async with AsyncSession(engine) as session:
            assert (await session.get_one(Hero, 1)).name == "Rusty"
            assert verified() == 0
            await connection.rollback()
            assert (await session.exec(select(Hero.name).where(Hero.id == 1))).one() == "Rusty"
