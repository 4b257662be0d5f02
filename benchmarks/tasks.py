"""Hits of an `AsyncSession`: one after the other, and a hundred tasks at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import redis.asyncio
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from benchmarks.hits import FENCE, MGET_BY_HAND, PAYLOADS
from benchmarks.measure import Case, Race, Spent, Stopwatch
from benchmarks.model import ROWS, Product, attach, numbers
from benchmarks.table import Goal, Line, raced, time_of, times
from benchmarks.world import Loop, World, async_cached
from sqlmodel_cache import RedisAsyncTransport, SQLModelCache
from sqlmodel_cache._plan import Effect

GETS_PER_SECOND = 15_000
TIMES_FASTER = 5.0

Run: TypeAlias = Callable[[int], Awaitable[Spent | None]]

Get: TypeAlias = Callable[[AsyncSession, int], Awaitable[None]]
"""Gets a row by its primary key."""


class Unbatched(RedisAsyncTransport):
    """The same transport, but each effect is a round trip of its own."""

    async def aexecute(self, effect: Effect[Any]) -> Any:
        """Return the effect's reply."""
        return await self._here().execute(effect)


class Cases:
    """What the cases have in common: a loop, a database, and a Redis with the floor's rows."""

    def __init__(self, world: World) -> None:
        world.client()
        self.loop = Loop(world)
        self.engine: AsyncEngine = self.loop.engine()
        self.client: redis.asyncio.Redis = self.loop.client()

    async def _reset(self) -> None:
        SQLModelCache.reset()
        await self.client.mset({**PAYLOADS, "product": FENCE})  # type: ignore[dict-item]

    async def get_each(self, count: int) -> None:
        """Open a session, get a row, close it."""
        for pk in numbers(count):
            async with AsyncSession(self.engine) as session:
                await session.get(Product, pk)

    def floor(self, run: Run) -> Case:
        """Return the case of a floor."""
        return self.loop.case(run, self._reset)

    def hits(self, run: Run, transport: RedisAsyncTransport, gets: int = 1) -> Case:
        """Return the case of hits through the library."""

        async def warm() -> None:
            SQLModelCache.configure(async_transport=transport)
            await self.get_each(ROWS)

        async def checked(count: int) -> Spent | None:
            before = SQLModelCache.stats().hits
            spent = await run(count)
            assert SQLModelCache.stats().hits - before == count * gets
            return spent

        return self.loop.case(checked, warm)

    def opened(self, getter: Callable[[], Get]) -> Run:
        """Return the case of tasks whose sessions are open before: only their gets count."""

        async def run(count: int) -> Spent:
            watch = Stopwatch()
            for _ in range(count):
                sessions = [AsyncSession(self.engine) for _ in range(ROWS)]
                with watch:
                    get = getter()
                    await asyncio.gather(*(get(session, pk) for pk, session in enumerate(sessions, 1)))
                for session in sessions:
                    await session.close()
            return watch.spent

        return run

    def opening(self, getter: Callable[[], Get]) -> Run:
        """Return the case of tasks that open and close their sessions."""

        async def open_and_get(get: Get, pk: int) -> None:
            async with AsyncSession(self.engine) as session:
                await get(session, pk)

        async def run(count: int) -> None:
            for _ in range(count):
                get = getter()
                await asyncio.gather(*(open_and_get(get, pk) for pk in numbers(ROWS)))

        return run

    def sharing(self) -> Get:
        """Return the floor's get, for a hundred tasks: they share one bare MGET."""

        async def bare() -> Any:
            return await self.client.mget([*PAYLOADS, "product"])  # type: ignore[misc]

        together = asyncio.ensure_future(bare())

        async def get(session: AsyncSession, pk: int) -> None:
            attach(session.sync_session, pk, (await together)[pk - 1])

        return get


def redis_async(world: World) -> Iterator[Line]:
    """Hits in Redis from a task, one after the other."""
    cases = Cases(world)

    async def by_hand(count: int) -> None:
        for pk in numbers(count):
            async with AsyncSession(cases.engine) as session:
                raw, _ = await cases.client.mget(f"product:{pk}", "product")  # type: ignore[misc]
                attach(session.sync_session, pk, raw)

    found = world.race(
        {"floor": cases.floor(by_hand), "measured": cases.hits(cases.get_each, async_cached(cases.client))}
    )
    SQLModelCache.reset()
    yield raced("Redis hit, asyncio", found, MGET_BY_HAND, 1.35)


def at_once(world: World) -> Iterator[Line]:
    """A hundred tasks at once, each with a session of its own: opened before, or by the task."""
    cases = Cases(world)
    for path, tasks in (("100 tasks at once", cases.opened), ("100 tasks, opening and closing", cases.opening)):
        run = tasks(lambda: _get)
        found = world.race(
            {
                "floor": cases.floor(tasks(cases.sharing)),
                "measured": cases.hits(run, async_cached(cases.client), ROWS),
                "unbatched": cases.hits(run, async_cached(cases.client, Unbatched), ROWS),
            }
        )
        SQLModelCache.reset()
        yield _throughput(path, found)


async def _get(session: AsyncSession, pk: int) -> None:
    await session.get(Product, pk)


def hundred_hits(world: World) -> Case:
    """Return the case of a hundred tasks with open sessions."""
    cases = Cases(world)
    return cases.hits(cases.opened(lambda: _get), async_cached(cases.client), ROWS)


def _throughput(path: str, found: Race) -> Line:
    per_core = ROWS / found.us("measured", "cpu") * 1e6
    goals = (
        Goal("gets/s per core", per_core, GETS_PER_SECOND, at_least=True),
        times("x faster than without batching", found.ratio("unbatched", "measured"), TIMES_FASTER, at_least=True),
        Goal("gets/s by the wall's clock", ROWS / found.us("measured") * 1e6),
        times("x floor", found.ratio("measured", "floor")),
    )
    each = time_of(found.us("measured") / ROWS)
    floor = time_of(found.us("floor") / ROWS)
    return Line(
        path, f"{each} a get", goals, f"{floor} a get", "as many tasks that share one bare MGET; decode, attach by hand"
    )
