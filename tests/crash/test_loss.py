"""A Redis that forgets, and a fence that lapses too early: a miss or a refused fill, never a stale row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from crash.points import POINTS, watch_commit, watched
from crash.rows import held, hits_of, lapse, name_of
from models import Hero, Team, add_hero, get_hero
from servers import RedisServer
from sqlalchemy import Engine, delete, insert, text, update
from sqlmodel import Session
from transport.backends import Value

from sqlmodel_cache import InvalidationError, RedisSyncTransport, SQLModelCache

ON_POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql", "postgresql+asyncpg"], indirect=True)

# What happens to the cache at a point: everything is lost, or rows, or tables, or one fence lapses.
LOSSES: dict[str, Callable[[redis.Redis], object]] = {
    "everything": lambda client: client.flushall(),
    "rows": lambda client: drop(client, "*}:*"),
    "tables": lambda client: drop(client, "*}"),
    "deadline": lapse,
}


def drop(client: redis.Redis, pattern: str) -> None:
    """Lose the keys that match."""
    keys: Any = client.keys(pattern)
    if keys:
        client.delete(*keys)


class Script:
    """What a test wants done at a point, each once."""

    def __init__(self) -> None:
        self.at: dict[str, Callable[[], object]] = {}
        self.reached: list[str] = []

    def reach(self, point: str) -> None:
        """Do what is due at a point."""
        self.reached.append(point)
        self.at.pop(point, lambda: None)()


@pytest.fixture
def script(engine: Engine, redis_client: redis.Redis) -> Script:
    """A configured cache, and an engine, that stop at the points of a commit."""
    made = Script()
    transport = RedisSyncTransport(redis_client, timeout=20, commit_timeout=20)
    SQLModelCache.configure(watched(transport, made.reach), async_transport=watched(transport.twin(), made.reach))
    watch_commit(engine, made.reach)
    return made


def write(engine: Engine, kind: str, pk: int, name: str) -> None:
    """Change a hero, in a transaction that fences its row or its table."""
    with Session(engine) as session:
        if kind == "row":
            session.get_one(Hero, pk).name = name
        else:
            session.execute(update(Hero).where(Hero.name != "").values(name=name))  # type: ignore[arg-type]
        session.commit()


@ON_POSTGRESQL
@pytest.mark.parametrize("kind", ["row", "table"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("point", POINTS)
def test_commit_outlives_a_loss_at_a_point(
    engine: Engine, redis_client: redis.Redis, script: Script, point: str, loss: str, kind: str
) -> None:
    """Whatever the cache loses during a commit, and whoever fills meanwhile, nothing is stale once it has returned."""
    pk = add_hero(engine)
    assert hits_of(engine, pk) == 1

    def lose() -> None:
        LOSSES[loss](redis_client)
        get_hero(engine, pk)
        get_hero(engine, pk)

    script.reached.clear()
    script.at[point] = lose
    write(engine, kind, pk, "New")
    assert point in script.reached
    assert script.at == {}
    assert name_of(engine, pk) == "New"
    assert hits_of(engine, pk) == 2


@ON_POSTGRESQL
@pytest.mark.parametrize("kind", ["row", "table"])
def test_commit_slower_than_its_fence_is_noticed(
    engine: Engine, redis_client: redis.Redis, script: Script, kind: str
) -> None:
    """A deadline passes before COMMIT takes effect and a reader stores the old row: the release invalidates it."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    stored: list[Any] = []

    def too_late() -> None:
        assert lapse(redis_client) > 0
        assert get_hero(engine, pk).name == "Rusty"
        stored.extend(mark for mark in held(redis_client).values() if isinstance(mark, Value))
        assert hits_of(engine, pk) == 2

    script.at["before COMMIT"] = too_late
    write(engine, kind, pk, "New")
    assert len(stored) == 1
    assert name_of(engine, pk) == "New"
    assert hits_of(engine, pk) == 2


@ON_POSTGRESQL
def test_lapsed_fence_of_one_writer_leaves_the_other_s(
    engine: Engine, redis_client: redis.Redis, script: Script
) -> None:
    """While a second writer's commit is in flight the row stays fenced, though the first's fence has lapsed."""
    pk = add_hero(engine)
    get_hero(engine, pk)

    def second() -> None:
        lapse(redis_client)
        script.at["before COMMIT"] = lambda: stored.append(hits_of(engine, pk))
        with engine.begin() as connection:
            connection.execute(text("UPDATE hero SET age = 1 WHERE name = 'Rusty'"))

    stored: list[int] = []
    script.at["inside COMMIT"] = second
    write(engine, "row", pk, "New")
    assert stored == [0]
    assert name_of(engine, pk) == "New"
    assert hits_of(engine, pk) == 2


# the reader's steps

STEPS = ("before LOOKUP", "before LEASE", "before FILL")


@ON_POSTGRESQL
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", STEPS)
def test_reader_outlives_a_loss_before_a_step(
    engine: Engine, redis_client: redis.Redis, script: Script, step: str, loss: str
) -> None:
    """A reader that loses its lease, or its table's version, does not store what it read before another's commit."""
    pk = add_hero(engine)

    def lose_and_write() -> None:
        LOSSES[loss](redis_client)
        write(engine, "row", pk, "New")
        LOSSES[loss](redis_client)

    script.at[step] = lose_and_write
    assert get_hero(engine, pk).name == ("Rusty" if step == "before FILL" else "New")
    assert script.at == {}
    assert name_of(engine, pk) == "New"
    assert hits_of(engine, pk) == 2


# real evictions


@pytest.fixture
def small_server() -> Iterator[RedisServer]:
    """A Redis of the test's own, whose memory the test limits."""
    server = RedisServer()
    yield server
    server.stop()


def limit(client: redis.Redis, policy: str, bytes_left: int) -> None:
    """Let the server have that many bytes more than it uses now."""
    used: Any = client.info("memory")
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", used["used_memory"] + bytes_left)


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl"])
def test_evictions_cost_misses_only(engine: Engine, small_server: RedisServer, policy: str) -> None:
    """With more rows than there is memory for, every get returns the row as it is, through all kinds of writes."""
    with redis.Redis.from_url(small_server.url) as client:
        with engine.begin() as connection:
            connection.execute(insert(Team).values(id=1, name="A"))
            rows = [{"id": pk, "name": "0" * 200, "age": pk, "team_id": None} for pk in range(150)]
            connection.execute(insert(Hero), rows)
        SQLModelCache.configure(RedisSyncTransport(client, timeout=20, commit_timeout=20))
        name_of(engine, 0)
        write(engine, "row", 0, "0" * 200)  # every script is in the server's memory by now
        limit(client, policy, 40_000)
        for serial in range(3):
            for pk in range(serial, 150, 2):
                name_of(engine, pk)
            write(engine, "row", serial, f"{serial}" * 200)
            with engine.begin() as connection:
                connection.execute(delete(Hero).where(Hero.id == 100 + serial))  # type: ignore[arg-type]
                connection.execute(text(f"UPDATE hero SET name = 'text {serial}' WHERE age > {140 + serial}"))
            for pk in range(150):
                name_of(engine, pk)
        stats: Any = client.info("stats")
        assert stats["evicted_keys"] > 0
    assert SQLModelCache.stats().fills > 300


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_full_redis_refuses_a_commit_that_it_cannot_fence(engine: Engine, small_server: RedisServer) -> None:
    """A server that is full and may not evict takes no fence: the commit is refused, and reads go on."""
    pk = add_hero(engine)
    with redis.Redis.from_url(small_server.url) as client:
        transport = RedisSyncTransport(client, timeout=20, commit_timeout=20)
        SQLModelCache.configure(transport, on_unreachable="refuse")
        get_hero(engine, pk)
        limit(client, "noeviction", -100_000)
        with pytest.raises(InvalidationError):
            write(engine, "row", pk, "New")
        assert name_of(engine, pk) == "Rusty"
        client.config_set("maxmemory", 0)
        write(engine, "row", pk, "New")
        assert name_of(engine, pk) == "New"
        assert hits_of(engine, pk) == 2


@pytest.mark.parametrize("engine", ["postgresql", "postgresql+asyncpg"], indirect=True)
@pytest.mark.parametrize("point", POINTS[1:5])
def test_commit_outlives_a_restart_at_a_point(engine: Engine, small_server: RedisServer, point: str) -> None:
    """A Redis that is restarted empty during a commit, while readers fill, leaves nothing stale after it."""
    pk = add_hero(engine)
    script = Script()
    with redis.Redis.from_url(small_server.url) as client:
        transport = RedisSyncTransport(client, timeout=20, commit_timeout=20)
        SQLModelCache.configure(
            watched(transport, script.reach), async_transport=watched(transport.twin(), script.reach)
        )
        watch_commit(engine, script.reach)
        get_hero(engine, pk)

        def restart() -> None:
            small_server.stop()
            small_server.start()
            get_hero(engine, pk)
            get_hero(engine, pk)

        script.at[point] = restart
        write(engine, "row", pk, "New")
        assert script.at == {}
        assert name_of(engine, pk) == "New"
        name_of(engine, pk)
        assert hits_of(engine, pk) == 2
