"""The paths of the library, each raced against its floor or against the same program without the library."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.asyncio
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool
from sqlalchemy.util.concurrency import greenlet_spawn
from sqlmodel import Session, create_engine, select
from sqlmodel.ext.asyncio.session import AsyncSession

from benchmarks.measure import Case
from benchmarks.model import Product, Untouched, attach, fill, payload, same
from sqlmodel_cache import MemoryTransport, NearCache, RedisAsyncTransport, RedisSyncTransport, SQLModelCache


@dataclass(frozen=True)
class Path:
    """One line of the table: `measured` against `floor`, and how many times the floor it may take."""

    name: str
    floor: str  # what it is raced against
    limit: float  # the ratio that it must not exceed
    cases: dict[str, Case]
    faster_than: str | None = None  # another case that must take this many times longer:
    times_faster: float = 0.0


@dataclass
class World:
    """Databases and servers, opened when the first path wants them."""

    redis_url: str
    stack: ExitStack = field(default_factory=ExitStack)

    def memory_engine(self) -> Engine:
        """Return an in-memory SQLite with the rows."""
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        fill(engine)
        self.stack.callback(engine.dispose)
        return engine

    def client(self) -> redis.Redis:
        """Return a client of an empty Redis."""
        client = redis.Redis.from_url(self.redis_url)
        client.flushall()
        self.stack.callback(client.close)
        return client


def get_one(engine: Engine, model: Any = Product) -> Callable[[int], None]:
    """Return a loop of: open a session, get a row, close it."""

    def run(count: int) -> None:
        for _ in range(count):
            with Session(engine) as session:
                session.get(model, 1)

    return run


def in_process(world: World) -> Iterator[Path]:
    """A hit in memory."""
    engine = world.memory_engine()
    store = {("product", 1): payload(1)}

    def by_hand(count: int) -> None:
        for _ in range(count):
            with Session(engine) as session:
                attach(session, 1, store["product", 1])

    with Session(engine) as session:
        assert same(attach(session, 1, payload(1)), 1)
    transport = MemoryTransport()

    def warm() -> None:
        SQLModelCache.configure(transport)
        get_one(engine)(2)

    yield Path(
        "in-process hit",
        "look-up, decode, attach by hand",
        2.0,
        {
            "floor": Case(by_hand, SQLModelCache.reset),
            "measured": Case(get_one(engine), warm),
            "SQLite": Case(get_one(engine), SQLModelCache.reset),
        },
        "SQLite",
        8.0,
    )
    SQLModelCache.reset()


def near(world: World) -> Iterator[Path]:
    """A hit in this process's near cache, in front of Redis."""
    engine, client = world.memory_engine(), world.client()
    store = {("product", 1): payload(1)}

    def by_hand(count: int) -> None:
        for _ in range(count):
            with Session(engine) as session:
                attach(session, 1, store["product", 1])

    transport = RedisSyncTransport(client)

    def warm() -> None:
        SQLModelCache.configure(transport, near_cache=NearCache())
        run = get_one(engine)
        while not SQLModelCache.stats().near_hits:
            run(1)

    yield Path(
        "near hit",
        "look-up, decode, attach by hand",
        2.5,
        {"floor": Case(by_hand, SQLModelCache.reset), "measured": Case(get_one(engine), warm)},
    )
    SQLModelCache.reset()


def redis_sync(world: World) -> Iterator[Path]:
    """A hit in Redis, from a thread."""
    engine, client = world.memory_engine(), world.client()
    client.set("product:1", payload(1))
    client.set("product", b"F" + b"\0" * 16)

    def by_hand(count: int) -> None:
        for _ in range(count):
            with Session(engine) as session:
                raw, _table = client.mget("product:1", "product")  # type: ignore[misc]
                attach(session, 1, raw)

    transport = RedisSyncTransport(client)

    def warm() -> None:
        SQLModelCache.configure(transport)
        get_one(engine)(2)

    yield Path(
        "Redis hit",
        "MGET, decode, attach by hand",
        1.25,
        {"floor": Case(by_hand, SQLModelCache.reset), "measured": Case(get_one(engine), warm)},
    )
    SQLModelCache.reset()


class Loop:
    """An event loop in which cases run coroutines."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def run(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a coroutine function to its end."""

        async def call() -> None:
            await function(*arguments)

        self._runner.run(call())

    def case(self, once: Callable[[int], Awaitable[Any]], before: Callable[[], Awaitable[Any]]) -> Case:
        """Return a case of two coroutine functions."""
        return Case(lambda count: self.run(once, count), lambda: self.run(before))

    def close(self) -> None:
        """Close it."""
        self._runner.close()


def redis_async(world: World) -> Iterator[Path]:
    """Hits in Redis from a task, one after the other."""
    loop = Loop()
    world.stack.callback(loop.close)
    world.client()
    engine: AsyncEngine = create_async_engine(
        "sqlite+aiosqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    client = redis.asyncio.Redis.from_url(world.redis_url)
    transport = RedisAsyncTransport(client)

    async def by_hand(count: int) -> None:
        for _ in range(count):
            async with AsyncSession(engine) as session:
                raw, _table = await client.mget("product:1", "product")  # type: ignore[misc]
                attach(session.sync_session, 1, raw)

    async def measured(count: int) -> None:
        for _ in range(count):
            async with AsyncSession(engine) as session:
                await session.get(Product, 1)

    async def without() -> None:
        SQLModelCache.reset()
        await client.set("product:1", payload(1))
        await client.set("product", b"F" + b"\0" * 16)

    async def warm() -> None:
        SQLModelCache.configure(transport)
        await measured(2)

    async def close() -> None:
        SQLModelCache.reset()
        await client.aclose()
        await engine.dispose()

    loop.run(greenlet_spawn, fill, engine.sync_engine)
    yield Path(
        "Redis hit, asyncio",
        "MGET, decode, attach by hand",
        1.35,
        {"floor": loop.case(by_hand, without), "measured": loop.case(measured, warm)},
    )
    loop.run(close)


def untouched(world: World) -> Iterator[Path]:
    """What the library must not slow down."""
    engine = world.memory_engine()

    def selects(count: int) -> None:
        statement = select(Product).where(Product.id == 1)
        for _ in range(count):
            with Session(engine) as session:
                session.exec(statement).all()

    held = Session(engine)
    world.stack.callback(held.close)

    def identity_hits(count: int) -> None:
        kept = held.get(Product, 1)
        for _ in range(count):
            held.get(Product, 1)
        assert kept is not None

    for name, run in {
        "get of a model without a CacheConfig": get_one(engine, Untouched),
        "select() of a cached model": selects,
        "get from the identity map": identity_hits,
    }.items():
        yield Path(
            name,
            "without the library",
            1.02,
            {"floor": Case(run, SQLModelCache.reset), "measured": Case(run, SQLModelCache.configure)},
        )
        SQLModelCache.reset()


PATHS: list[Callable[[World], Iterator[Path]]] = [in_process, near, redis_sync, redis_async, untouched]
