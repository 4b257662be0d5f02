"""`SQLModelCache.explain(model, pk, bind=...)`: what the cache holds of a row, and whether a get would use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import PATIENCE, Store
from models import Badge, Gadget, Hero, Plain, add_hero, get_hero
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Session, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlmodel_cache import (
    ConfigurationError,
    MemoryTransport,
    RedisAsyncTransport,
    RowExplanation,
    SQLModelCache,
    TransportError,
)
from sqlmodel_cache._effects import Begin, Keys

SQLITE = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
ANY = pytest.mark.parametrize("engine", ["sqlite", "sqlite+aiosqlite"], indirect=True)
KEY = b"k" * 32


def hero(engine: Engine, pk: int = 1) -> RowExplanation:
    """Explain a hero."""
    return SQLModelCache.explain(Hero, pk, bind=engine)


@ANY
def test_life_of_a_row(engine: Engine, cache: Store) -> None:
    """Nothing, a fence after the insert's table, a value that a hit would be, and a fence again."""
    pk = add_hero(engine)
    found = hero(engine, pk)
    assert (found.state, found.usable, found.reason, found.values) == ("nothing", False, "nothing is stored", None)
    get_hero(engine, pk)
    found = hero(engine, pk)
    assert (found.state, found.usable, found.reason) == ("value", True, None)
    assert found.values == {"id": pk, "name": "Rusty", "age": 48, "team_id": None}
    assert found.key in cache.values()
    assert found.ttl is not None
    assert 500 < found.ttl <= 600
    assert found.size
    assert found.fingerprints == (found.fingerprint,)
    assert "Rusty" in str(found)
    before = SQLModelCache.stats()
    with Session(engine) as session:
        session.get_one(Hero, pk).age = 5
        session.commit()
        assert SQLModelCache.explain(Hero, pk, bind=session).state == "fence"
    found = hero(engine, pk)
    assert (found.state, found.usable, found.ttl) == ("fence", False, None)
    assert "not used: it has been written" in str(found)
    assert SQLModelCache.stats().hits == before.hits + 1


@SQLITE
def test_commits_in_flight(engine: Engine, cache: Store) -> None:
    """Of the row, and of its table."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    key = hero(engine, pk).key
    cache.transport.execute(Begin(Keys((), (key.rpartition(":")[0],)), b"t" * 16, 60_000))
    found = hero(engine, pk)
    assert (found.state, found.usable, found.values) == ("value", False, None)
    assert found.reason == "a commit of its whole table is in flight"
    cache.transport.execute(Begin(Keys((key,), ()), b"u" * 16, 60_000))
    assert (hero(engine, pk).state, hero(engine, pk).reason) == (
        "fence",
        "a commit of it is in flight, or has not told how it ended",
    )


@SQLITE
def test_values_that_are_not_used(engine: Engine, cache: Store) -> None:
    """The table was written, another shape is stored, this process owes the row."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    configured = SQLModelCache._cache
    assert configured is not None
    configured.driver.debts.owe(Keys((hero(engine, pk).key,), ()))
    assert hero(engine, pk).reason == "this process has changed it, and the cache has not been told yet"
    SQLModelCache.reset()
    SQLModelCache.configure(cache.transport, encryption_key=KEY)
    found = hero(engine, pk)
    assert (found.state, found.usable) == ("value", False)
    assert found.fingerprint not in found.fingerprints
    assert "other shapes only" in str(found)
    SQLModelCache.configure(cache.transport)
    if cache.client is not None:
        cache.transport.close()
    assert hero(engine, pk).usable  # though the new connection does not know its server yet
    SQLModelCache.invalidate(Hero)
    assert "whole table has been written" in str(hero(engine, pk))


@SQLITE
def test_secrets_stay_secret(engine: Engine, cache: Store) -> None:
    """A hash stands for the primary key, and what is encrypted is decrypted only for who has the key."""
    pk = add_hero(engine)
    SQLModelCache.configure(cache.transport, encryption_key=KEY, hash_keys=True)
    get_hero(engine, pk)
    found = hero(engine, pk)
    assert (found.state, found.usable, found.fingerprints) == ("value", True, (found.fingerprint,))
    assert found.values is not None
    assert found.values["name"] == "Rusty"
    assert "(hidden)" in found.model
    assert not found.key.endswith(f":{pk}")
    assert KEY.decode() not in str(found)


@SQLITE
def test_absence(engine: Engine, cache: Store) -> None:
    """That there is no such row may be stored."""
    with Session(engine) as session:
        session.exec(select(Hero)).all()
    with Session(engine) as session:
        assert session.get(Badge, "a:b") is None
    found = SQLModelCache.explain(Badge, "a:b", bind=engine)
    assert (found.state, found.usable, found.values) == ("absent", True, None)
    assert SQLModelCache.explain(Badge, "c", bind=engine).state == "nothing"


@SQLITE
@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_corrupt_and_unreachable(engine: Engine, cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not decode, and what does not answer, is said."""
    pk = add_hero(engine)
    get_hero(engine, pk)
    for held in cache.transport._rows.values():
        held.payloads = dict.fromkeys(held.payloads, b"\xff")
    assert "does not decode" in str(hero(engine, pk))

    def fails(effect: Any) -> None:
        raise TransportError("down")

    configured = SQLModelCache._cache
    assert configured is not None
    monkeypatch.setattr(configured.driver, "execute", fails)
    assert (hero(engine, pk).state, hero(engine, pk).reason) == ("unknown", "down")


@SQLITE
def test_what_cannot_be_explained(engine: Engine) -> None:
    """Each argument that is wrong is named."""
    with pytest.raises(ConfigurationError, match="configure"):
        hero(engine)
    SQLModelCache.configure(MemoryTransport())
    with pytest.raises(ConfigurationError, match="bind"):
        SQLModelCache.explain(Hero, 1)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="pk"):
        hero(engine, "1")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="model"):
        SQLModelCache.explain(Plain, 1, bind=engine)
    assert SQLModelCache.explain(Gadget, ("a", 1), bind=engine).state == "nothing"


class AsyncOnly:
    """A transport of an application's own that no sync one can be made of."""

    def __init__(self, transport: RedisAsyncTransport) -> None:
        self.aexecute, self.aclose = transport.aexecute, transport.aclose


async def test_aexplain(redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    """A row of an asyncio engine, a connection or a session, where there is nothing but an async transport."""
    client = AsyncRedis.from_url(redis_url)
    transport = RedisAsyncTransport(client, timeout=PATIENCE, commit_timeout=PATIENCE)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/async.db")
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    SQLModelCache.configure(async_transport=AsyncOnly(transport))
    async with AsyncSession(engine) as session:
        session.add(Hero(id=1, name="Rusty"))
        await session.commit()
    assert (await SQLModelCache.aexplain(Hero, 2, bind=engine)).state == "nothing"
    async with AsyncSession(engine) as session:
        await session.get(Hero, 1)
        found = await SQLModelCache.aexplain(Hero, 1, bind=session)
    assert (found.state, found.usable, found.ttl) == ("value", True, None)  # that transport tells no TTL
    with pytest.raises(ConfigurationError, match="a Session needs a transport that AsyncOnly cannot give"):
        SQLModelCache.explain(Hero, 1, bind=engine)
    with pytest.raises(ConfigurationError, match="of a model alone"):
        await SQLModelCache.aexplain(Hero, None, bind=engine)

    SQLModelCache.configure(transport)
    async with engine.connect() as connection:
        found = await SQLModelCache.aexplain(Hero, 1, bind=connection)
    assert found.usable
    assert found.values is not None
    assert found.values["name"] == "Rusty"
    assert found.ttl is not None
    assert 500 < found.ttl <= 600
    await SQLModelCache.aclose()
    await client.aclose()
    await engine.dispose()
