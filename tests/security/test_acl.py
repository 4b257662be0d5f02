"""The commands that a Redis user needs: what SECURITY.md says is enough, and none of it too much."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from models import Badge, Hero, add_hero
from servers import RedisServer
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Session, SQLModel, create_engine

from sqlmodel_cache import RedisSyncTransport, SQLModelCache

SECURITY = (Path(__file__).parents[2] / "SECURITY.md").read_text()


def rules() -> list[str]:
    """Return the rules of the user in SECURITY.md."""
    found = re.search(r"^ACL SETUSER cache (.*)$", SECURITY, re.MULTILINE)
    assert found is not None
    return found[1].split()


COMMANDS = [rule for rule in rules() if rule.startswith("+")]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server of its own: its users are nobody else's business."""
    made = RedisServer()
    yield made
    made.stop()


@pytest.fixture
def sqlite(tmp_path: Path) -> Engine:
    """A database; what these tests are about is the same on all."""
    made = create_engine(f"sqlite:///{tmp_path}/test.db")
    SQLModel.metadata.create_all(made)
    return made


def user(server: RedisServer, *without: str) -> redis.Redis:
    """Return a client of a user with the rules but some."""
    with redis.Redis(port=server.port) as admin:
        admin.flushall()
        admin.execute_command("SCRIPT", "FLUSH")
        admin.execute_command("ACL", "SETUSER", "cache", "reset", *(rule for rule in rules() if rule not in without))
    [password] = [rule[1:] for rule in rules() if rule.startswith(">")]
    return redis.Redis(port=server.port, username="cache", password=password)


def everything(engine: Engine, client: redis.Redis) -> Any:
    """Do all that the library does, and return what it counted: misses, hits, two shapes, absence, commits, renewal."""
    transport = RedisSyncTransport(client, timeout=30, commit_timeout=30)
    pk = add_hero(engine)
    errors = hits = 0
    for key in (None, b"k" * 32, None):
        SQLModelCache.configure(transport, encryption_key=key)
        for name in ("one", "two"):
            for _ in range(2):
                with Session(engine) as session:
                    session.get_one(Hero, pk)
                with Session(engine) as session:
                    session.get(Badge, "missing")
                with Session(engine) as session:
                    SQLModelCache.get_many(session, Hero, [pk, pk + 1])
            if key is None:
                with Session(engine) as session:
                    session.get_one(Hero, pk).name = name
                    session.commit()
                SQLModelCache.invalidate(Hero)
        stats = SQLModelCache.stats()
        errors, hits = errors + stats.errors, hits + stats.hits
        age(client)
    return errors, hits


def age(client: redis.Redis) -> None:
    """Let the keys of tables come near their end, as they do in weeks."""
    with redis.Redis(port=client.connection_pool.connection_kwargs["port"]) as admin:
        for key in admin.keys("sqlmodelcache:*}"):
            admin.pexpire(key, 3_600_000)


def test_the_commands_are_enough(server: RedisServer, sqlite: Engine) -> None:
    """No error, and hits."""
    with user(server) as client:
        errors, hits = everything(sqlite, client)
        assert (errors, hits > 5) == (0, True)
        for line in (["KEYS", "*"], ["FLUSHALL"], ["GET", "other"], ["CONFIG", "GET", "*"], ["DEL", "sqlmodelcache:x"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*line)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_needed(server: RedisServer, sqlite: Engine, command: str) -> None:
    """Without any of them something fails, and is counted, or nothing is ever a hit; no call raises."""
    with user(server, command) as client:
        errors, hits = everything(sqlite, client)
        assert errors > 0 or hits == 0


async def test_the_commands_are_enough_for_async_sessions(server: RedisServer, sqlite: Engine) -> None:
    """The client that is derived from the given one logs in as the same user."""
    pk = add_hero(sqlite)
    engine = create_async_engine(str(sqlite.url).replace("sqlite:", "sqlite+aiosqlite:"))
    with user(server) as client:
        SQLModelCache.configure(RedisSyncTransport(client, timeout=30, commit_timeout=30))
        for _ in range(2):
            async with AsyncSession(engine) as session:
                await session.get_one(Hero, pk)
        await SQLModelCache.aclose()
        stats = SQLModelCache.stats()
        assert (stats.hits, stats.errors) == (1, 0)
    await engine.dispose()
