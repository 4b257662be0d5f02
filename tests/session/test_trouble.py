"""Redis in trouble, and bad data in it: the reader gets the row, the writer's commit goes on, and it is counted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import redis
from conftest import Store, redis_client  # noqa: F401
from models import Gadget, Hero, add_hero, get_hero
from patient import PATIENCE
from servers import RedisServer, free_port
from sqlalchemy import Engine, delete
from sqlmodel import Session, col
from waiting import until

from sqlmodel_cache import RedisSyncTransport, SQLModelCache


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own, to be killed."""
    own = RedisServer()
    yield own
    own.stop()


def garbage() -> list[bytes]:
    """Return values that are not rows: text, cut headers, cut and hostile bodies."""
    head = b"V\x03"
    return [
        b"",
        b"x",
        b"V",
        head,
        head + b"\0" * 24,
        head + b"\xff" * 400,
        b'{"id": 1}',
        b"\x80\x04\x95.",
        b"F" + b"\0" * 11,
        b"F" + b"\0" * 16,
    ]


@pytest.mark.parametrize("engine", ["sqlite", "postgresql+asyncpg"], indirect=True)
def test_garbage_is_a_miss_and_is_replaced(engine: Engine, redis_client: redis.Redis) -> None:  # noqa: F811
    """Whatever stands at a row's key, the caller gets the row, and the next get hits again."""
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE))
    pk = add_hero(engine)
    get_hero(engine, pk)
    [key] = redis_client.keys("*}:*")
    good = redis_client.get(key)
    assert good is not None
    corrupt = [b"", b"\0", good[38:-1], good[38:] + b"\0", b"\xc1" * 40]
    values = [good[:34] + len(body).to_bytes(4) + body for body in corrupt]
    for value in [*garbage(), good[:26], good[:36], good[:-1], good + b"\0", *values]:
        redis_client.set(key, value, px=60_000)
        assert get_hero(engine, pk).name == "Rusty"
        before = SQLModelCache.stats().hits
        assert get_hero(engine, pk).name == "Rusty"
        assert SQLModelCache.stats().hits == before + 1, value
    assert SQLModelCache.stats().corrupt == len(corrupt)
    assert SQLModelCache.stats().errors == 0


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_wrong_types_are_misses_and_are_replaced(engine: Engine, redis_client: redis.Redis) -> None:  # noqa: F811
    """A list, hash or set at the keys of a row and of its table is replaced."""
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE))
    pk = add_hero(engine)
    get_hero(engine, pk)
    [row] = redis_client.keys("*}:*")
    table = row.rpartition(b":")[0]
    for key in (row, table):
        for command in (["RPUSH", key, "x"], ["HSET", key, "a", "b"], ["SADD", key, "x"]):
            redis_client.delete(key)
            redis_client.execute_command(*command)
            assert get_hero(engine, pk).name == "Rusty"
            before = SQLModelCache.stats().hits
            get_hero(engine, pk)
            assert SQLModelCache.stats().hits == before + 1, command
            redis_client.delete(key)
            redis_client.execute_command(*command)
            with Session(engine) as session:
                hero = session.get_one(Hero, pk)
                hero.age = (hero.age or 0) + 1
                session.commit()
                age = hero.age
            assert get_hero(engine, pk).age == age


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_redis_is_down_from_the_start(engine: Engine) -> None:
    """With no server at configure(), reads and writes go on, and errors are counted."""
    with redis.Redis(port=free_port()) as client:
        SQLModelCache.configure(RedisSyncTransport(client))
        pk = add_hero(engine)
        assert get_hero(engine, pk).name == "Rusty"
        with Session(engine) as session:
            session.get_one(Hero, pk).name = "New"
            session.commit()
        assert get_hero(engine, pk).name == "New"
        assert SQLModelCache.stats().errors > 0


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_redis_goes_down_and_comes_back_empty(engine: Engine, server: RedisServer) -> None:
    """A server that dies costs misses; once it is back, rows are cached again, and none is stale."""
    SQLModelCache.configure(RedisSyncTransport(redis.Redis.from_url(server.url), timeout=PATIENCE))
    pk = add_hero(engine)
    get_hero(engine, pk)
    server.stop()
    assert get_hero(engine, pk).name == "Rusty"
    with Session(engine) as session:
        session.get_one(Hero, pk).name = "New"
        session.commit()
    assert get_hero(engine, pk).name == "New"
    server.start()
    until(lambda: SQLModelCache.stats().owed == 0 and not SQLModelCache.stats().unreachable)
    other = add_hero(engine, "Other")
    get_hero(engine, other)
    hits = SQLModelCache.stats().hits
    assert get_hero(engine, other).name == "Other"
    assert SQLModelCache.stats().hits == hits + 1
    assert get_hero(engine, pk).name == "New"


@pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
def test_server_that_never_answers(engine: Engine) -> None:
    """A server that accepts and never answers costs a bounded time, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(silent.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        client = redis.Redis(port=silent.getsockname()[1])
        SQLModelCache.configure(RedisSyncTransport(client, timeout=0.02, commit_timeout=0.02))
        pk = add_hero(engine)
        assert get_hero(engine, pk).name == "Rusty"
        with Session(engine) as session:
            session.get_one(Hero, pk).name = "New"
            session.commit()
        assert get_hero(engine, pk).name == "New"
        assert SQLModelCache.stats().errors > 0
        silent.shutdown(socket.SHUT_RDWR)
        SQLModelCache.reset()
        for connection in held:
            connection.close()


def test_store_lost_between_steps(engine: Engine, cache: Store) -> None:
    """A cache that forgets everything at any moment means misses only."""
    pk = add_hero(engine)
    for number in range(3):
        get_hero(engine, pk)
        cache.clear()
        with Session(engine) as session:
            session.get_one(Hero, pk).name = f"name {number}"
            session.flush()
            cache.clear()
            session.commit()
            cache.clear()
        assert get_hero(engine, pk).name == f"name {number}"
        assert get_hero(engine, pk).name == f"name {number}"


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_key_that_is_not_text_keeps_back_no_other(engine: Engine, cache: Store) -> None:
    """A statement that names half of a surrogate pair fails; what else its transaction wrote is invalidated."""
    with Session(engine) as session:
        session.add(Gadget(owner="bob", number=1, label="old"))
        session.commit()
    for _ in range(2):
        with Session(engine) as session:
            assert session.get_one(Gadget, ("bob", 1)).label == "old"
    with Session(engine) as session:
        gadget = session.get_one(Gadget, ("bob", 1))
        with pytest.raises(UnicodeEncodeError):  # noqa: SIM117  the savepoint must see it
            with session.begin_nested():
                session.execute(delete(Gadget).where(col(Gadget.owner) == "\ud800", col(Gadget.number) == 1))
        gadget.label = "new"
        session.commit()
    assert SQLModelCache.stats().hits == 2
    SQLModelCache.reset()
    SQLModelCache.configure(cache.transport)  # another process, which owes nothing
    with Session(engine) as session:
        assert session.get_one(Gadget, ("bob", 1)).label == "new"
