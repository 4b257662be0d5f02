"""What the paths run on: databases and servers of their own, and how much of everything a run takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import redis
import redis.asyncio
import servers
from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool
from sqlmodel import Session, create_engine

from benchmarks.measure import Case, Clock, Race, Spent, race
from benchmarks.model import ROWS, Columns, Product, fill, numbers
from sqlmodel_cache import RedisAsyncTransport, RedisSyncTransport, SQLModelCache

PATIENCE = 30  # seconds: a time-out on a busy machine would turn a hit into a miss


@dataclass(frozen=True)
class Effort:
    """How much of everything is done."""

    rounds: int = 9
    seconds: float = 0.15  # of one case in one round
    many: int = 1_000_000  # cached rows of the table that is invalidated as a whole
    kept: int = 100_000  # rows whose memory is counted
    commits: tuple[int, ...] = (1, 100, 1_000)  # rows
    processes: int = 8  # of the stampede
    threads: int = 25  # in each
    commits_heard: int = 200  # of another process
    profile_seconds: float = 6.0


QUICK = Effort(
    rounds=1,
    seconds=0.0,
    many=1_000,
    kept=200,
    commits=(1, 20),
    processes=2,
    threads=3,
    commits_heard=3,
    profile_seconds=0.3,
)


class Counted(redis.Connection):
    """A connection that counts what is sent: one for a command, and one for a pipeline."""

    sent: ClassVar[int] = 0

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send it."""
        Counted.sent += 1
        super().send_packed_command(command, check_health)


@dataclass
class World:
    """Servers, started when the first path wants them, never anybody else's: their databases are emptied."""

    effort: Effort = field(default_factory=Effort)
    stack: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def redis_url(self) -> str:
        """A Redis."""
        server = servers.RedisServer()
        self.stack.callback(server.stop)
        return server.url

    @cached_property
    def postgres_url(self) -> str:
        """A PostgreSQL that waits for the disk at every commit."""
        server = servers.PostgresServer("fsync = on", "synchronous_commit = on")
        self.stack.callback(server.stop)
        return make_url(server.url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    def client(self, database: int = 0) -> redis.Redis:
        """Return a client of an empty Redis."""
        client = redis.Redis.from_url(f"{self.redis_url.removesuffix('/0')}/{database}", socket_timeout=PATIENCE)
        client.flushall(asynchronous=True)  # of a million rows
        self.stack.callback(client.close)
        return client

    def sqlite(self, rows: int = ROWS) -> Engine:
        """Return an in-memory SQLite with rows."""
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        fill(engine, rows)
        self.stack.callback(engine.dispose)
        return engine

    def postgresql(self, rows: int = ROWS) -> Engine:
        """Return a PostgreSQL with rows."""
        engine = create_engine(self.postgres_url)
        fill(engine, rows)
        self.stack.callback(engine.dispose)
        return engine

    def race(self, cases: Mapping[str, Case], clock: Clock = "wall", *, finely: bool = False) -> Race:
        """Let cases race; `finely` in three times as many rounds that take as long together."""
        effort = self.effort
        if finely:
            return race(cases, rounds=3 * effort.rounds, seconds=effort.seconds / 3, clock=clock)
        return race(cases, rounds=effort.rounds, seconds=effort.seconds, clock=clock)


def cached(client: redis.Redis) -> RedisSyncTransport:
    """Return a transport that waits rather than giving up."""
    return RedisSyncTransport(client, timeout=PATIENCE, commit_timeout=PATIENCE)


def get_each(engine: Engine, model: type[Columns] = Product) -> Callable[[int], None]:
    """Return a loop of: open a session, get a row, close it."""

    def run(count: int) -> None:
        for number in numbers(count):
            with Session(engine) as session:
                session.get(model, number)

    return run


def only_hits(run: Callable[[int], Spent | None], gets: int = 1) -> Callable[[int], Spent | None]:
    """Return the same loop, which fails unless each of its gets is a hit."""

    def checked(count: int) -> Spent | None:
        before = SQLModelCache.stats()
        spent = run(count)
        after = SQLModelCache.stats()
        found = (after.hits - before.hits, after.misses - before.misses, after.bypasses - before.bypasses)
        if found != (count * gets, 0, 0):
            raise AssertionError(f"{count * gets} hits were expected; hits, misses, bypasses: {found}")
        return spent

    return checked


def hits(engine: Engine, configure: Callable[[], None], model: type[Columns] = Product) -> Case:
    """Return the case of hits through the library."""
    run = get_each(engine, model)

    def warm() -> None:
        configure()
        run(ROWS)

    return Case(only_hits(run), warm)


def round_trips(client: redis.Redis, prepare: Callable[[], object], act: Callable[[], object]) -> int:
    """Return how often `act` sends something to Redis and waits for the answer, with the library on."""
    settings = dict(client.connection_pool.connection_kwargs)
    counting = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Counted, **settings))
    SQLModelCache.configure(cached(counting))
    try:
        prepare()
        before = Counted.sent
        act()
        return Counted.sent - before
    finally:
        SQLModelCache.reset()
        counting.close()


class Loop:
    """An event loop in which cases run coroutines."""

    def __init__(self, world: World) -> None:
        self._runner = asyncio.Runner()
        self._world = world
        world.stack.callback(self._runner.close)

    def run(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Return what a coroutine function returns."""

        async def call() -> Any:
            return await function(*arguments)

        return self._runner.run(call())

    def case(self, once: Callable[[int], Awaitable[Spent | None]], before: Callable[[], Awaitable[None]]) -> Case:
        """Return a case of two coroutine functions."""
        return Case(lambda count: self.run(once, count), lambda: self.run(before))

    def engine(self) -> AsyncEngine:
        """Return an in-memory SQLite with rows."""
        engine = create_async_engine(
            "sqlite+aiosqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )

        async def make() -> None:
            async with engine.begin() as connection:
                await connection.run_sync(fill)

        self.run(make)
        self._world.stack.callback(lambda: self.run(engine.dispose))
        return engine

    def client(self) -> redis.asyncio.Redis:
        """Return a client with connections for a hundred tasks, and as many again."""
        client = redis.asyncio.Redis.from_url(self._world.redis_url, max_connections=2 * ROWS)
        self._world.stack.callback(lambda: self.run(client.aclose))
        return client


def async_cached(
    client: redis.asyncio.Redis, kind: type[RedisAsyncTransport] = RedisAsyncTransport
) -> RedisAsyncTransport:
    """Return a transport that waits rather than giving up."""
    return kind(client, timeout=PATIENCE, commit_timeout=PATIENCE)
