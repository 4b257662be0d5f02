"""The near cache on a real Redis: who commits sees it at once, others soon, and nobody relies on a silent Redis."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
import sqlalchemy.ext.asyncio.session
from models import add_hero, get_hero
from near.rows import Star, add_stars, get_star, hear_everything, near, near_hits, resize, until, warm
from patient import PATIENCE
from servers import RedisServer, free_port
from sqlalchemy import Engine, update
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import (
    ConfigurationError,
    NearCache,
    RedisAsyncTransport,
    RedisSyncTransport,
    SQLModelCache,
)

SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
LONG = NearCache(max_age=3600)  # what becomes of a row is not a matter of its age


def configure(redis_url: str, near_cache: NearCache = LONG) -> None:
    """Configure with patience."""
    transport = RedisSyncTransport(redis.Redis.from_url(redis_url), timeout=PATIENCE, commit_timeout=PATIENCE)
    SQLModelCache.configure(transport, near_cache=near_cache)


def listeners(client: redis.Redis) -> list[dict[str, Any]]:
    """Return the connections that Redis tells what is written."""
    return [one for one in client.client_list() if "B" in one["flags"]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own, to be stopped."""
    own = RedisServer()
    yield own
    own.stop()


@contextmanager
def other_process(engine: Engine, redis_url: str, *key: str) -> Iterator[subprocess.Popen[str]]:
    """Yield another process; see `other.py`."""
    command = [sys.executable, str(Path(__file__).with_name("other.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(" ".join((engine.url.render_as_string(hide_password=False), redis_url, *key)) + "\n")
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait()


def ask(process: subprocess.Popen[str], line: str) -> str:
    """Return what the other process says to a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_hits_ask_neither_database_nor_redis(
    engine: Engine, redis_url: str, redis_client: redis.Redis, sql: Any
) -> None:
    """A near hit is a hit, sends nothing, and gives each session values of its own."""
    configure(redis_url)
    add_stars(engine)
    warm(engine)
    commands = redis_client.info("commandstats")["cmdstat_mget"]["calls"]
    sql.take()
    first, second = get_star(engine), get_star(engine)
    assert first is not second
    assert first.name == second.name == "Star 1"
    assert redis_client.info("commandstats")["cmdstat_mget"]["calls"] == commands
    assert sql.take() == []
    stats = SQLModelCache.stats()
    assert 0 < stats.near_hits < stats.hits


@pytest.mark.parametrize("engine", ["sqlite+aiosqlite"], indirect=True)
async def test_an_async_session_asks_neither(
    engine: Engine, redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its near hit needs no greenlet; before, and where the row is not held, it asks Redis as any get does."""
    configure(redis_url)
    async_engine = AsyncEngine(engine)
    async with async_engine.connect() as connection:
        await connection.run_sync(lambda _: add_stars(engine))
        await connection.run_sync(lambda _: warm(engine))
    async with AsyncSession(async_engine) as session:
        before = SQLModelCache.stats().near_hits
        monkeypatch.setattr(sqlalchemy.ext.asyncio.session, "greenlet_spawn", None)
        star = await session.get(Star, 1)
        monkeypatch.undo()
        assert star is not None
        assert star.name == "Star 1"
        assert SQLModelCache.stats().near_hits == before + 1
        assert await session.get(Star, 2) is None


def test_own_commits_are_seen_at_once(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """However near the row was, whatever the commit wrote: the row or the table."""
    configure(redis_url)
    add_stars(engine)
    for size in range(1, 41, 2):
        until(lambda: near_hits(engine))
        resize(engine, size)
        assert get_star(engine).size == size
        until(lambda: near_hits(engine))
        with engine.begin() as connection:
            connection.execute(update(Star).values(size=size + 1))
        assert get_star(engine).size == size + 1


@SQLITE
def test_other_processes_see_a_commit(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """Redis tells them, long before the row is too old; `make bench` says how soon."""
    configure(redis_url)
    add_stars(engine)
    with other_process(engine, redis_url) as process:
        for size in range(1, 101):
            until(lambda: near_hits(engine))
            ask(process, str(size))
            until(lambda size=size: get_star(engine).size == size)  # type: ignore[misc]


@SQLITE
def test_misses_of_others_do_not_evict(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """Leases and fills on other rows of the table leave a row near; its own fill is soon forgotten."""
    configure(redis_url)
    add_stars(engine, 200)
    warm(engine)
    for pk in range(2, 201):
        get_star(engine, pk)
    hear_everything()
    assert near_hits(engine) == 1
    for pk in range(2, 201):
        get_star(engine, pk)
    assert sum(near_hits(engine, pk) for pk in range(1, 201)) == 200


@SQLITE
def test_lost_connection_empties(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """When the connection is killed everything is forgotten, and it is opened again."""
    configure(redis_url)
    add_stars(engine)
    warm(engine)
    [listener] = listeners(redis_client)
    redis_client.client_kill_filter(_id=listener["id"])
    until(lambda: len(near()) == 0)
    warm(engine)
    [again] = listeners(redis_client)
    assert again["id"] != listener["id"]
    resize(engine, 5)
    assert get_star(engine).size == 5


@SQLITE
@pytest.mark.parametrize("how", ["flushall", "delete", "pexpire", "evict"])
def test_what_redis_forgets_is_forgotten(engine: Engine, server: RedisServer, how: str) -> None:
    """A flush, a key that is deleted by hand, expires or is evicted: the near row goes, too."""
    configure(server.url)
    add_stars(engine)
    warm(engine)
    with redis.Redis.from_url(server.url) as client:
        [row] = client.keys("*}:1")
        if how == "flushall":
            client.flushall()
        elif how == "delete":
            client.delete(row)
        elif how == "pexpire":
            client.pexpire(row, 1)
        else:
            client.config_set("maxmemory-policy", "allkeys-random")
            client.config_set("maxmemory", 1)
            client.config_set("maxmemory", 0)
        until(lambda: len(near()) == 0)


@SQLITE
def test_silent_redis_is_not_relied_on(engine: Engine, server: RedisServer) -> None:
    """While Redis is stopped, near hits end a second after the last PING that it has answered; then all goes on."""
    SQLModelCache.configure(server.url, near_cache=LONG, timeout=0.05)
    add_stars(engine)
    warm(engine)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        until(lambda: not near_hits(engine))  # long before the row is too old
        until(lambda: len(near()) == 0)  # and the connection is given up
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    warm(engine)


@SQLITE
def test_dead_redis(engine: Engine, server: RedisServer) -> None:
    """When Redis dies near hits end; when there is one again they come back."""
    SQLModelCache.configure(server.url, near_cache=LONG)
    add_stars(engine)
    warm(engine)
    server.stop()
    until(lambda: not near_hits(engine))
    assert len(near()) == 0
    assert get_star(engine).name == "Star 1"
    server.start()
    warm(engine)


@SQLITE
def test_age_bounds(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """A row that is older than `max_age` is looked up again, though nobody has written it."""
    configure(redis_url, NearCache(max_age=0.05))
    add_stars(engine)
    until(lambda: near_hits(engine))
    until(lambda: not near_hits(engine))
    assert SQLModelCache.stats().misses == 1


@SQLITE
def test_models_choose(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """Other models are not kept near, and open no connection."""
    configure(redis_url)
    pk = add_hero(engine)
    for _ in range(5):
        get_hero(engine, pk)
    assert SQLModelCache.stats().near_hits == len(near()) == 0
    assert listeners(redis_client) == []


@SQLITE
def test_get_many_and_get_by(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """They are answered near, too; a get counts once, whatever it looks up."""
    configure(redis_url)
    add_stars(engine, 3)

    def counted(read: Any) -> tuple[int, int]:
        before = SQLModelCache.stats()
        with Session(engine) as session:
            read(session)
        after = SQLModelCache.stats()
        return after.hits - before.hits, after.near_hits - before.near_hits

    until(lambda: counted(lambda session: SQLModelCache.get_many(session, Star, [1, 2, 3])) == (3, 3))
    until(lambda: counted(lambda session: SQLModelCache.get_by(session, Star, name="Star 2")) == (1, 1))
    commands = redis_client.info("commandstats")["cmdstat_mget"]["calls"]
    assert counted(lambda session: SQLModelCache.get_many(session, Star, [3, 1, 2])) == (3, 3)
    assert counted(lambda session: SQLModelCache.get_by(session, Star, name="Star 2")) == (1, 1)
    assert redis_client.info("commandstats")["cmdstat_mget"]["calls"] == commands
    with Session(engine) as session:
        session.get_one(Star, 2).name = "Renamed"
        session.commit()
    with Session(engine) as session:
        assert SQLModelCache.get_by(session, Star, name="Star 2") is None


@SQLITE
@pytest.mark.parametrize("protocol", [2, 3])
def test_reset_ends_the_thread(engine: Engine, redis_url: str, redis_client: redis.Redis, protocol: int) -> None:
    """With it the connection, at once; whatever the client speaks, and whoever gave it."""
    theirs = redis.asyncio.Redis.from_url(redis_url, protocol=protocol, decode_responses=True)
    SQLModelCache.configure(RedisAsyncTransport(theirs, timeout=PATIENCE), near_cache=LONG)
    add_stars(engine)
    warm(engine)
    assert [thread.name for thread in threading.enumerate() if thread.daemon] == ["sqlmodel-cache-near"]
    SQLModelCache.reset()
    assert [thread.name for thread in threading.enumerate() if thread.daemon] == []
    until(lambda: listeners(redis_client) == [])
    gc.collect()  # a socket that is left open would be an error


@SQLITE
def test_fork_begins_anew(engine: Engine, redis_url: str, redis_client: redis.Redis) -> None:
    """A child has no rows of its parent's, a connection of its own, and hears what the parent commits."""
    add_stars(engine)
    with other_process(engine, redis_url) as process:
        assert ask(process, "fork") == "warm"
        assert len(listeners(redis_client)) == 2
        assert ask(process, "the child is warm") == "as it should be"


SENTINELS = [
    lambda: RedisSyncTransport(redis.sentinel.Sentinel([("localhost", 1)]).master_for("x")),
    lambda: RedisAsyncTransport(redis.asyncio.sentinel.Sentinel([("localhost", 1)]).master_for("x")),
]


@pytest.mark.parametrize("make", SENTINELS, ids=["sync", "async"])
def test_connections_that_cannot_be_derived(make: Any) -> None:
    """A Sentinel's client is refused, in words that name near_cache and say what to do."""
    with pytest.raises(ConfigurationError, match=r"near_cache.*Sentinel.*leave near_cache out") as error:
        SQLModelCache.configure(make(), near_cache=NearCache())
    assert error.value.argument == "near_cache"


@SQLITE
def test_server_that_refuses(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Where there is nothing to hear, gets are as without a near cache, and the log says so once."""
    add_stars(engine)
    SQLModelCache.configure(f"redis://localhost:{free_port()}", near_cache=LONG)
    assert near_hits(engine) == 0
    until(lambda: caplog.records)
    assert [record.levelname for record in caplog.records if "near cache" in record.message] == ["WARNING"]
