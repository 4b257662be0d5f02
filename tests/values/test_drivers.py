"""Two drivers on one database share rows where they load the same, and never show each other's types."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from patient import PATIENCE
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn
from values.columns import CASES, TABLES
from values.conftest import Database
from values.test_columns import got, in_database

from sqlmodel_cache import MemoryTransport, RedisSyncTransport, SQLModelCache

ON_POSTGRESQL = [case.name for case in CASES if case.cached and "postgresql" in case.on]

# What psycopg gives in the session's time zone, and asyncpg in UTC, is each driver's own, and what only drivers know.
APART = {
    "datetime-with-zone", "timestamp-of-precision", "array-of-aware", "tstzrange", "tstzmultirange", "user-defined",
    "inet", "cidr", "macaddr", "macaddr8", "oid", "money", "tsvector", "domain", "regclass", "jsonpath",
    "array-of-uuid", "array-of-float", "float", "real", "float-as-decimal",
}  # fmt: skip


@pytest.mark.parametrize("name", ON_POSTGRESQL)
async def test_drivers_share_what_they_load_alike(postgresql_database: Database, name: str) -> None:
    """Filled by one driver and read by the other: the reader's own types, from the cache unless they differ."""
    table = TABLES[name]
    sync, asynchronous = postgresql_database.connect("postgresql"), postgresql_database.connect("postgresql+asyncpg")
    engines: list[Engine] = [sync, asynchronous]
    try:
        truths: list[dict[int, Any]] = [await greenlet_spawn(in_database, engine, table) for engine in engines]
        for filler, reader, truth in ((sync, asynchronous, truths[1]), (asynchronous, sync, truths[0])):
            SQLModelCache.configure(MemoryTransport())
            await greenlet_spawn(got, filler, table, list(truth))
            filled = SQLModelCache.stats().fills
            assert await greenlet_spawn(got, reader, table, list(truth)) == truth
            assert SQLModelCache.stats().hits == (0 if name in APART else filled)
    finally:
        sync.dispose()
        await AsyncEngine(asynchronous).dispose()


SAMPLE = ["numeric", "string", "bytes", "json-vast", "pydantic-model", "sealed", "utc-datetime", "float", "never-null"]


@pytest.mark.parametrize("name", [name for name in SAMPLE if name in TABLES])
def test_values_pass_through_redis(engine: Engine, redis_client: redis.Redis, name: str) -> None:
    """A megabyte, every byte, every document: Redis gives back what it was given."""
    table = TABLES[name]
    truth = in_database(engine, table)
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE))
    for _ in range(2):
        assert got(engine, table, list(truth)) == truth
    assert SQLModelCache.stats().hits == len(truth)


def test_what_a_decorator_seals_is_sealed_in_the_cache(
    postgresql_database: Database, redis_client: redis.Redis
) -> None:
    """Redis holds what the database holds, not what the application sees."""
    table, engine = TABLES["sealed"], postgresql_database.connect("postgresql")
    SQLModelCache.configure(RedisSyncTransport(redis_client, timeout=PATIENCE, commit_timeout=PATIENCE))
    truth = got(engine, table, table.rows["postgresql"])
    engine.dispose()
    seen = [text.encode() for _, text in (fact for fact in truth.values()) if text is not None and len(text) > 3]
    held = b"".join(redis_client.get(key) or b"" for key in redis_client.keys("*}:*"))
    assert seen
    assert held
    assert [text for text in seen if text in held] == []
